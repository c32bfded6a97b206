"use strict";
const results = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const system = byId("system"), layer = byId("layer"), word = byId("word");
const order = { words: ["lost", -1], neurons: ["s", -1] };

const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const number = value => value === null || Number.isNaN(value) ? "–" : Number(value).toPrecision(3).replace(/e([+-]?)/, " e$1").replace(/-/g, "−");
const percent = value => value === null ? "–" : (100 * value).toFixed(1).replace("-", "−") + " %";

// Text is set as text everywhere: the rows of a benchmark are not to be trusted.
function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function option(select, value, text) {
  const made = element("option", text);
  made.value = value;
  select.append(made);
}

function at(values) {
  return layer.value === "" ? mean(values) : values[Number(layer.value)];
}

function wordRows() {
  return results.words.map((one, index) => {
    const after = one.systems[system.value];
    return {
      index, word: one.word, occurrences: one.occurrences, examples: one.examples, neurons: one.neurons,
      before: at(one.before), after: at(after.after), drop: at(after.drop), collapsed: at(after.collapsed), lost: after.lost,
    };
  });
}

function neuronRows() {
  const wanted = word.value === "" ? null : Number(word.value);
  const rows = [];
  for (const one of results.neurons) {
    if (layer.value !== "" && one.layer !== Number(layer.value)) continue;
    const shown = wanted === null ? one.words[0] : one.words.find(entry => entry.word === wanted);
    if (!shown) continue;
    const after = shown.after[system.value];
    rows.push({
      layer: one.layer, neuron: one.neuron, pruned: one.pruned, all: one.words, at: results.words[shown.word].word,
      s: shown.s, z: shown.z, before: shown.before, after, drop: shown.before > 0 ? 1 - after / shown.before : 0,
    });
  }
  return rows;
}

function sorted(rows, name) {
  const [key, sign] = order[name];
  const size = row => row[key] === null ? -Infinity : row[key];
  return rows.sort((a, b) => sign * (size(a) < size(b) ? -1 : size(a) > size(b) ? 1 : 0));
}

function bar(share) {
  const cell = element("td", undefined, "n");
  const box = element("span", undefined, "bar"), inside = element("i");
  inside.style.width = 100 * Math.max(0, Math.min(1, share ?? 0)) + "%";
  box.append(inside);
  cell.append(box, percent(share));
  return cell;
}

function showWords() {
  const body = byId("words").tBodies[0];
  body.replaceChildren();
  for (const row of sorted(wordRows(), "words")) {
    const line = element("tr", undefined, word.value === String(row.index) ? "selected" : "");
    const name = element("td"), choose = element("button", row.word);
    choose.type = "button";
    choose.addEventListener("click", () => { word.value = word.value === String(row.index) ? "" : String(row.index); show(); });
    name.append(choose);
    line.append(name, ...[row.occurrences, row.examples, row.neurons].map(value => element("td", value, "n")), bar(row.lost),
      ...[row.before, row.after].map(value => element("td", number(value), "n")), element("td", percent(row.drop), "n"), bar(row.collapsed));
    body.append(line);
  }
}

function showNeurons() {
  const rows = sorted(neuronRows(), "neurons"), body = byId("neurons").tBodies[0];
  body.replaceChildren();
  for (const row of rows.slice(0, 400)) {
    const line = element("tr"), name = element("td", row.neuron, "n"), answers = element("td", undefined, "answers-to");
    if (row.pruned) name.prepend(element("span", "pruned", "pill"), " ");
    for (const entry of row.all) answers.append(element("span", results.words[entry.word].word + " " + number(entry.s)), " ");
    line.append(element("td", row.layer, "n"), name, element("td", row.at),
      ...[row.s, row.z, row.before, row.after].map(value => element("td", number(value), "n")), element("td", percent(row.drop), "n"), answers);
    body.append(line);
  }
  byId("count").textContent = rows.length + " of the " + results.neurons.length + " listed neurons" + (rows.length > 400 ? ", the first 400 shown" : "");
}

function showContexts() {
  const list = byId("contexts");
  list.replaceChildren();
  byId("where").textContent = word.value === "" ? "Choose a word to see its occurrences." : "“" + results.words[Number(word.value)].word + "” in the rows";
  if (word.value === "") return;
  for (const [id, before, written, after] of results.words[Number(word.value)].contexts) {
    const item = element("li");
    item.append(id + ": … " + before, element("b", written), after + " …");
    list.append(item);
  }
}

function show() {
  showWords();
  showNeurons();
  showContexts();
  for (const [name, [key, sign]] of Object.entries(order))
    for (const head of byId(name).tHead.rows[0].cells)
      if (head.dataset.key) head.setAttribute("aria-sort", head.dataset.key === key ? (sign > 0 ? "ascending" : "descending") : "none");
}

for (const [name, title] of Object.entries(results.names)) option(system, name, title);
option(layer, "", "all layers");
for (let index = 0; index < results.layers; index++) option(layer, index, "layer " + index);
option(word, "", "all words");
results.words.map((one, index) => [one.word, index]).sort((a, b) => a[0] < b[0] ? -1 : 1).forEach(([text, index]) => option(word, index, text));
for (const select of [system, layer, word]) select.addEventListener("change", show);
byId("reset").addEventListener("click", () => { layer.value = word.value = ""; show(); });
for (const name of Object.keys(order))
  for (const head of byId(name).tHead.rows[0].cells)
    head.querySelector("button")?.addEventListener("click", () => {
      const [key, sign] = order[name];
      order[name] = [head.dataset.key, head.dataset.key === key ? -sign : -1];
      show();
    });
show();

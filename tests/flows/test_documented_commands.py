"""The `dsm` lines of README.md and docs/: all of them parse, and those that take seconds are run.

Run here: init, plan, show, benchmarks ls, validate, verify, hash, rm. `test_a_strangers_path` in test_starting.py runs
run, evaluate, try and versions with a real model. The other commands have tests of their own.
"""

import re
import shlex
from pathlib import Path

import pytest
import typer

from flows import cli
from tasks.pipeline.names import STUDIES
from tests.flows.stand_in_project import REAL
from tests.flows.test_cli import call
from tests.tiny import save_tiny

PAGES = [REAL / "README.md", *sorted((REAL / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|shell)?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[str]:
    """The lines of the page's shell blocks."""
    text = re.sub(r"^```(?!bash|sh|shell)\w+\n.*?^```\n", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for block in BLOCK.findall(text) for line in block.splitlines()]


def commands(line: str) -> list[list[str]]:
    """The commands of a line with all options, without the explanation after two spaces or a bracket."""
    line = re.split(r" {2,}|\] (?=[a-z])", line.partition("  #")[0].strip())[0]
    parts = re.split(r" \| | && ", line)
    found = [shlex.split(re.sub(r"[\[\]](?![^\"]*\"$)|(?<= )\.\.(?= |$)", " ", part)) for part in parts]
    return [arguments[1:] for arguments in found if arguments[0] == "dsm"]


def mentions(page: Path) -> list[list[str]]:
    """The commands that the text of a page names, such as `dsm run --model DIRECTORY`."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(span.replace("..", "X"))[1:] for span in re.findall(r"`(dsm [^`]+)`", text)]


def parse(arguments: list[str]) -> None:
    """Parses the arguments as the command does, without running it; typer's errors say what is wrong."""
    command, context = typer.main.get_command(cli.app), None
    while hasattr(command, "commands"):
        assert arguments, "a group needs a command"
        assert arguments[0] in command.commands, f"dsm {arguments[0]}: no such command"
        context = type(command).context_class(command, info_name="dsm", parent=context)
        command, arguments = command.commands[arguments[0]], arguments[1:]
    values = ["1" if value in ("N", "VERSION") else value for value in arguments]
    parsed = command.make_context("command", values, parent=context)
    if command.name == "study" and parsed.params["name"] != "NAME":
        assert parsed.params["name"] in STUDIES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_command_parses(page: Path) -> None:
    lines = [line for line in blocks(page) if line.startswith("dsm ")]
    for line in lines:
        assert commands(line), line
        for arguments in commands(line):
            parse(arguments)
    for arguments in mentions(page):
        if len(arguments) > 1 and not arguments[0].startswith("-"):
            parse(arguments)
        else:  # the name alone
            known = [*typer.main.get_command(cli.app).commands, "--install-completion", "--help"]
            assert arguments[0] in known, arguments
    if page.name in ("README.md", "own.md"):
        assert len(lines) >= 10


def test_a_command_that_does_not_exist_would_be_found() -> None:
    for line in ("dsm runs", "dsm run --modell x", "dsm evaluate", "dsm promote", "dsm benchmarks list"):
        with pytest.raises((AssertionError, Exception), match=r"(?i)no such|missing"):
            parse(commands(line)[0])


def test_every_documented_make_target_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (REAL / "Makefile").read_text(), flags=re.MULTILINE)
    named: set[str] = set()
    for page in PAGES:
        named |= {*re.findall(r"(?:^|[`(])make ([a-z-]+)", page.read_text(), flags=re.MULTILINE)}
    assert {"run", "test", "test-all", "check"} <= named <= {*targets}


def run(line: str) -> str:
    """Runs a documented line, which must be in README.md or docs/own.md, and returns what it prints."""
    assert any(line in part for name in ("README.md", "docs/own.md") for part in (REAL / name).read_text().splitlines())
    out = ""
    for arguments in commands(line):
        code, printed, err = call(*arguments)
        assert (code, err) == (0, ""), (arguments, err)
        out += printed
    return out


def test_the_lines_for_a_project_outside_a_checkout_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(project / "my-model")
    rows = "".join(f'{{"question": "Is {i} odd?", "choices": ["no", "yes"], "answer": {i % 2}}}\n' for i in range(40))
    (project / "quiz.jsonl").write_text(rows)
    assert "is a project of dsm-pruning" in run("dsm init work && cd work")
    monkeypatch.chdir(project / "work")
    line = "dsm run --model ../my-model --benchmark ../quiz.jsonl"
    assert line in (REAL / "docs" / "own.md").read_text()
    code, out, err = call("plan", *commands(line)[0][1:])  # the plan of this run
    assert (code, err) == (0, "")
    assert "my-model on quiz" in out
    assert "benchmark rotten_tomatoes: " in run("dsm validate")
    assert "rotten_tomatoes" in run("dsm benchmarks ls")
    assert "no cell has a result yet" in run("dsm show")


def test_the_commands_that_look_at_a_finished_project_run(finished_stand_ins: Path) -> None:
    assert run("dsm plan").count(" cached ") == 9
    assert "tiny" in run("dsm show [--markdown]")
    assert "match dvc.lock" in run("dsm validate | dsm verify".partition(" | ")[2])
    code, out, err = call("hash", "params.yaml")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{64}\n", out)
    assert call("rm", "tiny-reviews")[0] == 0
    assert "tiny-reviews" not in (finished_stand_ins / "params.yaml").read_text()

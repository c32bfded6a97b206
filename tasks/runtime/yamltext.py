"""Reads untrusted YAML within limits; other YAML is refused with a message of one line."""

from typing import Any

import yaml

from tasks.runtime.errors import InputError

TEXT_LIMIT = 4 << 20  # characters; a real file has a few thousand
NODE_LIMIT = 1_000_000  # with expanded aliases: a few nested aliases can expand to billions of nodes


def read_yaml(text: str, *, field: str) -> Any:
    """The value of the single document in `text`. `field` is the name of the text in messages.

    Raises:
        InputError: the text is not YAML, too large, nested too deeply, or a mapping has the same key twice.
    """
    if len(text) > TEXT_LIMIT:
        raise InputError(field, f"has {len(text)} characters; the limit is {TEXT_LIMIT}")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, {}, field)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise InputError(field, f"not valid YAML{where}: {getattr(error, 'problem', error)}") from None
    except RecursionError:
        raise InputError(field, "is nested too deeply") from None
    except (ValueError, OverflowError, TypeError) as error:  # an invalid date, or a number with too many digits
        raise InputError(field, f"holds a value that cannot be read: {error}") from None


def _check(node: yaml.Node, sizes: dict[int, int], field: str) -> int:
    """The number of nodes below this one, with aliases expanded; `sizes` caches it by identity."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise InputError(field, f"line {node.start_mark.line + 1}: a value that contains itself")
        return sizes[id(node)]
    sizes[id(node)] = 0
    line = node.start_mark.line + 1
    total = 1
    if isinstance(node, yaml.ScalarNode):
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise InputError(field, f"line {line}: half of a surrogate pair, which is not text")
    elif isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise InputError(field, f"line {key.start_mark.line + 1}: {key.value!r} occurs twice")
                keys.add((key.tag, key.value))
            total += _check(key, sizes, field) + _check(value, sizes, field)
    else:
        total += sum(_check(item, sizes, field) for item in node.value)
    if total > NODE_LIMIT:
        raise InputError(field, f"line {line}: expands to more than {NODE_LIMIT} values")
    sizes[id(node)] = total
    return total

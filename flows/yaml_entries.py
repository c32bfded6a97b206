"""Entries of a YAML mapping that is read and written by ruamel.yaml, with the comments around them where they were.

ruamel.yaml hangs the comments that follow an entry on the last value in it. Without care a new last entry would stand
after the comment that introduces the next section, and that comment would go with the last entry.
"""

from collections.abc import Mapping
from typing import Any


def round_trip() -> Any:
    """A reader and writer that keeps comments, quotes and long lines."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**31
    return yaml


def add_entry(mapping: Any, key: str, value: Any) -> None:
    """Adds an entry at the end; what follows the one before it, a comment about the next section, follows this one."""
    following = _cut_following(mapping)
    mapping[key] = value
    _put_following(mapping, following)


def remove_entry(mapping: Any, key: str) -> None:
    """Removes an entry; the comments that follow it, but for that on its own last line, stay."""
    last = list(mapping)[-1] == key
    following = _cut_following(mapping) if last else ""
    del mapping[key]
    _put_following(mapping, following)


def flow_style(value: Any) -> Any:
    """A mapping or a list that is written on one line."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    line: Any
    if isinstance(value, Mapping):
        line = CommentedMap({key: flow_style(item) for key, item in value.items()})
    elif isinstance(value, list):
        line = CommentedSeq([flow_style(item) for item in value])
    else:
        return value
    line.fa.set_flow_style()
    return line


def block(value: Mapping[str, Any], comment: str = "") -> Any:
    """A mapping on several lines, what is in it on one line each; the comment stands above its first line."""
    from ruamel.yaml.comments import CommentedMap

    mapping = CommentedMap({key: flow_style(item) for key, item in value.items()})
    if comment:
        mapping.yaml_set_start_comment(comment, indent=4)
    return mapping


def _last(mapping: Any) -> tuple[Any, Any]:
    """The innermost mapping or list in block style that holds the last value, and the key of that."""
    key = list(mapping)[-1] if isinstance(mapping, Mapping) else len(mapping) - 1
    value: Any = mapping[key]
    if hasattr(value, "fa") and len(value) and not value.fa.flow_style():  # a mapping or a list
        return _last(value)
    return mapping, key


def _cut_following(mapping: Any) -> str:
    """Takes away, and returns, the lines of comments that follow the last entry."""
    if not len(mapping):
        return ""
    holder, key = _last(mapping)
    place = _place(holder)
    tokens = holder.ca.items.get(key)
    token = tokens[place] if tokens else None
    if token is None:
        return ""
    own, _, following = token.value.partition("\n")
    if own:
        token.value = f"{own}\n"
    else:
        tokens[place] = None
    return str(following)


def _put_following(mapping: Any, following: str) -> None:
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    if not following or not len(mapping):
        return
    holder, key = _last(mapping)
    place = _place(holder)
    tokens = holder.ca.items.setdefault(key, [None] * 4 if isinstance(holder, Mapping) else [None] * 2)
    own = tokens[place].value.partition("\n")[0] if tokens[place] else ""
    column = tokens[place].start_mark.column if tokens[place] else 0
    tokens[place] = CommentToken(f"{own}\n{following}", CommentMark(column), None)


def _place(holder: Any) -> int:
    """Where ruamel.yaml keeps the comment after a value."""
    return 2 if isinstance(holder, Mapping) else 0

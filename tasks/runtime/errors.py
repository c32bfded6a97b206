"""The one exception a user can cause."""

LONGEST = 1000  # characters of a part of the line: a value of the user's may be as long as a file


class InputError(Exception):
    """Bad input. Its text is one line: the field, what was wrong with it, what is allowed.

    Every command turns it into that line on stderr and exit code 2.
    """

    def __init__(self, field: str, problem: str):
        self.field = _line(field)
        self.problem = _line(problem)
        super().__init__(f"{self.field}: {self.problem}")


def _line(text: str) -> str:
    """On one line; what a terminal would obey or cannot show is escaped."""
    text = " ".join(text[: 2 * LONGEST].split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else text[:LONGEST] + " .."

"""The exception for bad input."""

LONGEST = 1000  # characters of the field and of the problem; a value in them may be as long as a file


class InputError(Exception):
    """Bad input. Its text is one line: the field, what is wrong, what is allowed.

    Every command prints that line on stderr and exits with code 2.

    Example:
        >>> str(InputError("limits.test", "must be positive, not 0"))
        'limits.test: must be positive, not 0'
    """

    def __init__(self, field: str, problem: str):
        self.field = one_line(field)
        self.problem = one_line(problem)
        super().__init__(f"{self.field}: {self.problem}")


def one_line(text: str) -> str:
    """The text on one line of at most `LONGEST` characters, with control and unprintable characters escaped."""
    text = " ".join(text[: 2 * LONGEST].split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else text[:LONGEST] + " .."

"""The one exception a user can cause."""


class InputError(Exception):
    """Bad input. Its text is one line: the field, what was wrong with it, what is allowed.

    Every command turns it into that line on stderr and exit code 2.
    """

    def __init__(self, field: str, problem: str):
        self.field = field
        self.problem = " ".join(problem.split())
        super().__init__(f"{field}: {self.problem}")

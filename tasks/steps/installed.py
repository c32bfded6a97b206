"""installed: the hashes of the installed code, for the stages of a project outside a checkout (`dsm init`)."""

import sys
from pathlib import Path

from tasks.pipeline.installed_code import CODE, code_text
from tasks.runtime.errors import InputError
from tasks.runtime.files import write_text

if __name__ == "__main__":
    try:
        write_text(Path(CODE), code_text(Path.cwd()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

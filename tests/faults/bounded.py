"""Calls that must refuse their input, in a process with limited memory and time."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from tests.flows.stand_in_project import REAL

MEMORY = 512 << 20  # bytes beyond what the imports take
SECONDS = 90.0  # for all of them

CODE = """\
import json, resource, sys
from pathlib import Path
from tasks.runtime.errors import InputError
{imports}
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + {memory}
resource.setrlimit(resource.RLIMIT_AS, (size, size))
told = []
for path in map(Path, sys.argv[1:]):
    try:
        {call}
        told.append("NOT REFUSED")
    except InputError as error:
        told.append(str(error))
print(json.dumps(told))
"""


def refusals(imports: str, call: str, paths: Sequence[object]) -> list[str]:
    """The error lines of `call`, code that uses `path`, for each of the paths."""
    code = CODE.format(imports=imports, call=call, memory=MEMORY)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(REAL)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-2000:])
    told: list[str] = json.loads(done.stdout)
    return told


def check(told: Sequence[str], expected: Sequence[str]) -> None:
    """Checks that each message contains the expected text, is one line, and is short."""
    for line, part in zip(told, expected, strict=True):
        assert part in line
        assert line.isprintable()
        assert len(line) < 3000

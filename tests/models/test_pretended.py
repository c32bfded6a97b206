"""Every loop on pretended devices, in processes of their own: nothing mixes devices."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import FAMILIES

ROOT = Path(__file__).parents[2]


def run(mode: str, *families: str) -> str:
    """The errors, one line each."""
    argv = [sys.executable, "-W", "ignore", "-m", "tests.models.on_pretended", mode, *families]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == len(done.stdout.splitlines()), done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("mode", [*(pytest.param(mode, marks=pytest.mark.slow) for mode in ("one", "two")), "host"])
def test_nothing_mixes_devices(mode: str) -> None:
    assert run(mode, "llama") == ""


@pytest.mark.slow
@pytest.mark.parametrize("third", range(3))  # one process for several families: its imports take half of the time
def test_no_family_mixes_devices(third: int) -> None:
    """On two devices: a mix with the CPU that would be detected with one device is detected here, too."""
    assert run("two", *[family for family in FAMILIES if family != "llama"][third::3]) == ""


@pytest.mark.slow
def test_no_family_mixes_devices_with_weights_on_the_host() -> None:
    assert run("host", "qwen2", "gemma3", "phi3") == ""


def test_a_mix_is_found(tmp_path: Path) -> None:
    code = (
        "from tests.models.pretended import *\n"
        "with Pretending():\n"
        "    x = torch.ones(2, device='pretend:1')\n"
        "    assert x.device == torch.device('pretend:1') and (x + 1).tolist() == [2.0, 2.0]\n"
        "    for other in (torch.ones(2), torch.ones(2, device='pretend:0'), torch.ones(2, device='pretend')):\n"
        "        try:\n"
        "            x + other\n"
        "        except RuntimeError:\n"
        "            continue\n"
        "        raise SystemExit(f'{other.device} was not refused')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)

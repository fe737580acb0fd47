"""Quantizing and evaluating take the same memory whatever the depth of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc"),
]

# Each in a process of its own, whose peak is that of its work alone.
MAKE = """
import sys
from pathlib import Path
from tests.integration.quantize_support import write_source
import tests.integration.quantize_support as support
support.SIZES = {
    **support.SIZES,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "head_dim": 256,
    "num_hidden_layers": int(sys.argv[2]),
}
write_source("Llama", Path(sys.argv[1]) / "source")
"""
STAGE = """
import sys
from pathlib import Path
import torch
from tests.integration.quantize_support import recipe, run_stage
from tests.integration.test_by_layer import evaluated
folder, stage = Path(sys.argv[1]), sys.argv[2]
source, checkpoint = folder / "source", folder / "checkpoint"
settings = recipe(source, format="int8_sq", samples=4)
if stage == "quantize":
    run_stage(settings, source, checkpoint)
else:
    evaluated(settings, source, checkpoint, folder / "evaluated", "layer")
# That of getrusage begins with the memory of the process that started this one.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def test_three_times_the_layers_take_no_more(tmp_path: Path) -> None:
    peaks: dict[tuple[str, int], int] = {}
    # Of both there are more than stay in memory while completions are written.
    for layers in (12, 36):
        folder = tmp_path / str(layers)
        folder.mkdir()
        run(MAKE, folder, str(layers))
        for stage in ("quantize", "evaluate"):
            peaks[stage, layers] = int(run(STAGE, folder, stage).splitlines()[-1])
    print(f"KiB: {peaks}; 24 layers in float32 are {24 * 11_800_000 * 4 >> 10}")
    for stage in ("quantize", "evaluate"):
        assert peaks[stage, 36] < 1.1 * peaks[stage, 12], peaks


def run(program: str, *arguments: str | Path) -> str:
    """Returns what a program printed."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

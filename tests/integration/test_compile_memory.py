"""The CPU's engine is written in the same memory whatever the depth of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.checkpoint.drawn import drawn_checkpoint

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc"),
]

COMPILE = """
import sys
from pathlib import Path
import pipeline.targets.openvino.engine
from tests.integration.openvino_support import compile_engine
def peak():
    # That of getrusage begins with the memory of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])
before = peak()
compile_engine(Path(sys.argv[1]), Path(sys.argv[2]))
print(peak() - before)
"""
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}
# Of operations and their text, which a layer takes whatever its width.
GRAPH_OF_A_LAYER = 2 << 10


@pytest.mark.parametrize(
    ("algo", "tp"), [("NO_QUANT", 1), ("W4A16_AWQ", 1), ("W8A8_SQ_PER_CHANNEL", 1), ("NF4", 2)]
)
def test_four_times_the_layers_take_their_graph_more(tmp_path: Path, algo: str, tp: int) -> None:
    peaks = {}
    for layers in (12, 48):
        checkpoint = drawn_checkpoint(
            tmp_path / f"{layers}",
            algo,
            tp=tp,
            num_key_value_heads=4,
            num_hidden_layers=layers,
            **SIZES,
        )
        engine = tmp_path / f"engine {layers}"
        command = [sys.executable, "-c", COMPILE, str(checkpoint), str(engine)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[layers] = int(found.stdout)
    more = (engine / "openvino_model.bin").stat().st_size * 3 // 4 >> 10
    print(f"{algo}, {tp} ranks: {peaks} KiB above the imports; the weights are {more} KiB more")
    assert peaks[12] > 0
    assert peaks[48] - peaks[12] < 36 * GRAPH_OF_A_LAYER < more

"""Work of a large model has the bits of one thread on any number of threads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.processor import is_intel
from pipeline.source.runtime import SINGLE_THREAD_PARAMETERS
from pipeline.source.threads import mkl_order

# In a process of its own: MKL chooses its order with the first product. The shapes are such that
# threads share the sums of a product, and that their shares are no multiples of a vector.
PROGRAM = """
import contextlib, json, sys, torch
from pipeline.source.runtime import deterministic

mended = sys.argv[1] == "mended"
generator = torch.Generator().manual_seed(5)
few, wide = (torch.randn(rows, 7168, generator=generator) for rows in (64, 256))
many = torch.randn(100_003, generator=generator)
found = {}
for threads in (1, 2, 3, 5):
    torch.set_num_threads(threads)
    with deterministic(int(sys.argv[2])) if mended else contextlib.nullcontext():
        assert torch.get_num_threads() == threads
        results = {
            "product": torch.nn.functional.linear(few, wide),
            "loss": (many * 0.99 - many).float().pow(2).mean(),
            "sum": torch.sum(many),
            "silu": torch.nn.SiLU()(many),
            "pow": many.abs().pow(0.3),
            "cos": many.cos(),
        }
    for name, value in results.items():
        found.setdefault(name, set()).add(value.numpy().tobytes())
print(json.dumps({name: len(bits) for name, bits in found.items()}))
"""


def test_large_models_compute_the_same_bits_on_any_number_of_threads() -> None:
    kinds = results("mended")
    if not is_intel():
        del kinds["product"]
    assert set(kinds.values()) == {1}, kinds


@pytest.mark.proof
@pytest.mark.skipif(not is_intel(), reason="another processor splits products otherwise")
def test_without_the_rule_they_depend_on_it() -> None:
    kinds = results("plain")
    assert min(kinds["product"], kinds["sum"], kinds["silu"]) > 1, kinds


def results(way: str) -> dict[str, int]:
    """Counts the different results of each operation."""
    size = str(SINGLE_THREAD_PARAMETERS + 1)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way, size], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_a_users_own_order_and_other_processors_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intel, other = tmp_path / "intel", tmp_path / "other"
    intel.write_text("vendor_id\t: GenuineIntel\n", encoding="utf-8")
    other.write_text("vendor_id\t: AuthenticAMD\n", encoding="utf-8")
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert mkl_order(intel) == {"MKL_CBWR": "AUTO,STRICT"}
    assert mkl_order(other) == {}
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert mkl_order(intel) == {}

"""Work of a large model has the bits of one thread on any number of threads."""

from __future__ import annotations

import json
import os
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
import contextlib, json, sys, torch, warnings
from pipeline.evaluation.signal_to_noise import NoiseMeter
from pipeline.layers.parts import Part
from pipeline.source.runtime import deterministic

# That MKL keeps another order.
warnings.simplefilter("error", UserWarning)
mended = sys.argv[1] == "mended"
generator = torch.Generator().manual_seed(5)
few, wide = (torch.randn(rows, 7168, generator=generator) for rows in (64, 256))
many = torch.randn(100_003, generator=generator)
square = torch.randn(400, 500, generator=generator).double()
square = square @ square.T if not mended else (square[:, None] * square).sum(-1)
source, written = (torch.nn.Linear(64, 5003) for _ in range(2))


def noise():
    parts = [Part(1, {"linear": linear}, linear) for linear in (source, written)]
    meter = NoiseMeter(lambda _part: parts[1])
    with torch.inference_mode(), meter.watching(parts[0]):
        source(few[:, :64])
    return torch.tensor([meter.found().linears[0].db], dtype=torch.float64)


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
            "power": many.abs() ** 0.3,
            "norm": torch.linalg.vector_norm(many, 1),
            "norms": torch.linalg.matrix_norm(many[:100_000].view(100, 1000), 1),
            "cholesky": torch.linalg.cholesky_ex(square)[0],
            "noise": noise(),
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
    shared = ("product", "sum", "silu", "power", "norm", "cholesky")
    assert min(kinds[name] for name in shared) > 1, kinds


def results(way: str) -> dict[str, int]:
    """Counts the different results of each operation."""
    size = str(SINGLE_THREAD_PARAMETERS + 1)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way, size], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


LATE = """
import torch, warnings
from pipeline.source.runtime import SINGLE_THREAD_PARAMETERS, deterministic

few = torch.randn(3, 3)
with deterministic(1):
    few @ few
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with deterministic(SINGLE_THREAD_PARAMETERS + 1):
        pass
print(*(warning.message for warning in caught), sep="\\n")
"""


@pytest.mark.proof
@pytest.mark.skipif(not is_intel(), reason="there is no order to set on another processor")
def test_a_large_model_behind_a_small_one_is_told() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, check=True, env=environment
    )
    assert "set MKL_CBWR=AUTO,STRICT ahead of it" in done.stdout
    assert len(done.stdout.splitlines()) == 1


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

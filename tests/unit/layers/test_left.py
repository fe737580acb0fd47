"""How far an earlier run came is read from what it saved, and nothing of torch is needed for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.layers.left import WalkLeft, walks_left
from tests.conftest import PROJECT


def test_the_layers_of_each_state_are_counted(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from pipeline.layers.state import State

    assert walks_left(tmp_path / "none") == []
    hidden = torch.zeros(3, 50, 20)
    State(tmp_path / "a.safetensors", {}).save(300, [hidden, hidden])
    State(tmp_path / "b.state", {}).save(0, [hidden.bfloat16()])
    # The saved layers' count, and two digests, beside the hidden states.
    beside = 8 + 2 * 32
    wanted = [WalkLeft(300, 2 * 12000 + beside), WalkLeft(0, 6000 + beside)]
    assert walks_left(tmp_path) == wanted
    # A checkpoint that is not whole, a save that was not finished, another walk's, and damage.
    save_file({"a": hidden}, tmp_path / "rank0.safetensors")
    (tmp_path / "a.part").write_bytes((tmp_path / "a.safetensors").read_bytes())
    (tmp_path / "layers-0.5").mkdir()
    (tmp_path / "layers-0.5" / "b.state").write_bytes((tmp_path / "b.state").read_bytes())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    assert walks_left(tmp_path) == wanted


def test_who_plans_imports_nothing_heavy_for_it() -> None:
    program = (
        "import sys, pipeline.layers.left, pipeline.effort.planned, pipeline.running.room; "
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"

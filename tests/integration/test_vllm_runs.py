"""The real vLLM of another environment, whose Python ``TRTLLM_PIPELINE_VLLM_PYTHON`` names.

Such an environment is of several gigabytes and takes minutes to make (docs/vllm.md), so that
without the variable nothing of this runs.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.targets.vllm.elsewhere import find_vllm, surroundings
from pipeline.targets.vllm.measure import evaluation
from pipeline.targets.vllm.write import write_export
from tests.integration.quantize_support import VOCAB, write_source
from tests.unit.vllm.support import recipe, write_checkpoint

PYTHON = os.environ.get("TRTLLM_PIPELINE_VLLM_PYTHON")
pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="TRTLLM_PIPELINE_VLLM_PYTHON names no Python with vLLM"),
]


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("Qwen3", tmp_path_factory.mktemp("models") / "model")


def exported(source: Path, folder: Path, name: str, **changes: Any) -> Recipe:
    wanted = recipe(source, name, vllm={"python": PYTHON, **changes})
    write_checkpoint(source, wanted, folder / "checkpoint")
    (folder / "export").mkdir()
    write_export(folder / "checkpoint", source, wanted, folder / "export", Silent())
    return wanted


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("float16", {}),
        ("int4_gptq", {"layout": "compressed-tensors"}),
        ("int4_gptq", {"layout": "gptq"}),
    ],
    ids=["float16", "compressed-tensors", "gptq"],
)
def test_vllm_gives_the_checkpoint_s_log_probabilities(
    source: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    measured = evaluation(exported(source, tmp_path, name, **changes))
    random = np.random.default_rng(4)
    windows = [random.integers(1, VOCAB, length).tolist() for length in (48, 30, 12)]
    progress = Notes()
    losses = measured.losses(
        tmp_path / "export", tmp_path / "checkpoint", windows, tmp_path, progress
    )
    reference = load_reference(tmp_path / "checkpoint")
    for window, found in zip(windows, losses, strict=True):
        with torch.inference_mode():
            logits = reference(input_ids=torch.tensor([window])).logits[0, :-1]
        told = torch.log_softmax(logits, -1)
        expected = -told[torch.arange(len(window) - 1), torch.tensor(window[1:])].numpy()
        # It computes in float16; a wrong row, scale or order is wrong by whole nats.
        assert np.abs(found - expected).max() < 0.1
    (note,) = progress.notes
    assert find_vllm(str(PYTHON)) in note
    print(name, changes, note)


def test_triton_s_arguments_are_vllm_s_own(source: Path, tmp_path: Path) -> None:
    """``model.json`` is taken as keywords of AsyncEngineArgs, which refuses any other."""
    exported(source, tmp_path, "float16")
    model = json.loads((tmp_path / "export/triton/vllm_model/1/model.json").read_text())
    model["model"] = str(tmp_path / "export/model")  # it looks whether the folder is there
    code = (
        "import json, sys; from vllm.engine.arg_utils import AsyncEngineArgs as A; "
        "print(A(**json.loads(sys.argv[1])).max_model_len)"
    )
    done = subprocess.run(
        [str(PYTHON), "-c", code, json.dumps(model)],
        env=surroundings(),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == "64"


def test_vllm_serve_takes_the_command_line(source: Path, tmp_path: Path) -> None:
    """Its own parser of ``vllm serve`` reads what the README says."""
    exported(source, tmp_path, "float16")
    lines = (tmp_path / "export/README.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("vllm serve "))
    code = (
        "import sys; from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser as m; "
        "a = m(P()).parse_args(sys.argv[1:]); print(a.model_tag, a.host, a.port, a.max_num_seqs)"
    )
    done = subprocess.run(
        [str(PYTHON), "-c", code, *line.split()[2:]],
        env=surroundings(),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-4:] == ["model", "127.0.0.1", "8000", "32"]

"""A snapshot's tokenizer, served: the stage's output, opened as Triton's models open it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipeline.progress import Silent
from pipeline.stages import repository as stage
from pipeline.stages.base import StageContext
from pipeline.store.artifact import Artifact
from tests.unit.model_repo.fake_triton import Request, install, model_args
from tests.unit.triton.demo import demo_recipe, write_engine

install()

from model_repo.postprocessing import model as postprocessing  # noqa: E402 - needs install()
from model_repo.preprocessing import model as preprocessing  # noqa: E402
from model_repo.tensorrt_llm_bls.detokenizer import IncrementalDetokenizer  # noqa: E402


@dataclass
class Served:
    """A repository that the stage wrote, and its text models, opened as Triton opens them."""

    folder: Path
    facts: dict[str, Any]
    before: Any
    after: Any
    tokenizer: Tokenizer

    def ids(self, text: str) -> list[int]:
        """What ``preprocessing`` makes of a prompt."""
        tensors = {
            "QUERY": np.array([[text.encode()]], object),
            "REQUEST_OUTPUT_LEN": np.array([[1]], np.int32),
        }
        return self._asked(self.before, tensors, "INPUT_ID").reshape(-1).tolist()

    def text(self, ids: list[int]) -> str:
        """What ``postprocessing`` makes of ids."""
        tensors = {
            "TOKENS_BATCH": np.array([[ids]], np.int32),
            "SEQUENCE_LENGTH": np.array([[len(ids)]], np.int32),
        }
        return self._asked(self.after, tensors, "OUTPUT").reshape(-1)[0].decode()

    def streamed(self, ids: list[int]) -> str:
        """What ``tensorrt_llm_bls`` makes of ids that come one by one."""
        detokenizer = IncrementalDetokenizer(self.tokenizer)
        return "".join((*(detokenizer.push([token]) for token in ids), detokenizer.finish()))

    @staticmethod
    def _asked(model: Any, tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
        (response,) = model.execute([Request(tensors, [name])])
        assert not response.has_error(), response.error().message()
        return next(t.as_numpy() for t in response.output_tensors() if t.name() == name)


def serve(snapshot: Path, root: Path) -> Served:
    """Runs the stage on a snapshot and opens what it wrote.

    Args:
        snapshot: Holds the tokenizer's files.
        root: An empty folder.
    """
    if not (snapshot / "config.json").is_file():
        # A model has one, a tokenizer alone has not.
        snapshot = shutil.copytree(snapshot, root / "snapshot")
        (snapshot / "config.json").write_text("{}")
    write_engine(root / "engine")
    output = root / "output"
    output.mkdir()
    inputs = {
        name: Artifact(name, "key", "digest", path, {})
        for name, path in (("source", snapshot), ("compile", root / "engine"))
    }
    facts = stage.run(StageContext(demo_recipe(), inputs, output, Silent()))
    folder = output / "preprocessing" / "1" / "tokenizer"
    models = (preprocessing.TritonPythonModel(), postprocessing.TritonPythonModel())
    with pytest.MonkeyPatch.context() as patch:
        for module, model in zip((preprocessing, postprocessing), models, strict=True):
            # A model opened by a test must not end the test's process.
            patch.setattr(module, "end_with_parent", lambda: None)
            model.initialize(model_args(output, {"tokenizer_dir": "preprocessing/1/tokenizer"}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Served(folder, facts, *models, tokenizer)

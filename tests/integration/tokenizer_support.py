"""A snapshot's tokenizer, served: the stage's output, opened as Triton's models open it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
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
from model_repo.tensorrt_llm.vocabulary import token_texts  # noqa: E402
from model_repo.tensorrt_llm_bls.detokenizer import IncrementalDetokenizer  # noqa: E402


@dataclass
class Served:
    """A repository that the stage wrote, and its text models, opened as Triton opens them."""

    folder: Path
    facts: dict[str, Any]
    before: Any
    after: Any
    tokenizer: Tokenizer

    def ids(self, text: str, added: bool | None = None) -> list[int]:
        """What ``preprocessing`` makes of a prompt.

        Args:
            added: What the request says about special tokens.
        """
        tensors = {
            "QUERY": np.array([[text.encode()]], object),
            "REQUEST_OUTPUT_LEN": np.array([[1]], np.int32),
        }
        if added is not None:
            tensors["ADD_SPECIAL_TOKENS"] = np.array([[added]])
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


def assert_bytes_of_tokens(path: Path, texts: Iterable[str]) -> None:
    """Holds the bytes that guided decoding takes tokens for against the tokenizer itself.

    Args:
        path: A ``tokenizer.json``.
        texts: Any; what the tokenizer makes of one is taken apart and put together again.
    """
    tokenizer = Tokenizer.from_file(str(path))
    size = tokenizer.get_vocab_size()
    known = token_texts(path, size, [])
    silent = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if silent.isdisjoint(ids):
            joined = b"".join(known[id_] for id_ in ids).decode()
            # Some tokenizers put a space in front of a text and take it away again.
            assert tokenizer.decode(ids, skip_special_tokens=False) in (joined, joined[1:])
    # Behind an anchor each token stands in the middle of a text.
    anchor = tokenizer.encode("a", add_special_tokens=False).ids
    before = len(tokenizer.decode(anchor, skip_special_tokens=False))
    whole = [id_ for id_ in range(size) if id_ not in silent and _is_utf8(known[id_])]
    assert len(whole) > size / 4
    decoded = tokenizer.decode_batch([[*anchor, id_] for id_ in whole], skip_special_tokens=False)
    wrong = [
        (id_, text, known[id_])
        for id_, text in zip(whole, decoded, strict=True)
        if text[before:].encode() != known[id_]
    ]
    assert wrong == []


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True

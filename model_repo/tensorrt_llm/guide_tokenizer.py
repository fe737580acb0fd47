"""Tells OpenVINO GenAI the vocabulary that it compiles grammars for.

It reads the vocabulary from the graph of a detokenizer: the constants of the operation
``VocabDecoder`` (``read_vocab_from_detokenizer_model`` in src/cpp/src/tokenizer/tokenizer_impl.cpp
of openvino.genai). The graph is made here from bytes that are exactly those of the tokens; the one
that openvino_tokenizers converts needs transformers, and its special tokens have a text.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def guide_tokenizer(genai: Any, texts: Sequence[bytes], end_id: int) -> Any:
    """Makes an ``openvino_genai.Tokenizer`` that knows the vocabulary and cannot tokenize.

    Args:
        genai: The ``openvino_genai`` module.
        texts: The bytes of every token of the engine, by id.
        end_id: An id that ends a text.

    Raises:
        RuntimeError: OpenVINO's library of tokenizer operations is missing or does not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_detokenizer(texts, end_id, Path(folder))
        (Path(folder) / "config.json").write_text(json.dumps({"eos_token_id": end_id}))
        return genai.Tokenizer(folder)


def _write_detokenizer(texts: Sequence[bytes], end_id: int, folder: Path) -> None:
    import openvino as ov
    from openvino import opset15 as op

    factory = _factory()
    ends = np.cumsum([len(text) for text in texts]).astype(np.int32)
    begins = np.concatenate((np.zeros(1, np.int32), ends[:-1]))
    characters = np.frombuffer(b"".join(texts), np.uint8)
    ids = op.parameter(ov.PartialShape([-1, -1]), ov.Type.i64)
    # The last input are the tokens that are left out. It must be there and not be empty, or
    # OpenVINO GenAI fails when it makes a state of it.
    skipped = np.array([end_id], np.int32)
    constants = [op.constant(array) for array in (begins, ends, characters, skipped)]
    decoded = factory.create(
        "VocabDecoder",
        [node.output(0) for node in (op.convert(ids, ov.Type.i32), *constants)],
    )
    joined = factory.create("FuzeRagged", decoded.outputs()[:4])
    packed = op.string_tensor_pack(*joined.outputs(), decoded.output(4))
    model = ov.Model([packed.output(0)], [ids], "detokenizer")
    # Without it OpenVINO GenAI takes the graph for one of before 2024.5.
    model.set_rt_info(ov.get_version(), "openvino_tokenizers_version")
    ov.save_model(model, folder / "openvino_detokenizer.xml")


@functools.cache
def _factory() -> Any:
    """Makes the tokenizer operations; kept, since their code is unloaded with it."""
    from openvino.utils.node_factory import NodeFactory

    # Imported, the package would change OpenVINO's own classes for the whole process.
    package = importlib.util.find_spec("openvino_tokenizers")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("guided decoding needs the package openvino-tokenizers")
    factory = NodeFactory()
    folder = Path(package.submodule_search_locations[0])
    factory.add_extension(str(folder / "lib" / "libopenvino_tokenizers.so"))
    return factory

"""Our GGUF types against llama.cpp's own quantizer, as the npm package node-llama-cpp ships it."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="gguf is in the extra llamacpp")
from tests.integration.test_gguf_file import CASES, write_source, written  # noqa: E402
from tests.unit.vllm.support import recipe, write_checkpoint  # noqa: E402

from ..conftest import DEMO_MODEL, SHARED_MODELS  # noqa: E402

LIBRARY = os.environ.get("TRTLLM_PIPELINE_LLAMA_LIBRARY")
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        LIBRARY is None, reason="llama.cpp's library is fetched by make formats-proof"
    ),
]
# include/llama.h, enum llama_ftype
FTYPES = {"q8_0": 7, "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9, "q4_k_s": 14, "q4_k_m": 15,
          "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18}  # fmt: skip


class Parameters(ctypes.Structure):
    """The beginning of ``llama_model_quantize_params``; the rest stays as its defaults are."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int32),
        ("rest", ctypes.c_char * 512),
    ]


@pytest.fixture(scope="module")
def quantize() -> Callable[[Path, Path, int], None]:
    """``llama_model_quantize``."""
    assert LIBRARY
    library = ctypes.CDLL(str(next(Path(LIBRARY).rglob("libllama.v*.so"))))
    defaults, run = library.llama_model_quantize_default_params, library.llama_model_quantize
    defaults.restype = Parameters
    run.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]

    def quantized(file: Path, output: Path, ftype: int) -> None:
        asked = defaults()
        asked.nthread, asked.ftype = 1, ftype
        assert run(bytes(file), bytes(output), ctypes.byref(asked)) == 0

    return quantized


@pytest.mark.parametrize("name", ["demo", "stories", "qwen2"])
def test_every_type_has_the_bytes_of_llama_quantize(
    name: str, quantize: Callable[[Path, Path, int], None], tmp_path: Path
) -> None:
    source = {"demo": DEMO_MODEL, "stories": SHARED_MODELS / "stories260K-h128"}.get(name)
    if source is None:
        assert name in CASES
        source = write_source(name, tmp_path / "source")
    elif not source.is_dir():
        pytest.skip(f"{name} is not here")
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text((source / "config.json").read_text())
    checkpoint = write_checkpoint(own, recipe(own, "float16"), tmp_path / "checkpoint")
    compare(source, checkpoint, FTYPES, quantize, tmp_path)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("name", ["llama linear", "mistral 48", "qwen2", "qwen3"])
def test_models_of_eighty_layers_are_70b_where_llama_cpp_says_so(
    name: str, kv_heads: int, quantize: Callable[[Path, Path, int], None], tmp_path: Path
) -> None:
    source = write_source(name, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": 80, "num_key_value_heads": kv_heads, "intermediate_size": 256}
    config.pop("layer_types", None)
    (source / "config.json").write_text(json.dumps(config))
    checkpoint = write_checkpoint(source, recipe(source, "float16"), tmp_path / "checkpoint")
    kinds = {kind: FTYPES[kind] for kind in ("q4_k_s", "q4_k_m")}
    compare(source, checkpoint, kinds, quantize, tmp_path)


def compare(
    source: Path,
    checkpoint: Path,
    kinds: Mapping[str, int],
    quantize: Callable[[Path, Path, int], None],
    folder: Path,
) -> None:
    """Holds each type of a checkpoint to what llama.cpp makes of its float16 file."""
    half = folder / "half.gguf"
    written(source, checkpoint, "f16", half)
    for kind, ftype in kinds.items():
        ours, theirs = folder / f"{kind}.gguf", folder / f"{kind}-theirs.gguf"
        written(source, checkpoint, kind, ours)
        quantize(half, theirs, ftype)
        expected = {tensor.name: tensor for tensor in gguf.GGUFReader(theirs).tensors}
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(ours).tensors}
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert tensor.tensor_type == expected[key].tensor_type, (kind, key)
            same = np.array_equal(tensor.data.view(np.uint8), expected[key].data.view(np.uint8))
            assert same, (kind, key, tensor.tensor_type)

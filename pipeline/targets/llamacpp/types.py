"""The number types of GGUF: how a matrix becomes the bytes of one, and which tensor has which.

Layouts: ``ggml-common.h`` and ``ggml-quants.c`` of llama.cpp. The mixtures of the K types are those
of ``llama_tensor_get_type`` in its ``llama-quant.cpp``, for dense models.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType

from pipeline.dependencies import install
from pipeline.errors import MissingDependencyError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BLOCK = 32
"""Inputs that share one scale in Q4_0 and Q8_0."""
_K_BLOCK = 256
# What a matrix gets whose rows are no multiple of 256: convert_incompatible_tensor.
_NARROW = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


@dataclass(frozen=True)
class Mixture:
    """One of llama.cpp's file types.

    Attributes:
        file_type: Its number, ``general.file_type``.
        most: The type of a linear that nothing else is said of.
        better: The type of ``attn_v`` and ``ffn_down`` in the layers that get more bits.
        more_bits: Which layers those are: ``spread`` is llama.cpp's ``use_more_bits``; ``first``
            is the first four for attn_v and the first eighth for ffn_down.
    """

    file_type: FileType
    most: Type
    better: Type | None = None
    more_bits: str = ""

    def linear(
        self, name: str, layer: int, layers: int, columns: int, *, seventy: bool = False
    ) -> Type:
        """Returns the type of one linear.

        Args:
            name: Within its block, such as ``attn_v``.
            layer: From 0.
            layers: Of the model.
            columns: Input features.
            seventy: Whether llama.cpp calls the model 70B: its attn_v is never below Q5_K.
        """
        kind = self.most
        if self.better and name in ("attn_v", "ffn_down") and self._gets_more(name, layer, layers):
            kind = self.better
        if name == "attn_v" and seventy and kind == Type.Q4_K:
            kind = Type.Q5_K
        return fitting(kind, columns)

    def _gets_more(self, name: str, layer: int, layers: int) -> bool:
        if self.more_bits == "first":
            return layer < 4 if name == "attn_v" else layer < layers // 8
        eighth = layers // 8
        return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

    def head(self, columns: int) -> Type:
        """Returns the type of the language-model head, or of the embedding that is one."""
        if self.most in (Type.F32, Type.F16, Type.BF16, Type.Q8_0):
            return self.most
        return fitting(Type.Q6_K, columns)

    def embedding(self, columns: int) -> Type:
        """Returns the type of an embedding beside a head of its own."""
        return fitting(self.most, columns)


MIXTURES: dict[str, Mixture] = {
    "f32": Mixture(FileType.ALL_F32, Type.F32),
    "f16": Mixture(FileType.MOSTLY_F16, Type.F16),
    "bf16": Mixture(FileType.MOSTLY_BF16, Type.BF16),
    "q8_0": Mixture(FileType.MOSTLY_Q8_0, Type.Q8_0),
    "q6_k": Mixture(FileType.MOSTLY_Q6_K, Type.Q6_K),
    "q5_k_m": Mixture(FileType.MOSTLY_Q5_K_M, Type.Q5_K, Type.Q6_K, "spread"),
    "q5_k_s": Mixture(FileType.MOSTLY_Q5_K_S, Type.Q5_K),
    "q5_1": Mixture(FileType.MOSTLY_Q5_1, Type.Q5_1),
    "q5_0": Mixture(FileType.MOSTLY_Q5_0, Type.Q5_0),
    "q4_k_m": Mixture(FileType.MOSTLY_Q4_K_M, Type.Q4_K, Type.Q6_K, "spread"),
    "q4_k_s": Mixture(FileType.MOSTLY_Q4_K_S, Type.Q4_K, Type.Q5_K, "first"),
    "q4_1": Mixture(FileType.MOSTLY_Q4_1, Type.Q4_1),
    "q4_0": Mixture(FileType.MOSTLY_Q4_0, Type.Q4_0),
}
"""By the recipe's ``compile.llamacpp.type``; ``stored`` is none of them."""


def fitting(kind: Type, columns: int) -> Type:
    """Returns a type, or the one that llama.cpp takes where rows are no multiple of its block."""
    return _NARROW.get(kind, kind) if columns % _K_BLOCK else kind


def is_float(kind: Type) -> bool:
    """Says whether a type is floating point, without blocks."""
    return kind in (Type.F32, Type.F16, Type.BF16)


def row_bytes(kind: Type, columns: int) -> int:
    """Counts the bytes of one row of a matrix."""
    block, width = gguf.GGML_QUANT_SIZES[kind]
    return columns // block * width


def encode(values: Floats, kind: Type) -> npt.NDArray[Any]:
    """Rounds a matrix to a type, as llama.cpp does.

    Args:
        values: float32 [N, K]; K is a multiple of the type's block.
        kind: The type.

    Returns:
        float32 [N, K] for F32, float16 for F16, else uint8 [N, bytes of a row].

    Raises:
        MissingDependencyError: A K type is asked for, which the library of xllamacpp makes.
    """
    if kind == Type.F32:
        return np.ascontiguousarray(values, np.float32)
    if kind == Type.F16:
        return np.ascontiguousarray(values, np.float32).astype(np.float16)
    if kind in _NARROW:
        return _by_llama_cpp(values, kind)
    encoded: npt.NDArray[Any] = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    return encoded


def q4_0(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]) -> Bytes:
    """Packs INT4 codes as they are.

    A block is a float16 scale and 16 bytes; byte j has code j in its low and code j + 16 in its
    high nibble, each plus 8.

    Args:
        codes: [N, K], from -8 to 7.
        scales: [N, groups]; K / groups is a multiple of 32.

    Returns:
        [N, K / 32 * 18].
    """
    rows, columns = codes.shape
    d = np.repeat(scales, columns // BLOCK // scales.shape[1], axis=1).reshape(rows, -1, 1)
    nibbles = (codes.astype(np.int16) + 8).astype(np.uint8).reshape(rows, -1, 2, 16)
    packed = nibbles[:, :, 0] | (nibbles[:, :, 1] << 4)
    blocks: Bytes = np.concatenate([d.view(np.uint8), packed], axis=-1)
    return blocks.reshape(rows, -1)


def q8_0(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]) -> Bytes:
    """Packs INT8 codes as they are: a float16 scale and 32 codes to a block.

    Args:
        codes: [N, K]; K is a multiple of 32.
        scales: [N, groups]; K / groups is a multiple of 32.

    Returns:
        [N, K / 32 * 34].
    """
    rows, columns = codes.shape
    d = np.repeat(scales, columns // BLOCK // scales.shape[1], axis=1).reshape(rows, -1, 1)
    blocks = np.ascontiguousarray(codes, np.int8).reshape(rows, -1, BLOCK).view(np.uint8)
    scaled: Bytes = np.concatenate([d.view(np.uint8), blocks], axis=-1)
    return scaled.reshape(rows, -1)


def half_scales(scales: Floats) -> tuple[npt.NDArray[np.float16], bool] | None:
    """Rounds scales to the float16 that blocks have.

    Args:
        scales: float32 [N, groups].

    Returns:
        float16 of the same shape, and whether each is what it was; None where one is too large or
        would lose more than the eleven bits of a normal float16.
    """
    rounded = scales.astype(np.float16)
    back = rounded.astype(np.float32)
    if np.array_equal(back, scales):
        return rounded, True
    # 2^-11 of rounding; below 2^-14 a float16 has fewer bits.
    lost = np.abs(back - scales) > np.abs(scales) * 2.0**-11
    return None if lost.any() or not np.isfinite(back).all() else (rounded, False)


def _by_llama_cpp(values: Floats, kind: Type) -> Bytes:
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    out = np.zeros((rows, row_bytes(kind, columns)), np.uint8)
    _quantize_chunk()(int(kind), values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    return out


@cache
def _quantize_chunk() -> Any:
    """``ggml_quantize_chunk``; the module that exports it is found and not imported."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            "the Python package xllamacpp is not installed",
            why="Its library quantizes to K types",
            fix=install("llamacpp"),
        )
    folder = Path(found.submodule_search_locations[0])
    library = next(folder.glob("xllamacpp*.so"), folder / "xllamacpp.abi3.so")
    function = ctypes.PyDLL(str(library)).ggml_quantize_chunk
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return function

"""The tensors that a quantized linear has in its files, and what their values settle early.

The layouts: AutoGPTQ's and GPTQModel's ``pack`` (eight inputs per word), AutoAWQ's GEMM
(eight outputs per word), ``pack_quantized`` and ``naive_quantized`` of compressed-tensors,
``Linear4bit`` and ``Linear8bitLt`` of bitsandbytes, and ModelOpt's ``export_hf_checkpoint``.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.formats import FP8, NF4, W4A16_AWQ
from pipeline.models.facts import ModelFacts
from pipeline.models.quantized import KEY, StoredQuantization
from pipeline.source.safetensors_header import StoredTensor

FLOATS = ("F16", "BF16", "F32")
FLOATING = (*FLOATS, "F64")
# Codes of four bits in a word of 32.
PER_WORD = 8
NF4_BLOCK, NESTED_BLOCK = 64, 256
NF4_STATE = "quant_state.bitsandbytes__nf4"
_ORIGINAL = "Use the directory that the quantizing tool wrote, unchanged"


@dataclass(frozen=True)
class Wanted:
    """One tensor of a quantized linear.

    Attributes:
        dtypes: Names of safetensors that it may have.
        shape: What it must have; None leaves it open.
        required: False for one that may be absent.
        also: Another shape that means the same.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int, ...] | None
    required: bool = True
    also: tuple[int, ...] | None = None


def marker(stored: StoredQuantization) -> str:
    """Names the tensor whose presence says that a linear is quantized, without the linear's."""
    if stored.method in ("gptq", "awq"):
        return "qweight"
    if stored.method == "compressed-tensors":
        return "weight_packed" if stored.quant_algo == W4A16_AWQ else "weight_scale"
    if stored.method == "modelopt":
        return "weight_scale"
    return NF4_MARK if stored.quant_algo == NF4 else "SCB"


NF4_MARK = "weight.absmax"


def wanted(stored: StoredQuantization, rows: int, columns: int) -> dict[str, Wanted]:
    """Lists the tensors of a quantized linear, by their names behind the linear's.

    Args:
        stored: The model's quantization.
        rows: N, the linear's outputs.
        columns: K, its inputs.
    """
    groups = columns // (stored.group or columns)
    if stored.method == "gptq":
        return {
            "qweight": Wanted(("I32",), (columns // PER_WORD, rows)),
            "qzeros": Wanted(("I32",), (groups, rows // PER_WORD)),
            "scales": Wanted(FLOATS, (groups, rows)),
            "g_idx": Wanted(("I32",), (columns,), required=False),
        }
    if stored.method == "awq":
        return {
            "qweight": Wanted(("I32",), (columns, rows // PER_WORD)),
            "qzeros": Wanted(("I32",), (groups, rows // PER_WORD), required=stored.zero_points),
            "scales": Wanted(FLOATS, (groups, rows)),
        }
    if stored.method == "compressed-tensors":
        return _compressed(stored, rows, columns, groups)
    if stored.method == "modelopt":
        return _modelopt(stored, rows, columns, groups)
    if stored.quant_algo == NF4:
        return _nf4(stored, rows * columns)
    return {
        "weight": Wanted(("I8",), (rows, columns)),
        "SCB": Wanted(("F32",), (rows,)),
        "weight_format": Wanted(("U8",), None, required=False),
    }


def _compressed(
    stored: StoredQuantization, rows: int, columns: int, groups: int
) -> dict[str, Wanted]:
    if stored.quant_algo == W4A16_AWQ:
        found = {
            "weight_packed": Wanted(("I32",), (rows, columns // PER_WORD)),
            "weight_scale": Wanted(FLOATS, (rows, groups)),
            "weight_shape": Wanted(("I64", "I32"), (2,)),
            "weight_g_idx": Wanted(("I32", "I64"), (columns,), required=False),
        }
        if stored.zero_points:
            found["weight_zero_point"] = Wanted(("I32",), (rows // PER_WORD, groups))
        return found
    return {
        "weight": Wanted(("I8",), (rows, columns)),
        "weight_scale": Wanted(FLOATS, (rows, 1), also=(1,)),
        "input_scale": Wanted(FLOATS, (1,), also=()),
        # Symmetric ones are zero, which the reader makes sure of.
        "weight_zero_point": Wanted(("I8",), None, required=False),
        "input_zero_point": Wanted(("I8",), None, required=False),
    }


def _modelopt(
    stored: StoredQuantization, rows: int, columns: int, groups: int
) -> dict[str, Wanted]:
    smoothing = Wanted(FLOATS, (columns,), required=False)
    if stored.quant_algo == W4A16_AWQ:
        return {
            "weight": Wanted(("U8", "I8"), (rows // 2, columns)),
            "weight_scale": Wanted(FLOATS, (rows, groups)),
            "pre_quant_scale": smoothing,
        }
    scale = Wanted(FLOATS, (), also=(1,))
    if stored.quant_algo == FP8:
        return {
            "weight": Wanted(("F8_E4M3",), (rows, columns)),
            "weight_scale": scale,
            "input_scale": scale,
        }
    return {
        "weight": Wanted(("I8",), (rows, columns)),
        "weight_scale": Wanted(FLOATS, (rows,), also=(rows, 1)),
        "input_scale": scale,
        "pre_quant_scale": smoothing,
    }


def _nf4(stored: StoredQuantization, elements: int) -> dict[str, Wanted]:
    blocks = -(-elements // NF4_BLOCK)
    found = {
        "weight": Wanted(("U8",), (-(-elements // 2), 1)),
        "weight.absmax": Wanted(("U8",) if stored.double else ("F32",), (blocks,)),
        "weight.quant_map": Wanted(("F32",), (16,)),
        f"weight.{NF4_STATE}": Wanted(("U8",), None),
    }
    if stored.double:
        found["weight.nested_absmax"] = Wanted(("F32",), (-(-blocks // NESTED_BLOCK),))
        found["weight.nested_quant_map"] = Wanted(("F32",), (256,))
    return found


def without_quantized(
    tensors: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    facts: ModelFacts,
    place: str,
) -> tuple[dict[str, StoredTensor], dict[str, tuple[int, ...]]]:
    """Checks the tensors of quantized linears, and returns what is left to be checked as ever.

    Args:
        tensors: Of the whole model.
        expected: Names and shapes of the same model in floating point.
        facts: Of the model, with its quantization.
        place: Its name in error messages.

    Raises:
        SourceError: A tensor of a quantized linear is missing or of another shape or dtype, no
            linear is quantized, or one of those that are one linear in the checkpoint.
    """
    stored = facts.quantized
    assert stored is not None
    left, wanted_left, quantized = dict(tensors), dict(expected), set[str]()
    for index in range(facts.num_hidden_layers):
        for linear in facts.linears:
            names = [f"model.layers.{index}.{name}" for name, _ in linear.source]
            found = {name for name in names if _has(tensors, name, stored)}
            if found and len(found) < len(names):
                plain = next(name for name in names if name not in found)
                raise SourceError(
                    f"{plain} is in floating point, and {min(found)} is quantized",
                    where=place,
                    why=f"Both are part of {linear.name} in the checkpoint, which has one format",
                    fix="Quantize the model again with both in the ignore list, or neither",
                )
            for name, (_, rows) in zip(names, linear.source, strict=True):
                if name not in found:
                    continue
                shapes = wanted(stored, rows, linear.in_features)
                _check_linear(tensors, name, shapes, stored, place)
                for suffix in shapes:
                    left.pop(f"{name}.{suffix}", None)
                wanted_left.pop(f"{name}.weight", None)
                _drop_bias(left, wanted_left, f"{name}.bias")
                quantized.add(name)
    if not quantized:
        raise SourceError(
            f"no linear has the tensors of {stored.words()}",
            where=place,
            why="The files say that the model is quantized, and its weights are floating point",
            fix=f"Remove what says so from the files if that is what is meant. {_ORIGINAL}",
        )
    head = tensors.get("lm_head.weight")
    packed = f"lm_head.{marker(stored)}" in tensors
    if packed or (head is not None and head.dtype not in FLOATING):
        raise SourceError(
            "lm_head is quantized",
            where=place,
            why="The checkpoint keeps it in floating point",
            fix="Set model.source to the checkpoint that this one was made from",
        )
    return left, wanted_left


def _drop_bias(
    left: dict[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], bias: str
) -> None:
    """GPTQ tools write a bias of zeros for linears that have none; the reader looks at it."""
    if bias not in expected:
        left.pop(bias, None)


def _has(tensors: Mapping[str, StoredTensor], name: str, stored: StoredQuantization) -> bool:
    """Whether any tensor says so: with one missing the linear is damaged, not in floating point."""
    weight = tensors.get(f"{name}.weight")
    integers = weight is not None and weight.dtype in ("I8", "U8", "F8_E4M3")
    return integers or weight is None or f"{name}.{marker(stored)}" in tensors


def _check_linear(
    tensors: Mapping[str, StoredTensor],
    name: str,
    shapes: Mapping[str, Wanted],
    stored: StoredQuantization,
    place: str,
) -> None:
    for suffix, shape in shapes.items():
        whole = f"{name}.{suffix}"
        tensor = tensors.get(whole)
        if tensor is None:
            if not shape.required:
                continue
            raise SourceError(
                f"{whole} is missing",
                where=place,
                why=f"The files say {stored.words()}, whose linears have it",
                fix=_ORIGINAL,
            )
        if tensor.dtype not in shape.dtypes:
            raise SourceError(
                f"{whole} is {tensor.dtype}, not {' or '.join(shape.dtypes)}",
                where=place,
                why=f"The files say {stored.words()}",
                fix=_ORIGINAL,
            )
        if shape.shape is not None and tensor.shape not in (shape.shape, shape.also):
            raise SourceError(
                f"{whole} has shape {list(tensor.shape)}, not {list(shape.shape)}",
                where=place,
                why=f"config.json and {stored.words()} make it so",
                fix=_ORIGINAL,
            )


def looked_at(
    stored: StoredQuantization, files: Mapping[str, tuple[Path, StoredTensor]], place: str
) -> StoredQuantization:
    """Corrects what config.json says of zero points and order by the values that decide it.

    ``desc_act`` and ``sym`` are how a model was made; its tensors say what it became. Only bytes
    are compared, so that a plan stays quick.

    Args:
        stored: As read from config.json.
        files: Every tensor with the file that it is in.
        place: The model's name in error messages.

    Raises:
        SourceError: A file cannot be read, or a group index is out of range.
    """
    ordered, found = False, set[int]()
    for name, (path, tensor) in files.items():
        if tensor.dtype not in ("I32", "I64"):
            continue
        if name.endswith("g_idx"):
            ordered |= _out_of_order(_bytes(path, tensor), tensor, stored, name, place)
        elif name.endswith(".qzeros") and tensor.dtype == "I32" and len(found) < 2:
            values = _bytes(path, tensor)
            # Two zero points in a byte; equal ones make bytes of 0x77 or 0x88.
            found |= {values[0]} if values.count(values[:1]) == len(values) else {*values, -1}
    stored = replace(stored, ordered=ordered)
    if not found:
        return stored
    only = next(iter(found)) if len(found) == 1 else None
    if stored.method == "awq":
        return replace(stored, zero_points=only != _EIGHT)
    if stored.zero_points:
        return replace(stored, zero_points=only != (_EIGHT if stored.v2 else _SEVEN))
    if only not in (_SEVEN, _EIGHT):
        raise SourceError(
            "the files say symmetric GPTQ, and the zero points are not all the same",
            where=place,
            why="Zero points of symmetric weights are stored as 7 (gptq) or 8 (gptq_v2) everywhere",
            fix=f"Set sym to false in {KEY} if the model was made without it. {_ORIGINAL}",
        )
    # Folders of the second layout that are labelled as the first are about; the value decides.
    return replace(stored, v2=only == _EIGHT)


_SEVEN, _EIGHT = 0x77, 0x88


def _bytes(path: Path, tensor: StoredTensor) -> bytes:
    with path.open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.size)


def _out_of_order(
    data: bytes, tensor: StoredTensor, stored: StoredQuantization, name: str, place: str
) -> bool:
    index = array.array("i" if tensor.dtype == "I32" else "q")
    index.frombytes(data)
    if sys.byteorder == "big":
        index.byteswap()
    group = stored.group or len(index)
    groups = len(index) // group
    # compressed-tensors writes -1 where the order is the ordinary one.
    if not index or set(index) == {-1}:
        return False
    if min(index) < 0 or max(index) >= groups:
        raise SourceError(
            f"{name} names group {min(index) if min(index) < 0 else max(index)} of {groups}",
            where=place,
            why="Each input belongs to a group that has a scale",
            fix=_ORIGINAL,
        )
    return any(value != position // group for position, value in enumerate(index))

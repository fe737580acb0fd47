"""Checks a TensorRT-LLM checkpoint as strictly as a failed build or a wrong answer deserves.

TensorRT-LLM's own loader only warns about tensors it does not know, which is how scales get lost
silently; here they are errors, and all problems are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.expected import ExpectedTensor, Loading, expected_tensors
from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.loading import as_loaded
from pipeline.checkpoint.reader import TensorFile, numpy_dtype
from pipeline.errors import CheckpointError

# Problems spelled out in one error; the rest are counted.
SHOWN_PROBLEMS = 8
# Values are checked in pieces of this many elements, so that memory stays bounded.
CHUNK = 1 << 24
FLOAT8 = "float8_e4m3fn"
_INFINITE = "has values that are infinite in"
_INFINITE_SCALES = "has scales that become infinite in"
_EXPORT_AGAIN = "Export it again; a checkpoint cannot be repaired by hand"
_OTHER_DTYPE = (
    "Set model.dtype to bfloat16 (without quantization, quantize.format): the source has values "
    "beyond 65504, the largest float16. If they are infinite in the source itself, its files are "
    "broken"
)
_OTHER_SCALES = (
    "Set model.dtype to bfloat16: TensorRT-LLM loads these scales in the model's dtype, and the "
    "largest float16 is 65504"
)


def validate(directory: Path) -> CheckpointConfig:
    """Checks every file, tensor and value of a checkpoint.

    Args:
        directory: Holds ``config.json`` and one ``rankN.safetensors`` per rank.

    Raises:
        CheckpointError: Lists what is wrong.
        UnsupportedError: The architecture or format is not supported.
    """
    config = CheckpointConfig.from_directory(directory)
    files = check_tensors(directory, config)
    problems = []
    for rank, file in enumerate(files):
        expected = expected_tensors(config, rank)
        problems += [
            f"{file.path.name}: {problem}"
            for name in file.tensors
            for problem in _value_problems(name, file, expected[name])
        ]
    _raise(problems, directory, _remedy(problems, config))
    return config


def check_tensors(directory: Path, config: CheckpointConfig) -> tuple[TensorFile, ...]:
    """Opens all rank files and checks names, dtypes and shapes.

    Raises:
        CheckpointError: Lists what is wrong.
    """
    problems = [
        f"{rank_path(directory, rank).name} is missing"
        for rank in range(config.world_size)
        if not rank_path(directory, rank).is_file()
    ]
    problems += [
        f"{path.name} belongs to no rank of mapping.world_size {config.world_size}"
        for path in sorted(directory.glob("rank*.safetensors"))
        if not (match := re.fullmatch(r"rank(\d+)\.safetensors", path.name))
        or int(match[1]) >= config.world_size
    ]
    _raise(problems, directory)
    files = tuple(TensorFile(rank_path(directory, rank)) for rank in range(config.world_size))
    for rank, file in enumerate(files):
        problems += [
            f"{file.path.name}: {problem}"
            for problem in _header_problems(file, expected_tensors(config, rank))
        ]
    _raise(problems, directory)
    return files


def rank_path(directory: Path, rank: int) -> Path:
    """Names the file of one rank, ``rankN.safetensors``, whether it is there or not."""
    return directory / f"rank{rank}.safetensors"


def _header_problems(file: TensorFile, expected: dict[str, ExpectedTensor]) -> Iterator[str]:
    for name, wanted in expected.items():
        found = file.tensors.get(name)
        if found is None:
            if wanted.required:
                yield f"{name} is missing"
        elif found.dtype not in wanted.dtypes:
            yield f"{name} is {found.dtype}, not {' or '.join(dict.fromkeys(wanted.dtypes))}"
        elif found.shape != wanted.shape:
            yield f"{name} has shape {found.shape}, not {wanted.shape}"
        elif wanted.beside is not None and wanted.beside not in file.tensors:
            yield f"{name} is there without {wanted.beside}"
    for name in file.tensors:
        if name not in expected:
            yield f"{name} does not belong here"


def _value_problems(name: str, file: TensorFile, wanted: ExpectedTensor) -> Iterator[str]:
    values = file.read(name)
    if wanted.dtypes[0] == FLOAT8 and values.dtype == np.int8:
        values = values.view(numpy_dtype(FLOAT8))
    if wanted.is_order and not np.array_equal(np.sort(values), np.arange(values.size)):
        yield f"{name} does not name every input once"
    if values.dtype.kind in "iub":
        return
    flat = values.reshape(-1)
    finite = number = positive = loadable = True
    for start in range(0, flat.size, CHUNK):
        piece = flat[start : start + CHUNK].astype(np.float32)
        finite = finite and bool(np.isfinite(piece).all())
        number = number and not bool(np.isnan(piece).any())
        positive = positive and bool((piece > 0).all())
        if wanted.loaded is not None:
            loadable = loadable and _loadable(flat[start : start + CHUNK], file, wanted.loaded)
        file.release()
    if not number:
        yield f"{name} has NaN or infinite values"
    elif not finite:
        yield f"{name} {_INFINITE} {values.dtype.name}"
    elif wanted.is_scale and not positive:
        # A row or group of zero weights is no excuse: ModelOpt writes a scale of 1 for it.
        yield f"{name} has scales that are zero or negative"
    elif wanted.loaded is not None and not loadable:
        yield f"{name} {_INFINITE_SCALES} {wanted.loaded.last or wanted.loaded.dtype}"


def _loadable(piece: Array, file: TensorFile, loading: Loading) -> bool:
    """Whether scales are still finite as TensorRT-LLM loads them.

    One that becomes zero belongs to weights too small to matter.
    """
    # A zero divisor is a problem of its own tensor.
    divisor = float(file.read(loading.divided_by)[0]) if loading.divided_by else None
    loaded = as_loaded(piece, loading.dtype, divisor=divisor, last=loading.last)
    return bool(np.isfinite(loaded).all())


def _remedy(problems: list[str], config: CheckpointConfig) -> str:
    """What to do; another dtype where values that float16 does not hold are all that is wrong."""
    values, scales = f" {_INFINITE} float16", f" {_INFINITE_SCALES} float16"
    if config.dtype != "float16" or not all(p.endswith((values, scales)) for p in problems):
        return _EXPORT_AGAIN
    return _OTHER_DTYPE if any(p.endswith(values) for p in problems) else _OTHER_SCALES


def _raise(problems: list[str], directory: Path, fix: str = _EXPORT_AGAIN) -> None:
    if not problems:
        return
    more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    raise CheckpointError(
        f"the checkpoint has {len(problems)} problem{'s' if len(problems) > 1 else ''}",
        where=str(directory),
        why="; ".join(problems[:SHOWN_PROBLEMS]) + more,
        fix=fix,
    )

"""What a Hugging Face snapshot must hold: its files, and every tensor with its shape.

transformers fills a missing tensor with random numbers and drops one that it does not know, both
with no more than a warning; here either is an error, found from the files' headers alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.architectures import QKV
from pipeline.errors import SourceError
from pipeline.models import ModelFacts
from pipeline.safetensors_header import BrokenHeaderError, StoredTensor, read_header

WEIGHTS = "model*.safetensors"
INDEX = "model.safetensors.index.json"
COMPANIONS = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
    "NOTICE*",
)
CODE = "*.py"
# Formats that run code, or may, when they are read.
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".msgpack", ".h5")
FLOATING = ("F64", "F32", "F16", "BF16")
# Buffers of old checkpoints, computed from config.json today.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Contents:
    """What the weights of a snapshot amount to.

    Attributes:
        parameters: Elements of all tensors.
        dtypes: Names in the headers, sorted.
    """

    parameters: int
    dtypes: tuple[str, ...]


def patterns(*, code: bool) -> list[str]:
    """Glob patterns of the files that are taken; Python only where it was asked for."""
    return [WEIGHTS, *COMPANIONS, *([CODE] if code else [])]


def snapshot_files(directory: Path, *, code: bool) -> list[Path]:
    """The files of a snapshot that are taken, sorted.

    Of several sets of weights (some models come with ``consolidated.safetensors`` as well) only the
    one that transformers reads counts.
    """
    found = {
        path
        for pattern in (*COMPANIONS, *([CODE] if code else []))
        for path in directory.glob(pattern)
        if path.is_file()
    }
    return sorted(found | set(weight_files(directory)))


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights: those of the index, or the only one.

    Raises:
        SourceError: The index is damaged.
    """
    names = set(_index(directory).values()) or {"model.safetensors"}
    return sorted(directory / name for name in names if (directory / name).is_file())


def refuse_without_safetensors(directory: Path, place: str) -> None:
    """Refuses a directory without weights in safetensors.

    Args:
        directory: The snapshot.
        place: Its name in error messages.

    Raises:
        SourceError: With the reason, when there are weights in a format that can run code.
    """
    if weight_files(directory) or _index(directory):
        return
    unsafe = sorted(p.name for p in directory.iterdir() if p.suffix in UNSAFE_SUFFIXES)
    if unsafe:
        raise SourceError(
            f"the weights are in {unsafe[0]}, which is refused",
            where=place,
            why="Reading pickled weights can run any code hidden in them",
            fix="Convert once where you trust the file: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT, "
            "safe_serialization=True)",
        )
    raise SourceError(
        f"this is not a Hugging Face checkpoint: there is neither model.safetensors nor {INDEX}",
        where=place,
        fix="Point model.source at a directory written by save_pretrained()",
    )


def check_snapshot(directory: Path, facts: ModelFacts, place: str) -> Contents:
    """Reads every header; what is damaged or missing is found here, not in the middle of a stage.

    Args:
        directory: The snapshot.
        facts: From its ``config.json``.
        place: Its name in error messages.

    Raises:
        SourceError: The tokenizer or a shard is missing, a file is damaged, or the tensors are not
            those of the architecture.
    """
    if not (directory / "tokenizer.json").is_file():
        raise SourceError(
            "there is no tokenizer.json",
            where=place,
            why="Triton's models use the tokenizers library, which reads only this file",
            fix="Write it once: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(directory):
        tensors |= read_weights(path, f"{place}/{path.name}")
    missing = sorted(_index(directory).keys() - tensors.keys())
    if missing:
        raise SourceError(
            f"{len(missing)} tensors of the index are in no file, the first is {missing[0]}",
            where=f"{place}/{INDEX}",
            fix="Download the missing shards again",
        )
    _check_tensors(tensors, facts, place)
    return Contents(
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
    )


def read_weights(path: Path, place: str) -> dict[str, StoredTensor]:
    """The header of a weight file.

    Raises:
        SourceError: It cannot be read or is damaged.
    """
    try:
        return read_header(path)
    except OSError as error:
        raise unreadable(place, error) from error
    except BrokenHeaderError as error:
        raise SourceError(
            "the safetensors file is damaged",
            where=place,
            why=str(error),
            fix="Download or save it again; a broken transfer usually cuts it short",
        ) from error


def unreadable(place: str, error: OSError) -> SourceError:
    """The error for a file of the model that the operating system does not give."""
    return SourceError(
        "a model file cannot be read",
        where=place,
        why=error.strerror,
        fix="Give the user who runs the pipeline permission to read it",
    )


def expected_tensors(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that transformers loads into the architecture."""
    hidden = facts.hidden_size
    layer: dict[str, tuple[int, ...]] = {
        f"{norm.source}.weight": (facts.width(norm.over),) for norm in facts.family.norms
    }
    for linear in facts.linears:
        for name, rows in linear.source:
            layer[f"{name}.weight"] = (rows, linear.in_features)
            if linear.name == QKV and facts.attention_bias:
                layer[f"{name}.bias"] = (rows,)
    tensors = {
        f"model.layers.{index}.{name}": shape
        for index in range(facts.num_hidden_layers)
        for name, shape in layer.items()
    }
    tensors["model.embed_tokens.weight"] = (facts.vocab_size, hidden)
    tensors["model.norm.weight"] = (hidden,)
    if not facts.tie_word_embeddings:
        tensors["lm_head.weight"] = (facts.vocab_size, hidden)
    return tensors


def _check_tensors(tensors: Mapping[str, StoredTensor], facts: ModelFacts, place: str) -> None:
    expected = expected_tensors(facts)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise SourceError(
            f"{len(missing)} tensors are missing, the first is {missing[0]}",
            where=place,
            why=f"config.json describes a {facts.architecture} that has them, and transformers "
            "would fill them with random numbers",
            fix="Use the directory that save_pretrained() or the Hub wrote, unchanged",
        )
    tied_head = "lm_head.weight" if facts.tie_word_embeddings else ""
    for name, tensor in tensors.items():
        if name.endswith(_IGNORED_SUFFIX) or name == tied_head:
            continue
        if name not in expected:
            raise SourceError(
                f"{name} does not belong to this {facts.architecture}",
                where=place,
                why="transformers would leave it out with a warning",
                fix="Check num_hidden_layers and the other sizes in config.json",
            )
        if tensor.shape != expected[name]:
            raise SourceError(
                f"{name} has shape {list(tensor.shape)}, and config.json says "
                f"{list(expected[name])}",
                where=place,
                fix="Use the config.json that was saved with these weights",
            )
        if tensor.dtype not in FLOATING:
            raise SourceError(
                f"{name} is {tensor.dtype}, not floating point",
                where=place,
                why="The model is quantized already",
                fix="Use the original checkpoint, which the pipeline then quantizes",
            )


def _index(directory: Path) -> dict[str, str]:
    """The file of each tensor by the index; empty where there is none."""
    path = directory / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise ValueError("It has no weight_map from tensors to files")
        if not all(Path(name).name == name for name in names.values()):
            raise ValueError("Its weight_map leads out of the directory")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SourceError(
            "the index of the weights is damaged",
            where=str(path),
            why=str(error),
            fix="Download it again",
        ) from error
    return names

"""What a Hugging Face snapshot must hold: its files, and every tensor with its shape.

transformers fills a missing tensor with random numbers and drops one that it does not know, both
with no more than a warning; here either is an error, found from the files' headers alone.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.models.architectures import QKV
from pipeline.models.config_json import read_config
from pipeline.models.facts import ModelFacts
from pipeline.models.quantized import BESIDE
from pipeline.reading.json_text import read_json
from pipeline.source.quantized import looked_at, without_quantized
from pipeline.source.safetensors_header import BrokenHeaderError, StoredTensor, read_header
from pipeline.source.tokenizer import without_tokenizer_json

WEIGHTS = "model*.safetensors"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
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
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
"""What stands in front of the layers and behind them, as transformers names it."""
ROWS = 4096
"""Of the vocabulary's tables, in memory at a time where they are read in pieces."""
# Bytes of a file's name, on every file system that Linux has.
LONGEST_NAME = 255
# Formats that run code, or may, when they are read.
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".msgpack", ".h5")
FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# With the dtype as in _save_anew.
MERGE = (
    "Merge an adapter once: AutoPeftModelForCausalLM.from_pretrained(DIR, dtype='auto')"
    ".merge_and_unload().save_pretrained(OUT)"
)
# Buffers of old checkpoints, computed from config.json today.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Contents:
    """What the weights of a snapshot amount to.

    Attributes:
        parameters: Elements of all tensors.
        dtypes: Names in the headers, sorted.
        dtype: That of most elements, by torch's name.
    """

    parameters: int
    dtypes: tuple[str, ...]
    dtype: str


def patterns(*, code: bool) -> list[str]:
    """Lists glob patterns of the files that are taken; Python only where it was asked for."""
    return [WEIGHTS, *COMPANIONS, *BESIDE, *([CODE] if code else [])]


def snapshot_files(directory: Path, *, code: bool) -> list[Path]:
    """Lists the files of a snapshot that are taken, sorted.

    Of several sets of weights (some models come with ``consolidated.safetensors`` as well) only the
    one that transformers reads counts.
    """
    found = {
        path
        for pattern in (*COMPANIONS, *BESIDE, *([CODE] if code else []))
        for path in directory.glob(pattern)
        if path.is_file()
    }
    if (directory / SINGLE).is_file():
        # Nobody reads an index beside it, and some programs would believe a left-over one.
        found.discard(directory / INDEX)
    return sorted(found | set(weight_files(directory)))


def file_marks(
    directory: Path, *, code: bool = False, linked_from: float = math.inf
) -> dict[str, list[int]]:
    """Tells a snapshot by size and times of its files, without reading them.

    The change time is there because a copy can keep the other two. Every link to a file moves it
    as well, so a file to which the store may have a link is told by its inode: the store looks at
    the change time of that link.

    Args:
        directory: The snapshot.
        code: Whether Python files are taken.
        linked_from: Bytes of a file from which on the store may have a link to it.
    """
    marks = {}
    for path in snapshot_files(directory, code=code):
        stat = path.stat()
        linked = stat.st_nlink > 1 and stat.st_size >= linked_from
        last = stat.st_ino if linked else stat.st_ctime_ns
        marks[path.name] = [stat.st_size, stat.st_mtime_ns, last]
    return marks


def weight_files(directory: Path) -> list[Path]:
    """Lists the files that hold the weights: the single one, or else those of the index.

    The order is that of ``_get_resolved_checkpoint_files`` in transformers 4.57's modeling_utils.
    Variants such as model.fp16.safetensors are read only where one is asked for, which nothing here
    does.

    Raises:
        SourceError: The index is damaged.
    """
    single = directory / SINGLE
    if single.is_file():
        return [single]
    names = set(_index(directory).values())
    return sorted(directory / name for name in names if (directory / name).is_file())


def refuse_ambiguous_weights(directory: Path, place: str) -> None:
    """Refuses a directory with more than one set of weights that a program may read.

    Args:
        directory: The snapshot.
        place: Its name in error messages.

    Raises:
        SourceError: Names both, the one that transformers takes, and what to remove.
    """
    shards = sorted(set(_index(directory).values()) - {SINGLE})
    if (directory / SINGLE).is_file() and any((directory / name).is_file() for name in shards):
        raise SourceError(
            f"there are two sets of weights: {SINGLE}, and {len(shards)} files of {INDEX}, the "
            f"first is {shards[0]}",
            where=place,
            why=f"A save over an older one leaves both; transformers takes {SINGLE}, other "
            "programs the files of the index, and only one of them is the model that is meant",
            fix=f"Remove {INDEX} and its files, or {SINGLE}",
        )
    config = read_config(directory, SourceError, "A Hugging Face checkpoint has one")
    named = config.get("transformers_weights")
    taken = SINGLE if (directory / SINGLE).is_file() else INDEX
    if named not in (None, taken):
        raise SourceError(
            f"config.json names {named!r} as the file of the weights",
            where=f"{place}/config.json (transformers_weights)",
            why=f"That file is what transformers takes, and {taken} what other programs take",
            fix=f"Save the model once without it: {_save_anew(directory, 'saved')}",
        )
    if (directory / ADAPTER).is_file():
        raise SourceError(
            f"{ADAPTER} lies beside {taken}",
            where=place,
            why="Where peft is installed transformers loads the model that the adapter is for and "
            f"puts the adapter on it, elsewhere it takes {taken}",
            fix=f"Remove {ADAPTER} if {taken} is the model that is meant. {MERGE}",
        )


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
    if (directory / ADAPTER).is_file():
        raise SourceError(
            "this is an adapter, not a whole model",
            where=f"{place}/{ADAPTER}",
            fix=MERGE,
        )
    unsafe = sorted(p.name for p in directory.iterdir() if p.suffix in UNSAFE_SUFFIXES)
    if unsafe:
        raise SourceError(
            f"the weights are in {unsafe[0]}, which is refused",
            where=place,
            why="Reading pickled weights can run any code hidden in them",
            fix=f"Convert it where you trust the file: {_save_anew(directory, 'safetensors')}",
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    raise SourceError(
        f"this is not a Hugging Face checkpoint: there is neither {SINGLE} nor {INDEX}",
        where=place,
        why=f"There is {others[0]}, and transformers reads no weights of that name"
        if others
        else None,
        fix="Point model.source at a directory written by save_pretrained()",
    )


def _save_anew(directory: Path, suffix: str) -> str:
    """The command that makes transformers save a model, with its tokenizer, beside itself."""
    return (
        'python -c "import sys; from transformers import AutoModelForCausalLM as M, '
        "AutoTokenizer as T; a, b = sys.argv[1:]; T.from_pretrained(a).save_pretrained(b); "
        # Without the dtype transformers 4 would write another one than the model has.
        "M.from_pretrained(a, dtype='auto').save_pretrained(b)\" "
        f"{shlex.quote(str(directory))} {shlex.quote(f'{directory}-{suffix}')}"
    )


def left_out(directory: Path) -> list[str]:
    """Names of weight files that look like the model's own and are not read, sorted."""
    taken = weight_files(directory)
    return sorted(path.name for path in directory.glob(WEIGHTS) if path not in taken)


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
            fix=without_tokenizer_json(directory),
        )
    tensors = stored_tensors(directory, place)
    # transformers does not open an index beside the single file.
    index = {} if (directory / SINGLE).is_file() else _index(directory)
    missing = sorted(index.keys() - tensors.keys())
    if missing:
        raise SourceError(
            f"{len(missing)} tensors of the index are in no file, the first is {missing[0]} of "
            f"{index[missing[0]]}",
            where=f"{place}/{INDEX}",
            fix="Download the missing shards again",
        )
    _check_tensors(tensors, facts, place)
    return Contents(
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
        dtype=main_dtype(tensors),
    )


def facts_of(directory: Path, place: str | None = None) -> ModelFacts:
    """Reads the facts of a model, and of a quantized one what only its values tell.

    Args:
        directory: A snapshot, or config.json alone: then what that says has to do.
        place: Its name in error messages; None is the directory.

    Raises:
        SourceError: config.json or a weight file is missing or damaged.
        UnsupportedError: The model is none that can be taken.
    """
    facts, name = ModelFacts.from_directory(directory), place or str(directory)
    if facts.quantized is None:
        return facts
    files = {
        tensor: (path, stored)
        for path in weight_files(directory)
        for tensor, stored in read_weights(path, f"{name}/{path.name}").items()
    }
    return replace(facts, quantized=looked_at(facts.quantized, files, name))


def stored_tensors(directory: Path, place: str) -> dict[str, StoredTensor]:
    """Reads every tensor of the weight files, by name, from their headers.

    Raises:
        SourceError: A file cannot be read or is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(directory):
        tensors |= read_weights(path, f"{place}/{path.name}")
    return tensors


def main_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    """Finds the dtype of most elements in floating point, by torch's name.

    Codes of weights that are quantized already say nothing of what the model computes in.
    """
    elements: dict[str, int] = {}
    for tensor in tensors.values():
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + math.prod(tensor.shape)
    elements = {name: count for name, count in elements.items() if name in FLOATING} or elements
    largest = max(elements, key=lambda name: elements[name])
    return FLOATING.get(largest, largest)


def read_weights(path: Path, place: str) -> dict[str, StoredTensor]:
    """Reads the header of a weight file.

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
    """Makes the error for a file of the model that the operating system does not give."""
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
    tensors[EMBEDDING] = (facts.vocab_size, hidden)
    tensors[NORM] = (hidden,)
    if not facts.tie_word_embeddings:
        tensors[HEAD] = (facts.vocab_size, hidden)
    return tensors


def is_unread(name: str, facts: ModelFacts) -> bool:
    """Says whether a tensor may be in a snapshot though nobody reads it: a tied head, say."""
    return name.endswith(_IGNORED_SUFFIX) or (facts.tie_word_embeddings and name == HEAD)


def _check_tensors(tensors: Mapping[str, StoredTensor], facts: ModelFacts, place: str) -> None:
    expected = expected_tensors(facts)
    if facts.quantized is not None:
        tensors, expected = without_quantized(tensors, expected, facts, place)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise SourceError(
            f"{len(missing)} tensors are missing, the first is {missing[0]}",
            where=place,
            why=f"config.json describes a {facts.architecture} that has them, and transformers "
            "would fill them with random numbers",
            fix="Use the directory that save_pretrained() or the Hub wrote, unchanged",
        )
    for name, tensor in tensors.items():
        if is_unread(name, facts):
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
        content = read_json(path)
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise ValueError("It has no weight_map from tensors to files")
        if any(len(name.encode()) > LONGEST_NAME or "\0" in name for name in names.values()):
            raise ValueError("Its weight_map has a name that no file can have")
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

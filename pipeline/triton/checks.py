"""What can be wrong with one model's config.pbtxt, without looking at its neighbours.

Triton's parser accepts zero dimensions, negative batch sizes and duplicate names; some of them it
only rejects while loading, some it never does.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from pipeline.reading.files import read_utf8
from pipeline.triton.contract import (
    CPP_BACKEND,
    KNOWN,
    SCORES_PROMPTS,
    TICKET,
    scoring_prompts,
    with_tickets,
)
from pipeline.triton.parameters import CHAT_TEMPLATE, CHAT_TEMPLATE_TOKENS
from pipeline.triton.tensors import ENGINE, POSTPROCESSING, ModelContract

_TEMPLATE = re.compile(r"\$\{[^}\n]*\}?")
_KEY = re.compile(r"\bkey\s*:\s*[\"'](\w+)[\"']")
_OF_CHATS = (CHAT_TEMPLATE, CHAT_TEMPLATE_TOKENS)
_STREAM_INPUTS = {"stream", "streaming"}


def read_config(path: Path) -> tuple[proto.ModelConfig | None, list[str]]:
    """Parses a config.pbtxt.

    Returns:
        The message, or None when the text is not one, and what is wrong with the text
        (``line:column: reason``).
    """
    try:
        text = read_utf8(path)
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"cannot be read: {error}"]
    unfilled = [
        f"{number}:{match.start() + 1}: the template variable {match.group()} is not filled in"
        for number, line in _without_chat_templates(text)
        if not line.lstrip().startswith("#")
        for match in _TEMPLATE.finditer(line)
    ]
    config = proto.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        # A variable outside a string is also a syntax error, at a less helpful place.
        return None, unfilled or [str(error)]
    return config, unfilled


def _without_chat_templates(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, but those with the source of a chat template, where ``${`` is plain text."""
    key = ""
    for number, line in enumerate(text.split("\n"), 1):
        key = next(reversed(_KEY.findall(line)), key)
        if not (key in _OF_CHATS and "string_value" in line):
            yield number, line


def check_config(config: proto.ModelConfig, folder: Path) -> Iterator[str]:
    """Checks one model against Triton's rules and, for the known models, the wire contract.

    Args:
        config: The parsed message.
        folder: The model's folder.

    Yields:
        One sentence per problem.
    """
    if config.name != folder.name:
        yield f"name is {config.name!r}, but the folder is called {folder.name!r}"
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}; it must be 0 (no batching) or more"
    ensemble = config.platform == "ensemble"
    if not config.backend and not ensemble:
        yield "there is neither a backend nor platform: ensemble"
    for group in config.instance_group:
        if group.count < 1:
            yield f"an instance_group has count {group.count}; at least 1 instance is needed"
    for side, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield f"there is no {side}"
        for name, count in Counter(tensor.name for tensor in tensors).items():
            if count > 1:
                yield f"{side} {name} is declared {count} times"
        for tensor in tensors:
            yield from _check_tensor(side, tensor)
    if config.name in KNOWN:
        yield from _check_contract(config, _contract(config))
    elif (
        # The known models refuse a request to stream by name where they answer once.
        not ensemble
        and not config.model_transaction_policy.decoupled
        and any(tensor.name in _STREAM_INPUTS for tensor in config.input)
    ):
        yield (
            "it has a streaming input but model_transaction_policy.decoupled is not set, so it "
            "cannot answer more than once"
        )
    yield from _check_files(config, folder)


def _check_tensor(side: str, tensor: Any) -> Iterator[str]:
    where = f"{side} {tensor.name or '(no name)'}"
    if not tensor.name:
        yield f"{where} needs a name"
    if tensor.data_type == proto.TYPE_INVALID:
        yield f"{where} has no data_type"
    if not tensor.dims:
        yield f"{where} has no dims"
    for dim in tensor.dims:
        if dim == 0 or dim < -1:
            yield f"{where} has dimension {dim}; a dimension is at least 1, or -1 for any size"
    if not tensor.HasField("reshape"):
        return
    fixed = [dim for dim in tensor.dims if dim > 0]
    seen = [dim for dim in tensor.reshape.shape if dim > 0]
    if math.prod(fixed) != math.prod(seen):
        yield (
            f"{where} is reshaped from {list(tensor.dims)} to {list(tensor.reshape.shape)}, "
            "which have different numbers of elements"
        )


def _contract(config: proto.ModelConfig) -> ModelContract:
    """The contract of a known model; upstream's own backend has no tensors beyond upstream's."""
    contract = KNOWN[config.name]
    if config.name in (ENGINE, POSTPROCESSING) and config.backend != CPP_BACKEND:
        names = {tensor.name for tensor in (*config.input, *config.output)}
        if names & {TICKET, TICKET.upper()}:
            contract = with_tickets(contract)
    scores = any(tensor.name == SCORES_PROMPTS for tensor in config.input)
    if config.name == ENGINE and config.backend != CPP_BACKEND and scores:
        return scoring_prompts(contract)
    return contract


def _check_contract(config: proto.ModelConfig, contract: ModelContract) -> Iterator[str]:
    for side, have, want in (
        ("input", config.input, contract.inputs),
        ("output", config.output, contract.outputs),
    ):
        expected = {tensor.name: tensor for tensor in want}
        present = {tensor.name: tensor for tensor in have}
        missing, extra = expected.keys() - present.keys(), present.keys() - expected.keys()
        if missing:
            yield f"{side}s of the wire contract are missing: {_names(missing)}"
        if extra:
            yield f"{side}s are not in the wire contract: {_names(extra)}"
        for name in sorted(expected.keys() & present.keys()):
            kind, dims = _type_name(present[name]), tuple(present[name].dims)
            if (kind, dims) != (expected[name].data_type, expected[name].dims):
                yield (
                    f"{side} {name} is {kind} {list(dims)}, the wire contract says "
                    f"{expected[name].data_type} {list(expected[name].dims)}"
                )
            if side == "input" and present[name].optional != expected[name].optional:
                word = "optional" if expected[name].optional else "required"
                yield f"{side} {name} must be {word} according to the wire contract"
    if config.model_transaction_policy.decoupled and not contract.decoupled:
        yield "it is decoupled, but answers every request exactly once"


def _check_files(config: proto.ModelConfig, folder: Path) -> Iterator[str]:
    versions = [p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal() and p.name != "0"]
    if not versions:
        yield "there is no version folder such as 1/ (an ensemble needs an empty one)"
    if config.backend != "python":
        return
    for version in sorted(versions):
        if not (version / "model.py").is_file():
            yield f"{version.name}/model.py is missing; the python backend runs it"


def _type_name(tensor: Any) -> str:
    return str(proto.DataType.Name(tensor.data_type))


def _names(names: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(names))

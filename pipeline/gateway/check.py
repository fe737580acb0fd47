"""Does the server make the same tokens of a text as the gateway does?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.gateway.errors import ApiError
from pipeline.gateway.model import GUIDED
from pipeline.source.probes import TEXTS
from pipeline.triton.contract import ADD_SPECIAL_TOKENS, ENGINE, PREPROCESSING
from pipeline.triton.parameters import ADAPTERS, MODEL_DIGEST
from pipeline.triton.tensors import BLS
from trtllm_client import CallRestricted, ChatTemplate, InvalidRequest, add_input, new_message

if TYPE_CHECKING:
    from pipeline.gateway.model import Model
    from trtllm_client import AsyncClient


async def build_of(client: AsyncClient) -> str | None:
    """Returns what tells the server's model from others; None where it does not say.

    Args:
        client: Of the server.

    Raises:
        ClientError: The server does not answer.
    """
    try:
        metadata = await client.model_metadata(PREPROCESSING)
    except CallRestricted:
        raise
    except InvalidRequest:
        return None
    return dict(metadata.parameters).get(MODEL_DIGEST)


async def check_tokenizer(client: AsyncClient, model: Model) -> str | None:
    """Compares the gateway's tokenizer with the server's, by texts that tell tokenizers apart.

    Whether the engine guides decoding, and which LoRA adapters it has, is the server's to say. A
    model without a chat template takes that of the server, where it says one.

    Args:
        client: Of the server.
        model: The gateway's.

    Returns:
        Why nothing was compared; None where it was.

    Raises:
        UsageError: They differ.
        ClientError: The server does not answer.
    """
    engine = dict((await client.model_metadata(ENGINE)).parameters)
    model.guided = bool(engine.get(GUIDED))
    model.takes_adapters(await _adapters(client))
    try:
        metadata = await client.model_metadata(PREPROCESSING)
    except CallRestricted:
        raise
    except InvalidRequest:
        return f"the server has no {PREPROCESSING}, so its tokenizer was not compared"
    parameters = dict(metadata.parameters)
    if model.template is None:
        model.template = ChatTemplate.from_parameters(parameters)
    chooses = any(tensor.name.lower() == ADD_SPECIAL_TOKENS for tensor in metadata.inputs)
    answers = await asyncio.gather(*(_asked(client, text, chooses=chooses) for text in TEXTS))
    for text, theirs in zip(TEXTS, answers, strict=True):
        ours = _ours(model, text)
        if theirs is not None and ours is not None and not _same(ours, theirs, chooses=chooses):
            raise UsageError(
                f"the gateway's tokenizer is not the server's: {text!r} is {_short(ours)} here and "
                f"{_short(theirs)} there",
                where=client.url,
                fix="Give --tokenizer with the repository that is served, or build/NAME of it",
            )
    return None


async def _adapters(client: AsyncClient) -> list[int]:
    try:
        metadata = await client.model_metadata(BLS)
    except InvalidRequest:
        return []
    return [int(id_) for id_ in dict(metadata.parameters).get(ADAPTERS, "").split(",") if id_]


async def _asked(client: AsyncClient, text: str, *, chooses: bool) -> list[int] | None:
    """The server's ids; None where the text has none, or too many for its engine."""
    message = new_message(PREPROCESSING, outputs=("INPUT_ID", "REQUEST_INPUT_LEN"))
    add_input(message, "QUERY", [text], datatype="BYTES")
    add_input(message, "REQUEST_OUTPUT_LEN", [1], datatype="INT32")
    if chooses:
        add_input(message, ADD_SPECIAL_TOKENS.upper(), [False], datatype="BOOL")
    try:
        answer: Any = await client.infer(message)
    except InvalidRequest:
        return None
    length = int(answer["REQUEST_INPUT_LEN"][0])
    return [int(token) for token in answer["INPUT_ID"][:length]]


def _ours(model: Model, text: str) -> list[int] | None:
    try:
        return model.encode(text, "text", add_special_tokens=False)
    except ApiError:
        return None


def _same(ours: list[int], theirs: list[int], *, chooses: bool) -> bool:
    if chooses:
        return ours == theirs
    # NVIDIA's own puts tokens around every text, and no request can say no.
    places = range(len(theirs) - len(ours) + 1)
    return any(theirs[place : place + len(ours)] == ours for place in places)


def _short(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:8]))
    return f"[{shown}{', ...' if len(ids) > 8 else ''}]"

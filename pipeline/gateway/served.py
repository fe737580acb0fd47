"""One server as an engine: token ids to ``tensorrt_llm`` over gRPC, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pipeline.gateway.engine import Generation, Input, Tokens, Value
from pipeline.gateway.usage import COUNTS_REUSE
from pipeline.triton.contract import ENGINE, KNOWN, SCORES_PROMPTS, scoring_prompts

if TYPE_CHECKING:
    from trtllm_client import AsyncClient, Tensors, Tls

STALL_S = 60.0
"""Seconds without a response after which a server is taken for dead."""

_TYPES: Mapping[str, str] = {
    tensor.name: tensor.data_type.removeprefix("TYPE_").replace("STRING", "BYTES")
    for tensor in scoring_prompts(KNOWN[ENGINE]).inputs
}
_WORD_LISTS = ("stop_words_list", "bad_words_list")
_ALWAYS = ("output_ids", "sequence_length")
_REUSED = "kv_cache_reused_blocks"


class ServedEngine:
    """An engine that is one server.

    Make it inside the event loop that uses it.

    Args:
        url: ``grpc://host:port`` or ``grpcs://host:port``.
        tls: Certificates.
        headers: gRPC metadata sent with every call, such as the server's key.
        timeout: Seconds for a whole request; None is no limit.
        stall_timeout: Seconds between two responses; None is no limit.

    Attributes:
        url: The server's address.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stall_timeout: float | None = STALL_S,
    ) -> None:
        from trtllm_client import AsyncClient

        self._client = AsyncClient(
            url,
            model=ENGINE,
            timeout=timeout,
            stall_timeout=stall_timeout,
            tls=tls,
            headers=headers,
        )
        self.url = self._client.url
        self._streams: bool | None = None
        self._asks = asyncio.Lock()

    @property
    def client(self) -> AsyncClient:
        """The connection, for what else is asked of the server."""
        return self._client

    async def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        """Generates; see :meth:`pipeline.gateway.engine.Engine.generate`.

        Raises:
            ClientError: See :mod:`pipeline.gateway.engine`.
        """
        message = message_for(asked, streaming=await self._can_stream())
        counted = 0
        async with aclosing(self._client.responses(message, timeout=asked.timeout_s)) as responses:
            async for tensors in responses:
                tokens = read_tokens(tensors, counted)
                counted += len(tokens.ids)
                yield tokens

    async def ready(self) -> bool:
        """Asks the server whether it and its engine are ready."""
        return await self._client.is_ready()

    async def close(self) -> None:
        """Closes the connection; running requests end as cancelled."""
        await self._client.close()

    async def _can_stream(self) -> bool:
        """Whether the engine answers more than once, which the server says once."""
        from trtllm_client import CallRestricted

        if self._streams is None:
            async with self._asks:
                if self._streams is None:
                    try:
                        self._streams = (await self._client.model_metadata(ENGINE)).decoupled
                    except CallRestricted:
                        self._streams = True
        return self._streams


def message_for(asked: Generation, *, streaming: bool) -> Any:
    """Makes the ``ModelInferRequest`` for what is to be generated.

    Args:
        asked: What to generate.
        streaming: Whether tokens come as they are made; otherwise all in one response.

    Raises:
        InvalidRequest: An input is unknown, or a value does not fit into its type.
    """
    from trtllm_client import InvalidRequest, add_input, new_message

    outputs = list(_ALWAYS)
    if asked.inputs.get("return_log_probs"):
        outputs.append("output_log_probs")
    if asked.inputs.get(SCORES_PROMPTS):
        outputs.append("prompt_log_probs")
    if asked.inputs.get(COUNTS_REUSE):
        outputs.append(_REUSED)
    message = new_message(ENGINE, request_id=asked.request_id, outputs=outputs)
    given: dict[str, Input] = {
        "input_ids": asked.prompt,
        "input_lengths": len(asked.prompt),
        "request_output_len": asked.max_tokens,
        "exclude_input_in_output": True,
        "streaming": streaming,
        **asked.inputs,
    }
    for name, value in given.items():
        if name not in _TYPES:
            raise InvalidRequest(f"{ENGINE} has no input {name!r}")
        values = _values(value)
        # Upstream's word list: all ids in one row, and where each word ends in another.
        shape = [1, 2, len(values) // 2] if name in _WORD_LISTS else None
        add_input(message, name, values, datatype=_TYPES[name], shape=shape)
    return message


def read_tokens(tensors: Tensors, counted: int) -> Tokens:
    """Reads the tokens out of a response of ``tensorrt_llm``.

    Args:
        tensors: Of the response.
        counted: Tokens of the responses before it. The log probabilities of a response are those of
            all tokens so far.
    """
    length = int(tensors["sequence_length"].values[0])
    ids = tuple(int(token) for token in tensors["output_ids"].values[:length])
    scores = _floats(tensors, "output_log_probs")
    return Tokens(
        ids,
        None if scores is None else scores[counted : counted + len(ids)],
        _floats(tensors, "prompt_log_probs"),
        None if (found := tensors.get(_REUSED)) is None else int(found.values[0]),
    )


def _floats(tensors: Tensors, name: str) -> tuple[float, ...] | None:
    tensor = tensors.get(name)
    return None if tensor is None else tuple(float(value) for value in tensor.values)


def _values(value: Input) -> Sequence[Value]:
    return [value] if isinstance(value, bool | int | float | str | bytes) else value

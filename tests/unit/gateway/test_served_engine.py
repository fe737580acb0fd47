"""One server as an engine: what goes over the wire, and what is read of what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.served import ServedEngine
from trtllm_client import ConnectionFailed, InvalidRequest, ServerBusy, ServerFailed

from ..client.fake_triton import FakeTriton, add_output, empty_final, refusal

ASKED = Generation((5, 6, 7), 4, {"runtime_top_k": 1}, "mine")


def response(ids: Sequence[int], **floats: Sequence[float]) -> Any:
    """As ``tensorrt_llm`` answers: log probabilities are those of all tokens so far."""
    made = pb.ModelStreamInferResponse()
    infer = made.infer_response
    add_output(infer, "output_ids", "INT32", [1, 1, len(ids)], list(ids))
    add_output(infer, "sequence_length", "INT32", [1, 1], [len(ids)])
    for name, values in floats.items():
        add_output(infer, name, "FP32", [1, 1, len(values)], list(values))
    return made


def generated(answer: Callable[..., Any], asked: Generation = ASKED) -> tuple[Any, list[Tokens]]:
    """What was asked of a server that answers so, and what came of it."""

    async def run(server: FakeTriton) -> list[Tokens]:
        engine = ServedEngine(server.url)
        try:
            return [tokens async for tokens in engine.generate(asked)]
        finally:
            await engine.close()

    with FakeTriton(answer) as server:
        return server, asyncio.run(run(server))


def test_tokens_go_out_and_come_back_by_the_names_of_the_wire() -> None:
    def answer(_asked: Any, _context: Any) -> Any:
        yield response([8])
        yield response([9, 10])
        yield empty_final()

    inputs = {
        "temperature": 0.5, "runtime_top_p": 0.25, "seed": 2**63 + 1, "end_id": 1,
        "stop_words_list": (3, 4, 1, 2), "guided_decoding_guide_type": "json_schema",
    }  # fmt: skip
    server, found = generated(answer, Generation((5, 6, 7), 4, inputs, "mine"))
    assert found == [Tokens((8,)), Tokens((9, 10))]
    message = server.asked[0].message
    assert (message.model_name, message.id) == ("tensorrt_llm", "mine")
    sent = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in message.inputs}
    assert sent == {
        "input_ids": ("INT32", [1, 3]),
        "input_lengths": ("INT32", [1, 1]),
        "request_output_len": ("INT32", [1, 1]),
        "exclude_input_in_output": ("BOOL", [1, 1]),
        "streaming": ("BOOL", [1, 1]),
        "temperature": ("FP32", [1, 1]),
        "runtime_top_p": ("FP32", [1, 1]),
        "seed": ("UINT64", [1, 1]),
        "end_id": ("INT32", [1, 1]),
        "stop_words_list": ("INT32", [1, 2, 2]),
        "guided_decoding_guide_type": ("BYTES", [1, 1]),
    }
    raw = dict(zip(sent, message.raw_input_contents, strict=True))
    assert int.from_bytes(raw["seed"], "little") == 2**63 + 1
    assert raw["streaming"] == b"\x01"


def test_log_probs_are_cut_to_those_of_the_new_tokens() -> None:
    def answer(_asked: Any, _context: Any) -> Any:
        yield response([8], output_log_probs=[-0.5], prompt_log_probs=[-1.0, -2.0])
        yield response([9, 10], output_log_probs=[-0.5, -0.25, -4.0])
        yield empty_final()

    inputs = {"return_log_probs": True, "return_prompt_log_probs": True}
    server, found = generated(answer, Generation((5, 6, 7), 4, inputs, "mine"))
    assert found == [
        Tokens((8,), (-0.5,), (-1.0, -2.0)),
        Tokens((9, 10), (-0.25, -4.0)),
    ]
    wanted = {output.name for output in server.asked[0].message.outputs}
    assert wanted == {"output_ids", "sequence_length", "output_log_probs", "prompt_log_probs"}


def test_leaving_early_ends_the_request_at_the_server() -> None:
    def endless(_asked: Any, context: Any) -> Any:
        while context.is_active():
            yield response([8])
            time.sleep(0.01)

    async def run(server: FakeTriton) -> None:
        engine = ServedEngine(server.url)
        stream = engine.generate(ASKED)
        assert await anext(stream) == Tokens((8,))
        await stream.aclose()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(server.cancelled.wait, 20)
        await engine.close()

    with FakeTriton(endless) as server:
        asyncio.run(run(server))


def test_a_task_that_is_cancelled_ends_the_request_at_the_server() -> None:
    def silent(_asked: Any, context: Any) -> Any:
        yield response([8])
        while context.is_active():
            time.sleep(0.01)

    async def run(server: FakeTriton) -> None:
        engine = ServedEngine(server.url)
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in engine.generate(ASKED):
                begun.set()

        task = asyncio.ensure_future(read())
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert await asyncio.to_thread(server.cancelled.wait, 20)
        await engine.close()

    with FakeTriton(silent) as server:
        asyncio.run(run(server))


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ("Maximum queue size of 8 has been reached", ServerBusy, "queue size"),
        ("the engine stopped working", ServerFailed, "stopped working"),
        ("input_ids holds the token id 9: it must be lower", InvalidRequest, "token id"),
    ],
)
def test_what_a_server_refuses_is_the_client_s_error(
    message: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        generated(lambda *_: [refusal(message)])


def test_a_server_that_is_not_there_and_an_input_that_is_none() -> None:
    async def run(asked: Generation) -> None:
        engine = ServedEngine("127.0.0.1:9")
        try:
            assert not await engine.ready()
            async for _ in engine.generate(asked):
                pass
        finally:
            await engine.close()

    with pytest.raises(ConnectionFailed, match="no Triton server answers"):
        asyncio.run(run(ASKED))
    with pytest.raises(InvalidRequest, match="no input 'top_p'"):
        generated(lambda *_: [], Generation((5,), 1, {"top_p": 0.5}, "mine"))


def test_blocks_that_were_in_the_cache_are_read_where_they_are_asked_for() -> None:
    def answer(_asked: Any, _context: Any) -> Any:
        made = response([8])
        add_output(made.infer_response, "kv_cache_reused_blocks", "INT32", [1, 1], [3])
        yield made
        yield empty_final()

    server, found = generated(answer, Generation((5,), 4, {"return_perf_metrics": True}, "mine"))
    assert found == [Tokens((8,), reused_blocks=3)]
    assert [one.name for one in server.asked[0].message.outputs][-1] == "kv_cache_reused_blocks"

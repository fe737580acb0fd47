"""Answers of every kind a model may give: nested, accumulated, at once, with metrics."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.triton.contract import BLS, MODELS
from tests.unit.client.fake_triton import FakeTriton, add_output, empty_final, pb, piece
from trtllm_client import (
    AsyncClient,
    Client,
    GenerateRequest,
    PerfMetrics,
    ServerFailed,
    encode_request,
)

# What NVIDIA's own client reads from each response, end_to_end_grpc_client.py.
TEN = {
    "kv_cache_alloc_new_blocks": 2,
    "kv_cache_reused_blocks": 1,
    "kv_cache_alloc_total_blocks": 3,
    "arrival_time_ns": 10,
    "first_scheduled_time_ns": 20,
    "first_token_time_ns": 30,
    "last_token_time_ns": 40,
    "acceptance_rate": 0.5,
    "total_accepted_draft_tokens": 4,
    "total_draft_tokens": 8,
}


def pieces(*texts, closing=False):
    """An answer of these texts; ``closing`` sends the end as a message of its own."""

    def answer(asked, context):
        for number, text in enumerate(texts):
            yield piece(text, final=number == len(texts) - 1 and not closing)
        if closing:
            yield empty_final()

    return answer


def both(server, prompt="Hi", **options):
    """The pieces that the synchronous and the asyncio client hand out."""
    with Client(server.url, **options) as client:
        sync = [chunk.text for chunk in client.stream(prompt)]

    async def read():
        async with AsyncClient(server.url, **options) as client:
            return [chunk.text async for chunk in client.stream(prompt)]

    assert asyncio.run(read()) == sync
    return sync


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_a_text_is_the_same_in_one_dimension_and_in_two(shape):
    def answer(asked, context):
        yield piece("Once", final=True, shape=shape)

    with FakeTriton(answer) as server:
        assert both(server) == ["Once"]


class TestAccumulatedTexts:
    """Upstream's ``accumulate_tokens``: each response is the whole text so far."""

    def server(self, *texts, closing=False, declared="true"):
        server = FakeTriton(pieces(*texts, closing=closing))
        server.parameters["accumulate_tokens"] = declared
        return server

    @pytest.mark.parametrize("declared", ["true", "True", "1", "yes"])
    def test_only_new_text_is_handed_out(self, declared):
        with self.server("Once", "Once upon", "Once upon a", declared=declared) as server:
            assert both(server) == ["Once", " upon", " a"]

    @pytest.mark.parametrize("closing", [False, True])
    def test_a_character_that_is_not_complete_is_waited_for(self, closing):
        with self.server("caf\ufffd", "café", "café \ufffd", closing=closing) as server:
            assert "".join(both(server)) == "café \ufffd"

    def test_nothing_more_comes_after_a_stop_word(self):
        with self.server("Once.", "", "", closing=True) as server:
            assert "".join(both(server)) == "Once."

    def test_a_model_that_sends_pieces_all_the_same_is_an_error(self):
        with self.server("Once", " upon") as server:
            with pytest.raises(ServerFailed, match="does not begin with the text of those before"):
                both(server)
            assert both(server, accumulate_tokens=False) == ["Once", " upon"]

    @pytest.mark.parametrize("declared", ["false", "", "0"])
    def test_pieces_stay_pieces(self, declared):
        with self.server("Once", "Once", declared=declared) as server:
            assert both(server) == ["Once", "Once"]
            assert both(server, accumulate_tokens=True) == ["Once", ""]

    def test_an_answer_asked_for_as_a_whole_is_taken_as_it_is(self):
        with self.server("Once upon") as server, Client(server.url) as client:
            assert client.generate("Hi").text == "Once upon"


class TestLogProbs:
    """Upstream's executor sends those of all tokens so far (``LlmRequest::createResult``)."""

    # By response; the first two are equal and the third response has no token.
    SCORES = ((-0.5,), (-0.5, -0.25), (), (-2.0,))

    def server(self, *, growing, counted=True, summed=True, scores=SCORES):
        def answer(asked, context):
            sent = []
            for number, new in enumerate(scores):
                sent += new
                final = number == len(scores) - 1
                counts = {"num_output_tokens": len(new)} if counted else {}
                response = piece("x", final=final, **counts)
                listed = sent if growing else new
                infer = response.infer_response
                add_output(infer, "output_log_probs", "FP32", [1, 1, len(listed)], listed)
                if summed:
                    add_output(infer, "cum_log_probs", "FP32", [1, 1], [sum(sent)])
                yield response

        return FakeTriton(answer)

    @pytest.mark.parametrize("growing", [True, False])
    @pytest.mark.parametrize("counted", [True, False])
    def test_each_token_has_one_from_either_kind_of_model(self, growing, counted):
        with self.server(growing=growing, counted=counted) as server:
            with Client(server.url) as client:
                request = GenerateRequest("Hi", return_log_probs=True)
                chunks = list(client.stream(request))
                whole = client.stream(request).completion()
            assert [chunk.output_log_probs for chunk in chunks] == list(self.SCORES)
            assert whole.output_log_probs == sum(self.SCORES, ())
            assert whole.cum_log_probs == -3.25

            async def read():
                async with AsyncClient(server.url) as client:
                    return [chunk async for chunk in client.stream(request)]

            assert [chunk.output_log_probs for chunk in asyncio.run(read())] == list(self.SCORES)

    def test_lists_that_begin_with_those_before_are_growing_where_nothing_else_tells(self):
        server = self.server(growing=True, counted=False, summed=False)
        with server, Client(server.url) as client:
            whole = client.stream("Hi", return_log_probs=True).completion()
        assert whole.output_log_probs == sum(self.SCORES, ())

    @pytest.mark.parametrize("growing", [True, False])
    def test_certain_tokens_are_told_apart_by_their_number(self, growing):
        certain = ((0.0,), (0.0,), (0.0, 0.0))
        with self.server(growing=growing, scores=certain) as server, Client(server.url) as client:
            whole = client.stream("Hi", return_log_probs=True).completion()
        assert whole.output_log_probs == (0.0,) * 4
        assert whole.num_output_tokens == 4


class TestModelsThatAnswerOnce:
    def test_a_stream_has_one_piece_and_is_not_asked_for_as_a_stream(self):
        with FakeTriton(pieces("Once upon")) as server:
            server.models[BLS] = type(MODELS[BLS])(
                BLS, MODELS[BLS].inputs, MODELS[BLS].outputs, decoupled=False
            )
            assert both(server) == ["Once upon"]
            assert [asked.one("stream") for asked in server.asked] == [False, False]

    def test_the_server_is_asked_once(self):
        with FakeTriton(pieces("Once")) as server, Client(server.url) as client:
            asked = []
            told = server.ModelConfig
            server.ModelConfig = lambda *a: asked.append(1) or told(*a)
            for _ in range(3):
                assert client.stream("Hi").completion().text == "Once"
            assert client.generate("Hi").text == "Once"
        assert len(asked) <= 1


def test_what_the_server_says_about_itself_may_be_an_error_of_its_own():
    with FakeTriton(pieces("Once")) as server:
        del server.models[BLS]
        with pytest.raises(Exception, match="unknown model"):
            both(server)

        async def read():
            async with AsyncClient(server.url) as client:
                return await client.stream("Hi").completion()

        with pytest.raises(Exception, match="unknown model"):
            asyncio.run(read())
    assert server.asked == []


def measured(asked, context):
    for number, final in ((0, False), (1, True)):
        response = piece("a", final=final)
        for name, value in TEN.items():
            kind = {"_ns": "INT64", "ate": "FP32"}.get(name[-3:], "INT32")
            value_now = value + number if name == "last_token_time_ns" else value
            add_output(response.infer_response, name, kind, [1, 1], [value_now])
        yield response


class TestPerformanceMetrics:
    def test_all_ten_arrive_typed_with_each_piece(self):
        with FakeTriton(measured) as server, Client(server.url) as client:
            chunks = list(client.stream("Hi", return_perf_metrics=True))
            whole = client.stream("Hi", return_perf_metrics=True).completion()
            asked = server.asked[0]
        assert asked.one("return_perf_metrics") is True
        assert set(TEN) <= set(asked.wanted)
        assert chunks[0].perf_metrics == PerfMetrics(**TEN)
        assert whole.perf_metrics == PerfMetrics(**TEN | {"last_token_time_ns": 41})

    def test_without_being_asked_for_there_are_none(self):
        with FakeTriton(pieces("Once")) as server, Client(server.url) as client:
            assert client.generate("Hi").perf_metrics is None
            assert "return_perf_metrics" not in server.asked[0].values


class TestRawResponses:
    def test_shapes_are_those_that_arrived(self):
        def answer(asked, context):
            yield piece("Once", shape=(1, 1), num_output_tokens=3)
            yield empty_final()

        request = GenerateRequest("Hi")
        message = encode_request(request, model=BLS, request_id="x", stream=True)
        with FakeTriton(answer) as server, Client(server.url) as client:
            (tensors,) = client.responses(message)
        assert tensors["text_output"].shape == (1, 1)
        assert tensors["text_output"].values == (b"Once",)
        assert (tensors["num_output_tokens"].datatype, tensors["num_output_tokens"].shape) == (
            "INT32",
            (1, 1),
        )

    def test_an_error_is_raised_and_leaving_early_cancels(self):
        def endless(asked, context):
            while context.is_active():
                yield piece("a")

        message = encode_request(GenerateRequest("Hi"), model=BLS, request_id="x", stream=True)
        with FakeTriton(endless) as server, Client(server.url) as client:
            responses = client.responses(message)
            next(responses)
            responses.close()
            assert server.cancelled.wait(30)
        refusing = FakeTriton(lambda *_: [pb.ModelStreamInferResponse(error_message="is empty")])
        with (
            refusing as server,
            Client(server.url) as client,
            pytest.raises(Exception, match="is empty"),
        ):
            list(client.responses(message))

"""``/v1/completions`` with a scripted engine, as the official client and lm-eval read it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import openai
import pytest
from openai.types import Completion
from pydantic import TypeAdapter

from pipeline.gateway.engine import Generation, Tokens
from trtllm_client import ServerBusy

from .scripted import END, Gateway, ScriptedEngine, Step, demo, spoken

HALF = math.log(0.5)


def test_a_text_goes_on_and_keeps_the_space_in_front_of_it() -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, " there was a girl."))
        async with Gateway(engine, model) as gateway:
            got = await gateway.openai.completions.with_raw_response.create(
                model="demo", prompt="Once"
            )
            answer = TypeAdapter(Completion).validate_python(json.loads(got.content))
            assert answer.choices[0].text == " there was a girl."
            assert answer.choices[0].finish_reason == "stop"
            # A plain text gets what the tokenizer puts around it, as the served models do.
            assert engine.asked[0].prompt == tuple(model.tokenizer.encode("Once").ids)

    asyncio.run(run())


def test_every_prompt_of_a_list_has_a_choice_in_its_place_whole_and_streamed() -> None:
    texts = {"One": " girl.", "Two": " cats.", "Three": " dogs.", "Four": " a.", "Five": " b."}
    model = demo()

    def script(asked: Generation) -> Sequence[Step]:
        prompt = model.tokenizer.decode(list(asked.prompt)).strip()
        return spoken(model, texts[prompt])

    async def run() -> None:
        engine = ScriptedEngine(script=script)
        async with Gateway(engine, model) as gateway:
            whole = await gateway.openai.completions.create(model="demo", prompt=list(texts))
            assert [choice.index for choice in whole.choices] == list(range(5))
            assert [choice.text for choice in whole.choices] == list(texts.values())
            assert whole.usage is not None
            said = sum(
                len(model.encode(text, "text", add_special_tokens=False)) for text in texts.values()
            )
            assert whole.usage.completion_tokens == said
            found = dict.fromkeys(range(5), "")
            async for chunk in await gateway.openai.completions.create(
                model="demo", prompt=list(texts), stream=True
            ):
                found[chunk.choices[0].index] += chunk.choices[0].text
            assert list(found.values()) == list(texts.values())
            # Each has an id of its own, so that one can be ended without the others.
            ids = [asked.request_id for asked in engine.asked]
            assert len(set(ids)) == len(ids)

    asyncio.run(run())


def test_token_ids_are_taken_as_they_are() -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(*spoken(model, " a."))
        async with Gateway(engine, model) as gateway:
            await gateway.openai.completions.create(model="demo", prompt=[5, 6, 7])
            await gateway.openai.completions.create(model="demo", prompt=[[8, 9], [10]])
        prompts = sorted(asked.prompt for asked in engine.asked)
        assert prompts == [(5, 6, 7), (8, 9), (10,)]

    asyncio.run(run())


def test_a_prompt_that_fails_ends_the_work_on_the_others() -> None:
    model = demo()
    never = asyncio.Event

    def script(asked: Generation) -> Sequence[Step]:
        if asked.prompt == (8,):
            return [ServerBusy("the queue is full")]
        return [Tokens((5,)), never()]

    async def run() -> None:
        for stream in (False, True):
            engine = ScriptedEngine(script=script)
            async with Gateway(engine, model) as gateway:
                with pytest.raises(openai.APIError, match="queue is full"):
                    await _all_of(gateway, [[9], [8]], stream=stream)
                assert engine.left == 1

    asyncio.run(run())


async def _all_of(gateway: Gateway, prompt: Any, *, stream: bool) -> None:
    got: Any = await gateway.openai.completions.create(model="demo", prompt=prompt, stream=stream)
    if stream:
        async for _ in got:
            pass


# What lm-eval 0.4.13 makes of such an answer (LocalCompletionsAPI.parse_logprobs), step by step:
# the sum of the continuation's log probabilities, and whether each of them is the largest there.
def read_like_lm_eval(answer: Any, context_lengths: Sequence[int]) -> list[tuple[float, bool]]:
    found = []
    for choice, length in zip(
        sorted(answer["choices"], key=itemgetter("index")), context_lengths, strict=True
    ):
        scores = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        greedy = all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))
        found.append((sum(scores), greedy))
    return found


def test_echo_with_log_probs_is_what_lm_eval_reads() -> None:
    """A likely token is the likeliest; for the others the engine is asked what it would say."""
    model = demo()
    prompt = (10, 11, 12, 13)
    # Of each token but the first: the second one is not the likeliest, the third is, narrowly.
    scores = (-0.1, -2.5, HALF - 0.1)
    best = {(10, 11): (99, -0.2), (10, 11, 12): (13, HALF - 0.1)}

    def script(asked: Generation) -> Sequence[Step]:
        if asked.inputs.get("return_prompt_log_probs"):
            return [Tokens((50,), (-0.7,), scores)]
        token, score = best[asked.prompt]
        assert asked.max_tokens == 1
        assert asked.inputs["runtime_top_k"] == 1
        return [Tokens((token,), (score,))]

    async def run() -> None:
        engine = ScriptedEngine(script=script)
        async with Gateway(engine, model) as gateway:
            body = {
                "model": "demo",
                "prompt": [list(prompt)],
                "temperature": 0,
                "max_tokens": 1,
                "logprobs": 1,
                "seed": 1234,
                "echo": True,
            }
            got = (await gateway.http.post("/v1/completions", json=body)).json()
            choice = got["choices"][0]
            # The first has none, as at OpenAI, though its types say otherwise.
            assert choice["logprobs"]["token_logprobs"] == [None, *scores, -0.7]
            assert choice["text"] == model.tokenizer.decode([*prompt, 50])
            assert read_like_lm_eval(got, [3]) == [(HALF - 0.1, True)]
            assert read_like_lm_eval(got, [2]) == [(pytest.approx(-2.6 + HALF), False)]
            # Only where it is not certain is the engine asked again.
            assert len(engine.asked) == 3

    asyncio.run(run())


def test_echo_of_a_prompt_alone_has_no_token_of_an_answer() -> None:
    model = demo()

    async def run() -> None:
        engine = ScriptedEngine(Tokens((50,), (-0.7,), (-0.1, -0.2)))
        async with Gateway(engine, model) as gateway:
            body: dict[str, Any] = {
                "prompt": [10, 11, 12], "max_tokens": 0, "logprobs": 0, "echo": True
            }  # fmt: skip
            got = (await gateway.http.post("/v1/completions", json=body)).json()
            choice = got["choices"][0]
            assert choice["text"] == model.tokenizer.decode([10, 11, 12])
            assert choice["logprobs"]["token_logprobs"] == [None, -0.1, -0.2]
            assert len(choice["logprobs"]["tokens"]) == 3
            assert choice["finish_reason"] == "length"
            assert got["usage"] == {
                "prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3
            }  # fmt: skip
            # Without log probabilities there is nothing to ask the engine.
            before = len(engine.asked)
            body = {"prompt": "Once there", "max_tokens": 0, "echo": True}
            got = (await gateway.http.post("/v1/completions", json=body)).json()
            assert got["choices"][0]["text"] == "Once there"
            assert len(engine.asked) == before

    asyncio.run(run())


def test_offsets_say_where_in_the_text_each_token_begins() -> None:
    model = demo()
    text = " there was Zoë."

    async def run() -> None:
        engine = ScriptedEngine(*spoken(model, text, score=-1.0))
        async with Gateway(engine, model) as gateway:
            whole = await gateway.openai.completions.create(model="demo", prompt="Once", logprobs=0)
            scores = whole.choices[0].logprobs
            assert scores is not None
            for token, offset in zip(scores.tokens or [], scores.text_offset or [], strict=True):
                assert text.startswith(token, offset)
            assert scores.top_logprobs is None

    def script(asked: Generation) -> Sequence[Step]:
        scored = asked.inputs.get("return_prompt_log_probs")
        first = (-0.5,) * (len(asked.prompt) - 1) if scored else None
        steps: list[Step] = [*spoken(model, text, score=-1.0)]
        steps[0] = Tokens(steps[0].ids, (-1.0,), first)  # type: ignore[union-attr]
        return steps

    async def echo() -> None:
        async with Gateway(ScriptedEngine(script=script), model) as gateway:
            echoed = await gateway.openai.completions.create(
                model="demo", prompt="Once", logprobs=0, echo=True
            )
            choice = echoed.choices[0]
            assert choice.text == "Once" + text
            assert choice.logprobs is not None
            tokens, offsets = choice.logprobs.tokens or [], choice.logprobs.text_offset or []
            assert tokens[0] == "<s>"  # which leaves no text
            # The first word of a text loses the space that its token has.
            for token, offset in zip([tokens[1].strip(), *tokens[2:]], offsets[1:], strict=True):
                assert choice.text.startswith(token, offset)

    asyncio.run(echo())


@pytest.mark.parametrize("stop", [None, ["qq", "e."]], ids=["plain", "watched"])
def test_offsets_are_those_of_the_tokens_however_they_are_told(stop: list[str] | None) -> None:
    """A busy server tells several tokens in one response; a stop word holds text back."""
    model = demo()
    ids = [id_ for step in spoken(model, " there was Zoë 漢.") for id_ in step.ids]
    at_once = Tokens(tuple(ids), (-1.0,) * len(ids))

    async def run() -> None:
        for script in (spoken(model, " there was Zoë 漢.", score=-1.0), [at_once]):
            async with Gateway(ScriptedEngine(*script), model) as gateway:
                whole = await gateway.openai.completions.create(
                    model="demo", prompt="Once", logprobs=0, stop=stop
                )
            (choice,) = whole.choices
            assert choice.text == " there was Zoë 漢."
            assert choice.logprobs is not None
            offsets = choice.logprobs.text_offset or []
            for id_, offset in zip(ids[:-1], offsets, strict=True):  # the last is the end
                text = model.token(id_)[0]
                # A part of a character begins where the character does.
                assert choice.text.startswith("漢" if "�" in text else text, offset)

    asyncio.run(run())


def test_a_stop_word_and_a_limit_end_a_text_as_in_a_chat() -> None:
    model = demo()

    async def run() -> None:
        async with Gateway(ScriptedEngine(*spoken(model, " a girl named Zoë.")), model) as gateway:
            cut = await gateway.openai.completions.create(
                model="demo", prompt="Once", stop=[" named"]
            )
            assert (cut.choices[0].text, cut.choices[0].finish_reason) == (" a girl", "stop")
        some = spoken(model, " a girl named Zoë.")[:2]
        async with Gateway(ScriptedEngine(*some), model) as gateway:
            cut = await gateway.openai.completions.create(model="demo", prompt="Once", max_tokens=2)
            assert cut.choices[0].finish_reason == "length"

    asyncio.run(run())


def test_an_end_id_may_be_ignored_and_several_are_named() -> None:
    async def run() -> None:
        model = demo()
        engine = ScriptedEngine(Tokens((5, END, 6)))
        async with Gateway(engine, model) as gateway:
            body = {"prompt": "Once", "ignore_eos": True, "max_tokens": 3}
            got = (await gateway.http.post("/v1/completions", json=body)).json()
            assert got["usage"]["completion_tokens"] == 3
            assert engine.asked[0].inputs["end_id"] == -1

    asyncio.run(run())


def test_cached_tokens_are_those_of_the_blocks_that_the_engine_had() -> None:
    async def run() -> None:
        model = demo()
        model.limits = replace(model.limits, block=4)
        spoken_once = spoken(model, " a girl.")
        steps = [replace(tokens, reused_blocks=2) for tokens in spoken_once]
        engine = ScriptedEngine(*steps)
        async with Gateway(engine, model) as gateway:
            got = await gateway.openai.completions.create(model="demo", prompt=[[5] * 9, [6] * 7])
            assert got.usage is not None
            assert got.usage.prompt_tokens_details is not None
            assert got.usage.prompt_tokens_details.cached_tokens == 2 * 2 * 4
            # Each response of a stream would have it, so one that says no usage does without.
            stream = await gateway.openai.completions.create(
                model="demo", prompt=[5] * 9, stream=True
            )
            assert [chunk.usage async for chunk in stream][-1] is None
        asks = [asked.inputs.get("return_perf_metrics") for asked in engine.asked]
        assert asks == [True, True, None]
        # Nothing is said where the engine keeps no blocks, or nobody knows how large they are.
        async with Gateway(ScriptedEngine(*spoken_once), demo()) as gateway:
            got = await gateway.openai.completions.create(model="demo", prompt="Once")
            assert got.usage is not None
            assert got.usage.prompt_tokens_details is None

    asyncio.run(run())


def test_adapters_are_models_of_their_own() -> None:
    async def run() -> None:
        model = demo()
        model.takes_adapters([1, 7])
        engine = ScriptedEngine(*spoken(model, " a girl."))
        async with Gateway(engine, model) as gateway:
            listed = [one.id async for one in gateway.openai.models.list()]
            assert listed == ["demo", "demo:1", "demo:7"]
            assert (await gateway.openai.models.retrieve("demo:7")).id == "demo:7"
            for name in ("demo", "demo:7"):
                got = await gateway.openai.completions.create(model=name, prompt="Once")
                assert got.model == name
            chat = await gateway.openai.chat.completions.create(
                model="demo:1", messages=[{"role": "user", "content": "Hello"}]
            )
            assert chat.model == "demo:1"
            with pytest.raises(openai.NotFoundError, match="'demo:2' is not served here"):
                await gateway.openai.completions.create(model="demo:2", prompt="Once")
        assert [asked.inputs.get("lora_task_id") for asked in engine.asked] == [None, 7, 1]

    asyncio.run(run())

"""Guided decoding on the real engine: what comes out follows the guide, and nobody else notices."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

from model_repo.tensorrt_llm.engine import Engine
from model_repo.tensorrt_llm.guide_checker import GuideChecker
from model_repo.tensorrt_llm.request import Guide, RequestError, Sampling
from tests.conftest import DEMO_MODEL
from tests.integration.engine_front_support import (
    Front,
    Listener,
    Plain,
    front,
    settings,
    write_engine,
)
from tests.integration.tokenizer_layouts import EOS, byte_level

TOKENIZER = DEMO_MODEL / "tokenizer.json"
END = 1
PROMPT = "Once there was a gentle boy named Jack, and he lived by the sea."
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "friends": {"type": "array", "items": {"enum": ["dog", "cat"]}, "maxItems": 2},
    },
    "required": ["name", "age", "friends"],
    "additionalProperties": False,
}
PERSON_TEXT = json.dumps(PERSON)
# The stories know no JSON: left to its liking, the model goes on with the spaces that JSON allows.
# With this temperature it likes whatever the guide allows nearly alike.
HOT = Sampling(greedy=False, temperature=50.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer.encode(PROMPT).ids)


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(DEMO_MODEL, tmp_path_factory.mktemp("engine"))


def guided(engine_dir: Path, **changes: Any) -> Any:
    return front(engine_dir, tokenizer=TOKENIZER, guided_decoding=True, end_ids=(END,), **changes)


@pytest.fixture(scope="module")
def shared(engine_dir: Path) -> Iterator[Front]:
    with guided(engine_dir) as made:
        yield made


@pytest.fixture(scope="module")
def plain(engine_dir: Path) -> Plain:
    """An engine that knows nothing of guides."""
    return Plain(Engine(settings(engine_dir, enable_prefix_caching=False)))


def guide(kind: str, text: str = "") -> Guide:
    return Guide(kind, text, frozenset((END,)))


def ask(
    made: Front, prompt: list[int], wish: Guide, tokens: int = 120, **request: Any
) -> tuple[Any, Listener]:
    return made.submit(prompt, tokens, guide=wish, end_id=END, **request)


def text_of(made: Front, prompt: list[int], wish: Guide, tokenizer: Tokenizer, **more: Any) -> str:
    return str(tokenizer.decode(ask(made, prompt, wish, **more)[1].result()))


@pytest.mark.parametrize("seed", range(4))
def test_the_text_is_json_of_the_schema(
    shared: Front, prompt: list[int], tokenizer: Tokenizer, seed: int
) -> None:
    hot = dataclasses.replace(HOT, seed=seed)
    text = text_of(shared, prompt, guide("json_schema", PERSON_TEXT), tokenizer, sampling=hot)
    jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 10, "maximum": 99},
        {"type": "string", "pattern": "^[a-z]{4,9}$"},
        {"enum": ["red", 7, None]},
    ],
    ids=str,
)
def test_the_likeliest_text_is_json_of_the_schema(
    shared: Front, prompt: list[int], tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    text = text_of(shared, prompt, guide("json_schema", json.dumps(schema)), tokenizer)
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    "regex", [r"[A-Z][a-z]+ [0-9]{3}", r"(yes|no), (the|a) [a-z]{3,5}\.", r"🐌{2}[ä-ü]+"]
)
def test_the_whole_text_matches_the_regex(
    shared: Front, prompt: list[int], tokenizer: Tokenizer, regex: str, greedy: bool
) -> None:
    text = text_of(
        shared,
        prompt,
        guide("regex", regex),
        tokenizer,
        sampling=Sampling(greedy=greedy, seed=5, repetition_penalty=2.0),
    )
    assert re.fullmatch(regex, text)


def test_the_text_follows_the_grammar(
    shared: Front, prompt: list[int], tokenizer: Tokenizer
) -> None:
    grammar = 'root ::= sum "=" [0-9]\nsum ::= [0-9] "+" [0-9] | [0-9] "-" [0-9]'
    text = text_of(shared, prompt, guide("ebnf_grammar", grammar), tokenizer)
    assert re.fullmatch(r"[0-9][+-][0-9]=[0-9]", text)


def test_json_without_a_schema_is_an_object_or_an_array(
    shared: Front, prompt: list[int], tokenizer: Tokenizer
) -> None:
    listeners = [
        ask(shared, prompt, guide("json"), 100, sampling=dataclasses.replace(HOT, seed=seed))[1]
        for seed in range(24)
    ]
    answers = [listener.result() for listener in listeners]
    complete = [tokenizer.decode(ids) for ids in answers if len(ids) < 100]
    assert complete, "none was done with 100 tokens"
    kinds = {type(json.loads(text)) for text in complete}
    assert kinds <= {dict, list}


def test_neighbours_get_the_tokens_that_they_get_alone(
    shared: Front, plain: Plain, prompt: list[int], tokenizer: Tokenizer
) -> None:
    others = np.random.default_rng(3).integers(3, 500, (6, 12)).tolist()
    wishes = [guide("regex", "[a-z]{40}"), guide("json_schema", PERSON_TEXT), guide("json")]
    guided_ones = [ask(shared, prompt, wish, sampling=HOT)[1] for wish in wishes]
    listeners = [shared.submit(other, 60)[1] for other in others]
    assert [one.result() for one in listeners] == [plain(other, 60) for other in others]
    texts = [tokenizer.decode(one.result()) for one in guided_ones]
    assert re.fullmatch("[a-z]{40}", texts[0])
    jsonschema.validate(json.loads(texts[1]), PERSON)
    shared.idle()


def test_a_text_that_is_never_complete_ends_with_max_tokens(
    shared: Front, prompt: list[int], tokenizer: Tokenizer
) -> None:
    ids = ask(shared, prompt, guide("ebnf_grammar", 'root ::= "la" root'), 17)[1].result()
    assert len(ids) == 17
    assert tokenizer.decode(ids).replace("la", "") in ("", "l")


def test_the_end_id_ends_a_complete_text_only(shared: Front, prompt: list[int]) -> None:
    """Left alone the model would go on for long: it ends since nothing else is allowed."""
    ids = ask(shared, prompt, guide("regex", "no"), 50)[1].result()
    assert 1 <= len(ids) <= 2
    assert END not in ids


def test_stop_words_and_other_end_ids_still_end_it(
    shared: Front, prompt: list[int], tokenizer: Tokenizer
) -> None:
    dot = tokenizer.token_to_id(".")
    wish = guide("regex", r"[a-z]{3}\.[a-z]{30}")
    stopped = ask(shared, prompt, wish, stop_words=((dot,),))[1].result()
    assert re.fullmatch(r"[a-z]{3}\.", tokenizer.decode(stopped))
    ends = {"end_id": dot, "stop_words": ((END,),)}
    listener = shared.submit(prompt, 60, guide=wish, **ends)[1]
    assert re.fullmatch("[a-z]{3}", tokenizer.decode(listener.result()))


def test_an_end_id_that_is_a_stop_word_ends_a_complete_text(
    shared: Front, prompt: list[int], tokenizer: Tokenizer
) -> None:
    """So it is with a model's second end id, and with a request that names none."""
    listener = shared.submit(
        prompt, 50, guide=guide("regex", "no"), end_id=None, stop_words=((END,),)
    )[1]
    *text, last = listener.result()
    assert (tokenizer.decode(text), last) == ("no", END)


def test_a_text_that_the_engine_drops_goes_on_where_it_was(
    engine_dir: Path, shared: Front, tokenizer: Tokenizer
) -> None:
    """As for requests without a guide, cancelling one of three makes the engine drop the others.

    The engine follows the guide from its beginning, so what it had is made a second time.
    """
    asked = np.random.default_rng(1).integers(3, 500, (3, 120)).tolist()
    wish = guide("regex", r"([a-z]{2} [0-9]{2} ){25}")
    alone = [ask(shared, prompt, wish, 100)[1].result() for prompt in asked]
    dropped = 0
    changes = {"num_kv_blocks": 12, "guaranteed_no_evict": False, "enable_prefix_caching": False}
    with guided(engine_dir, **changes) as small:
        for cancel_at in range(40, 100, 5):
            pairs = [ask(small, prompt, wish, 100) for prompt in asked]
            while len(pairs[0][1].ids) < cancel_at and not pairs[0][0].done:
                threading.Event().wait(0.0005)
            small.loop.cancel(pairs[0][0])
            assert [pairs[number][1].result() for number in (1, 2)] == alone[1:]
            dropped = small.loop.stats.evictions
            small.idle()
            if dropped:
                break
    assert dropped > 0, "the engine never dropped a request, so nothing was tested"
    assert all(re.match("([a-z]{2} [0-9]{2} ){9}", tokenizer.decode(ids)) for ids in alone)


def test_log_probs_are_those_of_the_model(shared: Front, prompt: list[int]) -> None:
    listener = ask(shared, prompt, guide("regex", "zzz"), log_probs=True)[1]
    assert len(listener.result()) == len(listener.log_probs)
    # With the guide there is nothing else to choose, which would be log 1.
    assert listener.log_probs[0] < -1


# --- the process that tries guides


@pytest.fixture(scope="module")
def checker() -> Iterator[GuideChecker]:
    made = GuideChecker(TOKENIZER, 1024, (END,))
    made.wait_ready()
    yield made
    made.close()


def refusal(checker: GuideChecker, wish: Guide) -> RequestError | None:
    answers: list[RequestError | None] = []
    come = threading.Event()

    def done(error: RequestError | None) -> None:
        answers.append(error)
        come.set()

    checker.check(wish, done)
    assert come.wait(60)
    return answers[0]


@pytest.mark.parametrize(
    "wish",
    [
        guide("json"),
        guide("json_schema", PERSON_TEXT),
        guide("json_schema", "true"),
        guide("regex", "a+"),
        guide("regex", "!{1,40}"),
        guide("ebnf_grammar", 'root ::= "a" root'),
    ],
    ids=lambda wish: f"{wish.kind} {wish.text[:12]}",
)
def test_a_good_guide_is_let_through(checker: GuideChecker, wish: Guide) -> None:
    assert refusal(checker, wish) is None


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (guide("regex", "[a-"), r"Unclosed '\['"),
        (guide("regex", "(?<=a)b"), "Lookbehind is not supported"),
        (guide("json_schema", '{"type": "nonsense"}'), 'Unsupported type "nonsense"'),
        (guide("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), "minimum great"),
        (
            guide("json_schema", '{"type": "integer", "minimum": 1e400}'),
            "a number in it is out of range",
        ),
        (guide("ebnf_grammar", "root ::= foo"), 'Rule "foo" is not defined'),
        (guide("ebnf_grammar", 'x ::= "a"'), 'root rule with name "root" is not found'),
        (guide("ebnf_grammar", "root ::= root"), "no text of this model's tokens"),
        (guide("json_schema", '{"$ref": "#"}'), "no text of this model's tokens"),
        (guide("ebnf_grammar", 'root ::= "a" x\nx ::= x'), "no text of this model's tokens"),
        (guide("ebnf_grammar", 'root ::= "b" x | "cd"\nx ::= x'), "no text of this model's tok"),
    ],
)
def test_a_bad_guide_is_refused_with_the_reason(
    checker: GuideChecker, wish: Guide, reason: str
) -> None:
    error = refusal(checker, wish)
    assert error is not None
    assert re.search(reason, str(error))
    assert str(error).startswith(f"guided_decoding_guide cannot be followed as {wish.kind}: ")
    assert "/" not in str(error).split(": ", 1)[1]  # no path of the machine that built OpenVINO
    assert error.code == "INVALID_ARG"


def test_a_guide_that_gets_stuck_is_found_out_where_token_0_has_a_text(tmp_path: Path) -> None:
    """As in Llama 3 and Qwen, whose token 0 is an exclamation mark."""
    tokenizer = byte_level()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert tokenizer.id_to_token(0) == "!"
    made = GuideChecker(path, tokenizer.get_vocab_size(), (tokenizer.token_to_id(EOS),))
    made.wait_ready()
    stuck = refusal(made, guide("ebnf_grammar", 'root ::= "a" x | "bc"\nx ::= x'))
    assert "no text of this model's tokens" in str(stuck)
    assert refusal(made, guide("regex", "!{1,40}")) is None
    assert refusal(made, guide("json_schema", PERSON_TEXT)) is None
    made.close()


def test_what_kills_the_process_is_refused_and_the_next_guide_tried(checker: GuideChecker) -> None:
    deadly = guide("regex", "(" * 100_000 + "a" + ")" * 100_000)
    assert "broke down on it" in str(refusal(checker, deadly))
    assert refusal(checker, guide("regex", "b+")) is None


def test_a_process_with_many_open_files_can_try_guides(tmp_path: Path) -> None:
    """Its pipes then have numbers that select() does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("no process may open so many files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with contextlib.ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while opened.enter_context((tmp_path / "x").open("w")).fileno() < 1024:
            pass
        many = GuideChecker(TOKENIZER, 1024, (END,))
        opened.callback(many.close)
        many.wait_ready()
        assert refusal(many, guide("regex", "yes|no")) is None


def test_what_takes_too_long_is_refused_and_the_next_guide_tried() -> None:
    hasty = GuideChecker(TOKENIZER, 1024, (END,), limit_s=1)
    hasty.wait_ready()
    slow = guide("regex", "(a{1,900}b){1,900}(c{1,900}d){1,900}(e{1,900}f){1,900}")
    assert "not understood within 1 s" in str(refusal(hasty, slow))
    assert refusal(hasty, guide("regex", "b+")) is None
    hasty.close()


def test_a_bad_guide_costs_nobody_else_anything(
    engine_dir: Path, plain: Plain, prompt: list[int], checker: GuideChecker
) -> None:
    limits = settings(engine_dir, tokenizer=TOKENIZER, guided_decoding=True, end_ids=(END,))
    made = Front(Engine(limits), limits, check_guide=checker.check)
    neighbour = made.submit(prompt, 100)[1]
    neighbour.wait_first()
    bad = ask(made, prompt, guide("regex", "[b-"))[1]
    good = ask(made, prompt, guide("regex", "yes"))[1]
    assert "Unclosed" in bad.failure()
    assert neighbour.result() == plain(prompt, 100)
    assert len(good.result()) >= 1
    made.idle()
    assert not made.broken
    made.loop.close()


def test_without_the_trial_the_engine_would_be_lost(engine_dir: Path, prompt: list[int]) -> None:
    """Why there is one: should OpenVINO GenAI ever refuse a guide by itself, it could go."""
    limits = settings(engine_dir, tokenizer=TOKENIZER, guided_decoding=True, end_ids=(END,))
    made = Front(Engine(limits), limits)
    assert "the engine stopped working" in ask(made, prompt, guide("regex", "[c-"))[1].failure()
    assert made.broken
    made.loop.close()


def test_a_request_is_cancelled_while_its_guide_is_tried(
    engine_dir: Path, prompt: list[int]
) -> None:
    limits = settings(engine_dir, tokenizer=TOKENIZER, guided_decoding=True, end_ids=(END,))
    asked: list[Any] = []
    made = Front(Engine(limits), limits, check_guide=lambda _, done: asked.append(done))
    generation, listener = ask(made, prompt, guide("regex", "yes"), client_id="mine")
    assert made.loop.cancel_client_id("mine") == 1
    assert listener.result() == []
    asked[0](None)  # comes too late
    made.idle()
    assert generation.done
    made.loop.close()

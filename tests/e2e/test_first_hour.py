"""A chat model of one's own, from ``init`` to a conversation, typed as its owner would.

Nobody edits a file. Tokens and greedy answers are those of transformers; each model is laid out as
its family publishes it, with the family's chat template.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import transformers

from tests.integration.chat_models import (
    AND_THEN,
    FAMILIES,
    QUESTION,
    SYSTEM,
    as_served,
    chat_model,
    greedy,
    prompt_ids,
)
from trtllm_client import Client

from ..conftest import NO_GATES
from ..pages import Machine, started, typing_in

VARIABLE = "TRTLLM_PIPELINE_CHAT_PROOF"
EVERY_RUN = ("Mistral", "float16")
MODELS = [
    (architecture, weights)
    for architecture in FAMILIES
    for weights in ("float16", "int8_sq", "int4_awq")
]

# All tokens are nearly alike to a model with random weights, so that a small error changes the
# likeliest one more often than the gate allows.
_NO_GATES = f" --set {shlex.quote(NO_GATES)}"
UNJUDGED = {"float16": "", "int8_sq": _NO_GATES, "int4_awq": _NO_GATES}

pytestmark = pytest.mark.timeout(600)


def only_in_proof(model: tuple[str, str]) -> Any:
    """A parameter that ``make test`` leaves out, unless it is the one of every run."""
    left_out = model != EVERY_RUN and not os.environ.get(VARIABLE)
    reason = f"`make chat-proof` runs every architecture and format ({VARIABLE})"
    return pytest.param(
        *model, id="-".join(model), marks=pytest.mark.skipif(left_out, reason=reason)
    )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    home = tmp_path_factory.mktemp("home")
    return typing_in(home, home)


def typed(machine: Machine, command: str) -> Any:
    """What a command prints with ``--json``, after it ended with 0."""
    printed = machine(f"trtllm-pipeline {command} --json")
    assert machine.code == 0, printed
    return json.loads(printed)


def conversations(answer: str) -> Iterator[list[dict[str, str]]]:
    yield [QUESTION]
    yield [QUESTION, {"role": "assistant", "content": answer}, AND_THEN]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "weights"), [only_in_proof(model) for model in MODELS])
def test_a_model_of_ones_own_answers(architecture: str, weights: str, machine: Machine) -> None:
    clock = [time.monotonic()]
    name = f"{architecture}-{weights}"
    source = chat_model(architecture, machine.folder / "models" / architecture)
    made = typed(machine, f"init models/{architecture} --format {weights} --output {name}.yaml")
    assert made["recipe"] == f"{name}.yaml"
    clock.append(time.monotonic())
    # Fewer tokens are measured than the recipe says, for the sake of the test's time.
    ran = typed(
        machine, f"run {name}.yaml --until verify --set evaluate.tokens=4000{UNJUDGED[weights]}"
    )
    clock.append(time.monotonic())
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model, end = as_served(source), tokenizer.eos_token_id
    with started(f"trtllm-pipeline serve {ran['outputs']}", machine) as ports:
        url = f"localhost:{ports['grpc']}"
        ask = f"generate --url {url} --chat {shlex.quote(QUESTION['content'])}"
        told = typed(machine, ask)
        with Client(url) as client:
            for turns in conversations(told["text"]):
                ids = prompt_ids(tokenizer, turns)
                answer = client.chat(turns, max_tokens=48)
                with client.stream_chat(turns, max_tokens=48) as stream:
                    streamed = stream.completion()
                assert answer.num_input_tokens == streamed.num_input_tokens == len(ids)
                assert (answer.text, answer.finish_reason) == (
                    streamed.text,
                    streamed.finish_reason,
                )
                if len(turns) == 1:
                    assert (told["text"], told["num_input_tokens"]) == (answer.text, len(ids))
                if weights == "float16":
                    expected, _ = greedy(model, ids, [end])
                    assert expected[-1] == end
                    assert answer.text == tokenizer.decode(expected[:-1])
                    assert answer.num_output_tokens == len(expected) - 1
                    assert answer.finish_reason == "stop"
        told = typed(machine, f"{ask} --system {shlex.quote(SYSTEM['content'])}")
        assert told["num_input_tokens"] == len(prompt_ids(tokenizer, [SYSTEM, QUESTION]))
    clock.append(time.monotonic())
    spent = (f"{after - before:.1f} s" for before, after in pairwise(clock))
    print(name, *zip(("init", "run", "chat"), spent, strict=True))


def chats(count: int) -> list[dict[str, Any]]:
    """Conversations of one and two questions, some with a system turn, no two alike."""
    lines: list[dict[str, Any]] = []
    for number in range(count):
        turns = [SYSTEM] if number % 3 == 0 else []
        for turn in range(1 + number % 2):
            question = f"How far is it from pier {number} to pier {turn + 7}, naïve 漢字 😀?"
            answer = f" It is {number * 3 + turn} steps.\n\nMind the “wet” planks."
            turns = [
                *turns,
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        lines.append({"messages": turns})
    return lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "weights"),
    [only_in_proof(("Llama", "int8_sq")), only_in_proof(("Qwen3", "float16"))],
)
def test_conversations_of_ones_own_are_calibrated_and_measured(
    architecture: str, weights: str, machine: Machine
) -> None:
    source = chat_model(architecture, machine.folder / "models" / architecture)
    lines = chats(60)
    folder = machine.folder / f"texts-{architecture}"
    folder.mkdir()
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "conversations.jsonl").write_text(text)
    typed(
        machine,
        f"init models/{architecture} --format {weights} --text {folder}/conversations.jsonl "
        f"--output {folder}/mine.yaml",
    )
    typed(
        machine,
        f"run {folder}/mine.yaml --until verify --build-dir {folder}/build{UNJUDGED[weights]}",
    )
    (path,) = (folder / "build" / "store" / "evaluate").glob("*/evaluation.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    heldout = lines[40:]
    ids = [tokenizer.apply_chat_template(line["messages"], tokenize=True) for line in heldout]
    # The first token of a conversation is context alone.
    assert json.loads(path.read_text())["tokens"] == sum(len(row) - 1 for row in ids)

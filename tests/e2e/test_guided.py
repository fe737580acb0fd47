"""Guided decoding through the recipe, the real server, the client and the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trtllm_client import Client, InvalidRequest

from .conftest import Cli

PROMPT = "Once there was a gentle boy named Jack, and he lived by the sea."
SCHEMA = {"type": "string", "pattern": "^[a-z]{3,8}$"}
GUIDES = {
    "regex": r"[A-Z][a-z]+ [0-9]{3}",
    "json_schema": json.dumps(SCHEMA),
    "ebnf_grammar": 'root ::= "yes" | "no"',
}


@pytest.fixture
def client(guided_url: str) -> Iterator[Client]:
    with Client(guided_url, timeout=60) as client:
        yield client


def follows(kind: str, text: str) -> bool:
    if kind == "json_schema":
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    return bool(re.fullmatch(GUIDES["regex"] if kind == "regex" else "yes|no", text))


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
@pytest.mark.parametrize("kind", GUIDES)
def test_the_text_follows_the_guide(client: Client, kind: str, model: str) -> None:
    answer = client.generate(
        PROMPT,
        model=model,
        max_tokens=60,
        guided_decoding_guide_type=kind,
        guided_decoding_guide=GUIDES[kind],
    )
    assert follows(kind, answer.text)
    assert answer.finish_reason == "stop"


def test_a_stream_follows_it_piece_by_piece(client: Client) -> None:
    with client.stream(
        PROMPT, max_tokens=60, guided_decoding_guide_type="regex", guided_decoding_guide="[a-z]{30}"
    ) as stream:
        pieces = [chunk.text for chunk in stream]
    assert len(pieces) > 5
    assert re.fullmatch("[a-z]{30}", "".join(pieces))


def test_a_text_that_never_ends_ends_with_max_tokens(client: Client) -> None:
    answer = client.generate(
        PROMPT, max_tokens=9, guided_decoding_guide_type="regex", guided_decoding_guide="[a-z]+"
    )
    assert answer.finish_reason == "length"
    assert answer.num_output_tokens == 9


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
@pytest.mark.parametrize(
    ("kind", "guide", "reason"),
    [
        ("regex", "[a-", r"Unclosed '\['"),
        ("json_schema", '{"type": "nonsense"}', "nonsense"),
        ("ebnf_grammar", "root ::= foo", "foo"),
        ("ebnf_grammar", "root ::= root", "no text of this model's tokens"),
        ("regex", "(" * 100_000, "more than 200 brackets"),
    ],
)
def test_a_bad_guide_is_the_clients_fault_and_nobody_elses_trouble(
    client: Client, kind: str, guide: str, reason: str, model: str
) -> None:
    alone = client.generate(PROMPT, max_tokens=80).text
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(client.generate, PROMPT, max_tokens=80) for _ in range(4)]
        with pytest.raises(InvalidRequest, match=reason):
            client.generate(
                PROMPT,
                model=model,
                max_tokens=20,
                guided_decoding_guide_type=kind,
                guided_decoding_guide=guide,
            )
        assert [other.result().text for other in others] == [alone] * 4


def test_the_command_line_takes_a_schema_from_a_file(
    cli: Cli, guided_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    done = cli("generate", "--url", guided_url, "--json-schema", str(path), "--json", PROMPT)
    jsonschema.validate(json.loads(json.loads(done.stdout)["text"]), SCHEMA)


def test_without_the_key_a_guide_is_refused_with_the_remedy(server: Any) -> None:
    with (
        Client(server.grpc_url, timeout=60) as client,
        pytest.raises(InvalidRequest, match=r"not set up.*serve\.guided_decoding: xgrammar"),
    ):
        client.generate(PROMPT, guided_decoding_guide_type="json")

"""Greedy text over gRPC against the torch reference of the checkpoint that was compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from pipeline.serving import serving
from trtllm_client import Client

from ..conftest import DEMO_MODEL, PROJECT
from .conftest import Cli

HELDOUT = PROJECT / "examples" / "tiny_llama" / "data" / "heldout.jsonl"
PROMPTS = 20
TOKENS = 48
RECIPES = {"float16": "configs/demo-float16.yaml", "int4_awq": "configs/demo.yaml"}


@pytest.fixture(scope="module", params=sorted(RECIPES))
def served(
    request: pytest.FixtureRequest, cli: Cli, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Client]]:
    """The torch reference of a checkpoint, and a client of the server that runs its engine."""
    from pipeline.reference import load_reference

    named = ("--set", f"name=greedy-{request.param}", "--set", "evaluate=null")
    done = cli.run(RECIPES[request.param], *named, "--until", "repository", "--json")
    result = json.loads(done.stdout)
    checkpoint = next(s["path"] for s in result["stages"] if s["stage"] == "quantize")
    log = tmp_path_factory.mktemp("log") / "triton.log"
    repository = Path(result["deployed"]["repository"])
    with serving(repository, log) as server, Client(server.grpc_url) as client:
        yield load_reference(Path(checkpoint)), client


def test_twenty_prompts(served: tuple[Any, Client]) -> None:
    import torch

    reference, client = served
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    stories = [json.loads(line)["text"] for line in HELDOUT.read_text().splitlines()[:PROMPTS]]
    assert len(stories) == PROMPTS
    for story in stories:
        prompt = ". ".join(story.split(". ")[:2]) + "."
        ids = tokenizer.encode(prompt).ids
        with torch.inference_mode():
            output = reference.generate(
                torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=2,
                eos_token_id=1,
            )  # fmt: skip
        expected = tokenizer.decode(output[0, len(ids) :].tolist(), skip_special_tokens=True)
        assert client.generate(prompt, max_tokens=TOKENS).text == expected

"""Every script of examples/ runs as its README says, and prints what the engine generated.

The expected text comes from the engine's token ids and the tokenizers library.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ..conftest import DEMO_MODEL, PROJECT
from .conftest import Cli
from .nvidia_calls import id_arrays, streamed
from .test_nvidia_clients import variant

EXAMPLES = PROJECT / "examples"
TOKENS = 40
PROMPTS = ("Once upon a time", "One day, a small dog")
NEEDS_NODE = pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")
NEEDS_CURL = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


def example(name: str, *arguments: str) -> str:
    """Runs a script in the project's root; its standard output."""
    command = {".py": [sys.executable], ".mjs": ["node"]}.get(Path(name).suffix, [])
    done = subprocess.run(
        [*command, str(EXAMPLES / name), *arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answers(server: Any) -> list[str]:
    """The greedy continuations of the prompts."""
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    texts = []
    for prompt in PROMPTS:
        prompt_ids = tokenizer.encode(prompt).ids
        arrays = id_arrays(prompt_ids, TOKENS, streaming=True)
        results = streamed(server.grpc_url, "tensorrt_llm", arrays)
        ids = [int(token) for result in results for token in result.as_numpy("output_ids")[0][0]]
        both = tokenizer.decode([*prompt_ids, *ids])
        assert both.startswith(prompt)
        texts.append(both[len(prompt) :])
    return texts


@pytest.fixture(scope="module")
def with_unary(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from variant(cli, tmp_path_factory, "decoupled=both")


def test_client_sync(server: Any, answers: list[str]) -> None:
    story = answers[0]
    streamed_text, whole, facts = example("client_sync.py", server.grpc_url).split("\n", 2)
    assert streamed_text == story.partition(".")[0]
    assert whole == story
    assert facts == f"{TOKENS} tokens, finished by length\n"


def test_client_async(server: Any, answers: list[str]) -> None:
    told = [f"{prompt}{answer}" for prompt, answer in zip(PROMPTS, answers, strict=True)]
    assert example("client_async.py", server.grpc_url).splitlines() == told


@pytest.mark.parametrize("name", ["tritonclient_streamed.py", "tritonclient_whole.py"])
def test_plain_tritonclient(name: str, server: Any, answers: list[str]) -> None:
    assert example(name, server.grpc_url) == f"{answers[0]}\n"


def test_plain_infer(with_unary: Any, answers: list[str]) -> None:
    assert example("tritonclient_unary.py", with_unary.grpc_url) == f"{answers[0]}\n"


@NEEDS_CURL
def test_curl(server: Any, answers: list[str]) -> None:
    address = server.http_url.removeprefix("http://")
    answer = json.loads(example("generate.sh", address))
    assert answer["text_output"] == answers[0]
    events = re.findall(r"^data: (.+)$", example("generate_stream.sh", address), re.M)
    pieces = [json.loads(event)["text_output"] for event in events]
    assert len(pieces) > 2
    assert "".join(pieces) == answers[0]


@NEEDS_NODE
def test_javascript(server: Any, answers: list[str]) -> None:
    assert example("generate_stream.mjs", server.http_url.removeprefix("http://")) == answers[0]


def test_run_from_python(cli: Cli, demo: dict[str, Any]) -> None:
    printed = example("run_recipe.py", "configs/demo.yaml", str(cli.build))
    lines = printed.splitlines()
    assert [line.split() for line in lines[: len(demo["stages"])]] == [
        [stage["stage"], "cached"] for stage in demo["stages"]
    ]
    report = json.loads((Path(demo["outputs"]) / "report.json").read_text())
    assert f"perplexity: {report['quality']['perplexity']['value']:.4f}" in lines
    assert lines[-1] == f"outputs: {demo['outputs']}"


def test_the_readme_lists_every_script() -> None:
    text = (EXAMPLES / "README.md").read_text()
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".mjs")}
    assert set(re.findall(r"\]\((\w+\.\w+)\)", text)) == scripts
    tested = Path(__file__).read_text()
    assert all(f'"{name}"' in tested for name in scripts)

"""llama.cpp itself, as the package xllamacpp has it, in a process of its own.

``python -m tests.llama_cpp`` reads one JSON document from its standard input: a list of
``{"file", "ids", "texts"}``. For each it starts llama.cpp's server on the GGUF file, in float32 and
without flash attention, and writes what it says: ``next`` (the most likely tokens behind ``ids``
with their log probabilities), ``greedy`` (the tokens that follow) and ``tokens`` (the ids of each
text).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GREEDY = 12


def ask(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Asks llama.cpp about files; raises AssertionError with what it said where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.llama_cpp"],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        timeout=280,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("answers: ")]
    assert answers, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(answers[0].removeprefix("answers: "))
    return found


def _serve(file: str) -> str:
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = file
    asked.n_ctx, asked.n_parallel = 256, 1
    asked.hostnames, asked.port = ["127.0.0.1"], 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(asked)
    _RUNNING.append(server)
    address: str = server.listening_address
    return address


_RUNNING: list[Any] = []


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    url = _serve(question["file"])
    greedy = {
        "prompt": question["ids"],
        "n_predict": GREEDY,
        "temperature": 0,
        "n_probs": 20,
        "return_tokens": True,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    said = _post(f"{url}/completion", greedy)
    return {
        "next": {
            row["id"]: row["logprob"] for row in said["completion_probabilities"][0]["top_logprobs"]
        },
        "greedy": said["tokens"],
        "tokens": [
            _post(f"{url}/tokenize", {"content": text, "add_special": True})["tokens"]
            for text in question.get("texts", ())
        ],
    }


def main() -> None:
    """Answers what is asked over standard input."""
    answers = [_answer(question) for question in json.load(sys.stdin)]
    print("answers: " + json.dumps(answers), flush=True)
    # Its servers run in threads that nobody can stop.
    os._exit(0)


if __name__ == "__main__":
    main()

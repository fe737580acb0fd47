"""Starts the real server on the repository and measures it under load; there is no pass or fail."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from pipeline.client_errors import client_errors
from pipeline.dependencies import versions
from pipeline.economics.rates import processor
from pipeline.processor import processor_name
from pipeline.recipe.schema import Recipe
from pipeline.source.texts import text_digest
from pipeline.stages.base import Stage, StageContext
from pipeline.stages.served import CLIENT, LOG_NAME, TOOLS, code_digest, needs, own_server

RESULT_NAME = "bench.json"
TEXT_KEY = "evaluate.text"
_PROMPTS = 64
_WORDS_PER_PROMPT = 24
# No tokenizer needs more tokens for a common word, and prompts must fit the engine.
_TOKENS_PER_WORD = 8
# Prefill is as fast with longer ones, and slow machines are not kept busy for minutes.
_LONGEST_PROMPT = 512


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns the load, and how long a prompt may be."""
    return {
        **recipe.section("bench"),
        "compile": recipe.compile.model_dump(mode="json", include={"max_input_len"}),
    }


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers what measures and what is measured with: code, tools, machine, and prompts' text.

    The code is the load generator, the client and what starts the server.

    Raises:
        RecipeError: The text cannot be read.
    """
    return {**measured_with(), "text": text_digest(recipe, TEXT_KEY), **own_server(recipe)}


def measured_with() -> dict[str, Any]:
    """Returns what decides a speed beside the server, the load and the moment."""
    return {
        "code": code_digest(CLIENT, "bench", "triton", "verdict/estimate.py"),
        "tools": versions(TOOLS),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Describes what the numbers depend on: the processor, and the CPUs this process may use."""
    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def prompts_from(path: Path | None, max_input_len: int) -> list[str]:
    """Takes the beginnings of a file's texts, or a few neutral sentences without a file.

    Args:
        path: ``.txt`` or ``.jsonl``.
        max_input_len: Prompt tokens that the engine takes.

    Raises:
        UsageError: The file is not usable.
    """
    from pipeline.bench import PROMPTS
    from pipeline.source.lines import read_texts

    # One word's room is for the word that each prompt gets in front.
    words = max(1, min(_WORDS_PER_PROMPT, max_input_len // _TOKENS_PER_WORD - 1))
    lines = read_texts(path) if path else PROMPTS
    texts = [line if isinstance(line, str) else line.words for line in lines[:_PROMPTS]]
    return [" ".join(text.split()[:words]) for text in texts]


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``bench.json``, the processor's rates and the server's log.

    It returns what ``bench.json`` holds: what :func:`pipeline.bench.load.measure` returns,
    ``machine``, ``memory_bytes`` (see :class:`pipeline.triton.memory.Memory`, after the load) and
    ``memory_unknown``: why there is no such number, or None.

    Raises:
        ServerError: The server did not start, or a request failed.
        UnsupportedError: This machine cannot serve the target.
        MissingDependencyError: nvidia-pytriton or tritonclient is not installed.
    """
    from pipeline.bench import measure
    from pipeline.serving import open_server

    recipe, bench = context.recipe, context.recipe.bench
    source = Path(recipe.evaluate.text) if recipe.evaluate else None
    prompts = prompts_from(source, recipe.compile.max_input_len)
    repository = context.inputs["repository"]
    target = str(repository.facts["target"])
    with (
        client_errors(),
        open_server(repository.path, context.output / LOG_NAME, target=target) as server,
        context.progress.task("load test", bench.rounds) as task,
    ):
        results = measure(
            server.url,
            concurrency=bench.concurrency,
            requests=bench.requests,
            rounds=bench.rounds,
            output_tokens=bench.output_tokens,
            input_tokens=min(recipe.compile.max_input_len, _LONGEST_PROMPT),
            prompts=prompts,
            on_round=lambda _number: task.advance(),
            on_measured=lambda measurement: context.progress.note(str(measurement)),
        )
        memory = server.memory()
    # The server has ended. What its speed is held against belongs to the same minute.
    processor(context.output, None)
    results["machine"] = machine()
    results["memory_bytes"], results["memory_unknown"] = memory.bytes, memory.why
    text = json.dumps(results, indent=1)
    (context.output / RESULT_NAME).write_text(f"{text}\n", encoding="utf-8")
    return results


STAGE = Stage(
    name="bench",
    version=4,
    title="measure the repository under load",
    inputs=("repository",),
    run=run,
    section=section,
    material=material,
    needs=needs,
)

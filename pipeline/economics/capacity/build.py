"""What a finished build says of its server: the engine's limits, and what ``bench`` measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.economics.capacity.answer import Subject
from pipeline.economics.capacity.loads import load_of, loads_of_report
from pipeline.economics.capacity.records import read_samples
from pipeline.economics.capacity.server import Limits
from pipeline.errors import UsageError
from pipeline.reading.json_text import read_json
from pipeline.recipe.schema import Recipe

REPORT = "report.json"
_SIMULATED_POLICY = "guaranteed_no_evict"
_FIX = "Name build/<recipe name> of a run that was finished"
# What the bench stage asks of a long prompt (pipeline/stages/bench.py, pipeline/bench/visit.py).
_LONGEST_PROMPT, _SHARE_OF_TARGET = 512, 0.9


def read_build(folder: Path) -> tuple[dict[str, Any], Recipe]:
    """Reads the report of a build, and the recipe in it.

    Args:
        folder: ``build/<recipe name>``.

    Raises:
        UsageError: There is none, or it cannot be read.
    """
    path = folder / REPORT
    try:
        report = read_json(path, finite=False)
        recipe = Recipe.model_validate(report["recipe"])
        for key in ("name", "load", "size", "quality", "stages"):
            report[key]
    except OSError as error:
        raise UsageError(
            "there is no report of a build here",
            where=str(path),
            why=error.strerror or str(error),
            fix=_FIX,
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            "this is not the report of a build",
            where=str(path),
            why=_in_words(error),
            fix=_FIX,
        ) from error
    return report, recipe


def _in_words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, ("recipe", *first["loc"])))
        return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return " ".join(str(error).split())[:200] or type(error).__name__


def limits_of(recipe: Recipe, step_tokens: int, kv_tokens: int | None = None) -> Limits:
    """Returns what an engine of a recipe admits.

    Args:
        recipe: ``compile`` and ``serve`` have its sizes.
        step_tokens: Tokens of a step, as the target says.
        kv_tokens: Tokens that the KV cache holds, where the recipe does not say; None is room for
            ``max_batch_size`` sequences of ``max_seq_len``.
    """
    build, serve = recipe.compile, recipe.serve
    block = build.tokens_per_block
    tokens = serve.max_tokens_in_paged_kv_cache or kv_tokens
    blocks = tokens // block if tokens else build.max_batch_size * -(-build.max_seq_len // block)
    return Limits(
        slots=build.max_batch_size,
        kv_blocks=blocks,
        block_tokens=block,
        step_tokens=step_tokens,
        queue=serve.max_queue_size,
        chunked=serve.enable_chunked_context,
    )


def left_out(recipe: Recipe, kv_tokens: int | None) -> list[str]:
    """Says what of a recipe's engine is simulated otherwise.

    Args:
        recipe: ``serve`` has its policy and the size of its KV cache.
        kv_tokens: As of :func:`limits_of`.
    """
    serve, said = recipe.serve, []
    if serve.batch_scheduler_policy != _SIMULATED_POLICY:
        said.append(
            f"The recipe says {serve.batch_scheduler_policy}, and {_SIMULATED_POLICY} is "
            "simulated: requests start later than they would, and none is evicted."
        )
    if serve.max_tokens_in_paged_kv_cache is None and kv_tokens is None:
        said.append(
            f"The KV cache is taken to hold {recipe.compile.max_batch_size} sequences of "
            f"{recipe.compile.max_seq_len} tokens; --kv-tokens says another size."
        )
    return said


def subjects(
    report: Mapping[str, Any], recipe: Recipe, limits: Limits, samples: Path | None
) -> tuple[Subject, Subject | None, dict[str, Any]]:
    """Gathers what was measured of a build, and of what it was compared with.

    Args:
        report: From :func:`read_build`.
        recipe: From :func:`read_build`.
        limits: What the engine admits; those of a baseline are taken to be the same.
        samples: What ``bench --samples`` wrote; None takes the ``bench`` stage of the run.

    Returns:
        The build, its baseline if there is one, and where the measurements come from, as JSON
        values.

    Raises:
        UsageError: Nothing was measured, or the samples cannot be read.
    """
    name = str(report["name"])
    if samples is not None:
        found = read_samples(samples)
        made = [
            Subject(name if not place else server, loads, limits)
            for place, (server, levels) in enumerate(found.items())
            if (loads := [load_of(one) for one in levels if one.counted])
        ]
        if not made:
            raise UsageError(
                "no request of these samples was answered",
                where=str(samples),
                fix="Measure again: trtllm-pipeline bench --samples FILE.jsonl",
            )
        source = {"kind": "samples", "path": str(samples), "created": None}
        return made[0], made[1] if len(made) > 1 else None, source
    try:
        loads = loads_of_report(report["load"]) if report["load"] else []
        known = _prompt_token(report["load"], recipe) if loads else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(
            "the load test in this report cannot be read",
            where=str(report["name"]),
            why=repr(error),
            fix=_FIX,
        ) from error
    if not loads:
        raise UsageError(
            "nothing was measured of this build that tells the time to a first token",
            where=name,
            fix="Give --samples a file of trtllm-pipeline bench --samples FILE.jsonl",
        )
    source = {"kind": "report", "path": None, "created": str(report["created"])}
    return Subject(name, loads, limits, known), None, source


def _prompt_token(load: Mapping[str, Any], recipe: Recipe) -> float | None:
    """Seconds of a prompt's token: what a long prompt takes longer than a short one, alone."""
    rate = load["prefill_tokens_per_second"] and load["prefill_tokens_per_second"]["value"]
    alone = next((row for row in load["measurements"] if row["concurrency"] == 1), None)
    if not rate or alone is None or not alone["ttft_ms"]:
        return None
    long = _SHARE_OF_TARGET * min(recipe.compile.max_input_len, _LONGEST_PROMPT)
    short = alone["input_tokens"] / alone["requests"]
    if long < 2 * short:
        return None
    return max(0.0, float(long / rate - alone["ttft_ms"]["mean"] / 1000) / float(long - short))

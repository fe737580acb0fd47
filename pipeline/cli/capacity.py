"""The command ``capacity``."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Output
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.economics.capacity.sizing import Objective, Traffic
    from pipeline.recipe.schema import CostSection

_TRAFFIC, _OBJECTIVE = "Traffic", "Objective"
MOST = 1e9
"""Of requests or tokens a second, or of a price."""


def capacity(
    *,
    build: Annotated[Path, typer.Argument(metavar="BUILD", help="A finished build: build/NAME.")],
    requests_per_second: Annotated[
        float | None,
        typer.Option(help="Requests that come in a second.", rich_help_panel=_TRAFFIC),
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            help="Tokens that are generated in a second, instead.", rich_help_panel=_TRAFFIC
        ),
    ] = None,
    input_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Tokens of a prompt: a number, uniform:LOW,HIGH, normal:MEAN,STDDEV, "
            "lognormal:MEAN,MEDIAN.",
            rich_help_panel=_TRAFFIC,
        ),
    ] = None,
    output_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH", help="Tokens of an answer, likewise.", rich_help_panel=_TRAFFIC
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of timestamp (ms), input_length and output_length, instead of lengths.",
            rich_help_panel=_TRAFFIC,
        ),
    ] = None,
    multiply: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIMES,...",
            help="Also so many times as much traffic; 10,100 by default.",
            rich_help_panel=_TRAFFIC,
            show_default=False,
        ),
    ] = None,
    time_to_first_token_ms: Annotated[
        float,
        typer.Option(
            "--time-to-first-token-ms",
            "--ttft-ms",
            help="The longest wait.",
            rich_help_panel=_OBJECTIVE,
        ),
    ],
    inter_token_ms: Annotated[
        float,
        typer.Option(
            "--inter-token-ms",
            "--itl-ms",
            help="The most for each token after the first.",
            rich_help_panel=_OBJECTIVE,
        ),
    ],
    percentile: Annotated[
        float,
        typer.Option(
            help="How many of a hundred requests must keep each.", rich_help_panel=_OBJECTIVE
        ),
    ] = 95.0,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="What bench --samples wrote (.jsonl); the run's own bench stage by default.",
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour", "--price", help="Of one server, instead of cost.price_per_hour."
        ),
    ] = None,
    headroom: Annotated[
        float,
        typer.Option(help="Share of the most measured tokens/s that no server is asked for."),
    ] = 0.1,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens that the KV cache holds, where the recipe does not say; by default "
            "max_batch_size sequences of max_seq_len.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    report: Annotated[
        bool, typer.Option("--report", help="Also put it into the report of the build.")
    ] = False,
    output: Output,
) -> None:
    """Compute how many servers a traffic takes and what they cost, by simulation."""
    from pipeline.cli.console import fitted, print_json, progress_for
    from pipeline.economics.capacity.answer import Asked, beside
    from pipeline.economics.capacity.answer import capacity as answer
    from pipeline.economics.capacity.build import left_out, limits_of, read_build, subjects
    from pipeline.economics.capacity.lines import heading, print_capacity, sentences
    from pipeline.economics.interleaved import beside_16_bit
    from pipeline.targets import get_target

    traffic = _traffic(requests_per_second, tokens_per_second, input_tokens, output_tokens, trace)
    objective = _objective(time_to_first_token_ms, inter_token_ms, percentile)
    factors = _factors(multiply)
    found, recipe = read_build(build)
    if not 0 <= headroom < 1:
        raise UsageError(f"--headroom must be at least 0 and below 1, not {headroom:g}")
    price = _price(price_per_hour, recipe.cost)
    step_tokens = get_target(recipe.compile.target).step_tokens(recipe)
    limits = limits_of(recipe, step_tokens, kv_tokens)
    own, baseline, source = subjects(found, recipe, limits, samples)
    progress = progress_for(output.json, output.verbosity)
    steps = 1 + (baseline is not None) + len({1.0, *factors})
    with progress.task("capacity", steps) as task:

        def on_step(_words: str) -> None:
            task.advance()

        document = answer(
            own,
            Asked(traffic, objective, factors, price, recipe.cost.currency, seed, headroom),
            baseline=baseline,
            source=source,
            on_step=on_step,
        )
    document["remarks"] += left_out(recipe, kv_tokens)
    document["sixteen_bit"] = beside(beside_16_bit(build, found), price, recipe.cost.utilization)
    if report:
        from pipeline.economics.capacity.kept import keep_capacity
        from pipeline.stages.report import write_again

        keep_capacity(build, found, document)
        write_again(build, found)
    if output.json:
        print_json(document)
        return
    print(*fitted([heading(document)], sys.stdout), sep="\n", end="\n\n")
    print_capacity(document)
    for sentence in sentences(document):
        print("", *fitted([sentence], sys.stdout), sep="\n")


def _traffic(
    requests: float | None,
    tokens: float | None,
    inputs: str | None,
    outputs: str | None,
    trace: Path | None,
) -> Traffic:
    from pipeline.bench.traffic.lengths import parse_lengths
    from pipeline.bench.traffic.traces import read_trace
    from pipeline.economics.capacity.sizing import Traffic

    if requests is not None and tokens is not None:
        raise UsageError(
            "--requests-per-second and --tokens-per-second exclude each other",
            fix="Give one of them",
        )
    for name, value in (("--requests-per-second", requests), ("--tokens-per-second", tokens)):
        if value is not None:
            _check_amount(name, value)
    if trace is not None:
        if inputs is not None or outputs is not None:
            raise UsageError(
                "--trace excludes --input-tokens and --output-tokens",
                why="A trace says how long its requests are",
                fix="Leave one of them out",
            )
        rows = read_trace(trace)
        last = rows[-1].at_s
        made = Traffic(
            requests or (len(rows) - 1) / last if last else requests or 1.0, None, None, rows
        )
    else:
        if inputs is None or outputs is None or (requests is None and tokens is None):
            raise UsageError(
                "the traffic is not stated",
                why="It needs a rate and the lengths of prompts and answers, or a trace",
                fix="Give --requests-per-second 5 --input-tokens 300 --output-tokens 100, or "
                "--trace FILE",
            )
        lengths = parse_lengths(inputs, "--input-tokens"), parse_lengths(outputs, "--output-tokens")
        made = Traffic(requests or 1.0, *lengths)
    return made.times(tokens / made.tokens_per_second) if tokens is not None else made


def _objective(ttft_ms: float, itl_ms: float, percent: float) -> Objective:
    from pipeline.economics.capacity.sizing import Objective

    for name, value in (("--time-to-first-token-ms", ttft_ms), ("--inter-token-ms", itl_ms)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} must be above 0 milliseconds, not {value:g}")
    if not 0 < percent < 100:
        raise UsageError(
            f"--percentile must be above 0 and below 100, not {percent:g}",
            fix="Give 95 for a limit that 95 of 100 requests keep",
        )
    return Objective(ttft_ms / 1000, itl_ms / 1000, percent)


def _factors(given: list[str] | None) -> list[float]:
    words = [word for part in given or ["10,100"] for word in part.replace(",", " ").split()]
    try:
        factors = [float(word) for word in words]
    except ValueError:
        factors = [math.nan]
    if not all(math.isfinite(factor) and 0 < factor <= 1000 for factor in factors):
        raise UsageError(
            f"--multiply {','.join(words)} is no list of numbers up to 1000",
            fix="Give how many times as much traffic, e.g. --multiply 10,100",
        )
    return factors


def _price(given: float | None, cost: CostSection) -> float | None:
    if given is None:
        return cost.price_per_hour
    return _check_amount("--price-per-hour", given)


def _check_amount(name: str, value: float) -> float:
    # The upper end keeps sums of it finite, and is beyond what anybody has.
    if not 0 < value <= MOST:
        raise UsageError(f"{name} must be above 0 and at most {MOST:g}, not {value:g}")
    return value

"""How far the simulation of `capacity` is from a real server: the same traffic on both.

    python benchmarks/capacity.py build/tiny-llama-int4-awq
    python benchmarks/capacity.py BUILD --seconds 60 --rounds 6 --shares 0.5 0.8 0.95 --json FILE

Starts the real server of a build. Closed loops are what the simulation is fitted to; open loops, at
shares of what the server finished in the widest of them, are what it has to foretell, and nothing
is fitted to them. All are measured in turns in the same rounds. The simulation gets the arrivals
and lengths that the real server got, and in each round the pace that the machine had in the closed
loops of that round, so what else the machine does hits both alike. Prints a Markdown table of
ratios, simulated over measured, in pairs of a round, with 95 % intervals over the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.bench.intervals import over_rounds
from pipeline.bench.traffic import measure_load, write_samples
from pipeline.bench.traffic.fleet import Server as Address
from pipeline.bench.traffic.lengths import parse_lengths
from pipeline.bench.traffic.schedule import CLOSED, OPEN, Level, Sizes
from pipeline.economics.capacity.answer import fit_values
from pipeline.economics.capacity.build import limits_of, read_build
from pipeline.economics.capacity.fit import WHILE_S, Fit, fit, paces
from pipeline.economics.capacity.lines import load_words
from pipeline.economics.capacity.loads import Load, Times, load_of
from pipeline.economics.capacity.records import Measured, read_samples
from pipeline.economics.capacity.server import Pace
from pipeline.errors import PipelineError
from pipeline.serving import serving
from pipeline.tables import number
from pipeline.targets import get_target

AGAIN = 5
SHOWN: dict[str, Callable[[Times], float | None]] = {
    "tokens/s": lambda times: times.tokens_per_second,
    "first p50": lambda times: times.at("ttft", 50),
    "first p95": lambda times: times.at("ttft", 95),
    "per token p50": lambda times: times.at("itl", 50),
    "per token p95": lambda times: times.at("itl", 95),
}


def main() -> None:
    arguments = parse()
    try:
        results = check(arguments)
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from error
    print(results["text"])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("build", type=Path, metavar="BUILD", help="build/NAME")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 4, 16], help="of closed loops"
    )
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.5, 0.8, 0.95], help="rates of open loops"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", help="requests/s of open loops, instead of shares"
    )
    parser.add_argument("--seconds", type=float, default=36.0, help="measured at each load")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--input-tokens", default="uniform:16,160")
    parser.add_argument("--output-tokens", default="uniform:16,96")
    parser.add_argument("--clients", type=int, default=1, help="processes that send")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="keep what every request measured there")
    parser.add_argument("--again", action="store_true", help="measure nothing, read --samples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures a build, and holds the simulation against it."""
    _, recipe = read_build(arguments.build)
    limits = limits_of(recipe, get_target(recipe.compile.target).step_tokens(recipe))
    with tempfile.TemporaryDirectory() as folder:
        samples = arguments.samples or Path(folder) / "samples.jsonl"
        if not arguments.again:
            measure(arguments, samples, Path(folder))
        (levels,) = read_samples(samples).values()
    loads = [load_of(one) for one in levels]
    closed = [load for load in loads if load.level.kind == CLOSED]
    fitted = fit(closed, limits)
    rows = [compare(one, closed, fitted) for one in levels]
    return {"loads": rows, "fit": fit_values(fitted), "text": text(rows, fitted)}


def measure(arguments: argparse.Namespace, samples: Path, folder: Path) -> None:
    """Writes what every request measured into a file."""
    sizes = Sizes(
        parse_lengths(arguments.input_tokens, "--input-tokens"),
        parse_lengths(arguments.output_tokens, "--output-tokens"),
    )
    closed = [Level(CLOSED, streams) for streams in arguments.streams]
    repository = arguments.build / "repository"
    with serving(repository, folder / "server.log") as server:
        servers = {"server": Address(server.grpc_url)}
        options = {"clients": arguments.clients, "seed": arguments.seed}
        rates = arguments.rates
        if rates is None:
            # The widest loop alone says which there are to be.
            trial, _ = measure_load(servers, closed[-1:], sizes, seconds=8.0, rounds=1, **options)
            most = trial["measurements"][0]["requests_per_second"]
            print(f"trial: {most:g} requests/s", file=sys.stderr)
            rates = [round(share * most, 2) for share in arguments.shares]
        opened = [Level(OPEN, rate) for rate in rates]
        _, rows = measure_load(
            servers,
            [*closed, *opened],
            sizes,
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            on_round=lambda number: print(f"round {number}", file=sys.stderr),
            **options,
        )
    write_samples(samples, iter(rows))


def compare(one: Measured, closed: Sequence[Load], fitted: Fit) -> dict[str, Any]:
    """One load: what was measured, and how many times as much is simulated, in pairs of a round.

    The machine is faster in one round than in another, so a round is simulated at the pace that the
    closed loops had in the same round.
    """
    paces_of = [paces(load, fitted.server.steps) for load in closed]
    load = load_of(one)
    found: dict[str, list[float]] = {name: [] for name in SHOWN}
    for place, made in enumerate(one.rounds):
        played = [rounds[place] for rounds in paces_of if rounds[place]]
        server = replace(fitted.server, pace=Pace(WHILE_S, played))
        measured = load_of(Measured(one.level, [made], 0))
        simulated, _ = measured.replay(server, AGAIN)
        for name, of in SHOWN.items():
            ours, theirs = of(simulated), of(measured.times)
            if ours and theirs:
                found[name].append(ours / theirs)
    is_closed = load.level.kind == CLOSED
    return {
        "load": load.level.kind,
        "concurrency": int(load.level.amount) if is_closed else None,
        "rate": None if is_closed else load.level.amount,
        "requests": load.requests,
        "failed": load.failed,
        "measured": {name: of(load.times) for name, of in SHOWN.items()},
        "by_round": found,
        "ratios": {name: over_rounds(ratios).as_dict() for name, ratios in found.items()},
    }


def text(rows: Sequence[dict[str, Any]], fitted: Fit) -> str:
    lines = [
        "| load | requests | " + " | ".join(SHOWN) + " |",
        "|---|---:|" + "---:|" * len(SHOWN),
    ]
    for row in rows:
        cells = [
            f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
            if (one := row["ratios"][name])["low"] is not None
            else number(one["value"], 3)
            for name in SHOWN
        ]
        fitted_to = ", fitted to" if row["load"] == CLOSED else ""
        lines.append(
            f"| {load_words(row)}{fitted_to} | {row['requests']} | " + " | ".join(cells) + " |"
        )
    lines += ["", f"Median error of the fit in rounds that were left out: {fitted.error:.1%}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

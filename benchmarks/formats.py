"""How much faster one build is than another: their servers side by side, measured in turns.

    python benchmarks/formats.py build/tiny-llama-float16 build/tiny-llama-int4-awq
    python benchmarks/formats.py BUILD... --baseline NAME --streams 1 32 --seconds 60 --json FILE

Starts a real server for every build and keeps them all running; only one of them gets requests at a
time. Every round visits every server at every number of streams, so that what else the machine does
hits all alike; a ratio compares what was measured in the same round. See
pipeline/bench/interleaved.py for the schedule and pipeline/bench/intervals.py for the statistics.
Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.bench import measure_interleaved
from pipeline.errors import PipelineError
from pipeline.serving import serving
from pipeline.tables import number


def main() -> None:
    arguments = parse()
    repositories = {build.resolve().name: find_repository(build) for build in arguments.builds}
    if len(repositories) < len(arguments.builds):
        raise SystemExit("two builds have the same name")
    try:
        results = measure(repositories, arguments)
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from error
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("builds", type=Path, nargs="+", metavar="BUILD", help="build/NAME")
    parser.add_argument("--baseline", help="what the others are compared with; else the first")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=30.0, help="measured of each server")
    parser.add_argument("--tokens", type=int, default=32, help="generated per request")
    parser.add_argument("--input-tokens", type=int, default=256, help="of the prompts of prefill")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    return parser.parse_args()


def find_repository(build: Path) -> Path:
    """The repository of a build folder, or the folder itself if it is one."""
    return build / "repository" if (build / "repository").is_dir() else build


def measure(repositories: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``measure_interleaved`` returns, and each server's memory after it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for name, repository in repositories.items():
            print(f"starting {name}", file=sys.stderr)
            servers[name] = stack.enter_context(serving(repository, folder / f"{name}.log"))
        results = measure_interleaved(
            {name: server.grpc_url for name, server in servers.items()},
            baseline=arguments.baseline or next(iter(servers)),
            concurrency=arguments.streams,
            seconds=arguments.seconds,
            output_tokens=arguments.tokens,
            input_tokens=arguments.input_tokens,
            seed=arguments.seed,
            on_round=lambda count, share: print(f"round {count}: {share:.0%}", file=sys.stderr),
        )
        for name, server in servers.items():
            results["servers"][name]["memory_bytes"] = server.memory().bytes
    return results


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    tokens, rounds, baseline = (results[key] for key in ("output_tokens", "rounds", "baseline"))
    columns = ("tokens/s", f"of {baseline}", "prefill tokens/s", "decode tokens/s")
    columns = ("streams", "build", *columns, "first token ms", "per token ms", "memory MiB")
    lines = [
        f"{tokens} tokens per request, {rounds} rounds, in brackets the 95 % interval",
        "",
        f"| {' | '.join(columns)} |",
        "|---:|---" + "|---:" * (len(columns) - 2) + "|",
    ]
    levels = range(len(results["servers"][baseline]["measurements"]))
    for level in levels:
        for name, server in results["servers"].items():
            row = server["measurements"][level]
            memory = server["memory_bytes"]
            cells = [
                row["concurrency"],
                name,
                estimate(row["tokens_per_second"]),
                compared(row),
                estimate(row["prefill_tokens_per_second"]),
                estimate(row["decode_tokens_per_second"]),
                median(row["ttft_ms"]),
                median(row["itl_ms"]),
                "-" if memory is None else f"{memory / 2**20:.0f}",
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def compared(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return "-"
    return estimate(row["ratio"]) + ("" if row["difference"] else ", no difference")


def estimate(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return "-"
    value, low, high = (number(found[key], 3) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def median(times: Mapping[str, float] | None) -> str:
    return "-" if times is None else number(times["p50"], 3)


if __name__ == "__main__":
    main()

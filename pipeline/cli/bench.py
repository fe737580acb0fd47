"""The command ``bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Connection, Output
from pipeline.errors import UsageError


def bench(
    *,
    concurrency: Annotated[
        list[str] | None,
        typer.Option(metavar="STREAMS,...", help="Streams kept open together; 1,8 by default."),
    ] = None,
    requests: Annotated[
        int, typer.Option(help="Requests per number of streams, spread over the rounds.")
    ] = 40,
    rounds: Annotated[int, typer.Option(help="How often each number is measured, in turns.")] = 5,
    output_tokens: Annotated[int, typer.Option(help="Tokens per request.")] = 32,
    input_tokens: Annotated[
        int, typer.Option(help="Tokens of the prompts that prefill is measured with, about.")
    ] = 256,
    server: Connection,
    output: Output,
) -> None:
    """Measure throughput and latency of a running server."""
    from pipeline.bench import measure, print_results
    from pipeline.cli.console import print_json, progress_for

    levels = _levels(concurrency) or [1, 8]
    progress = progress_for(output.json, output.verbosity)
    with server.address() as address, progress.task("load test", rounds) as task:
        results = measure(
            address,
            model=server.model,
            concurrency=levels,
            requests=requests,
            rounds=rounds,
            output_tokens=output_tokens,
            input_tokens=input_tokens,
            timeout=server.timeout,
            tls=server.tls,
            headers=server.headers,
            on_round=lambda _number: task.advance(),
            on_measured=lambda measurement: progress.note(str(measurement)),
        )
    if output.json:
        print_json(results)
    else:
        print_results(results)


def _levels(given: list[str] | None) -> list[int]:
    """The numbers in an option that may be repeated and may hold several with commas."""
    words = [word.strip() for part in given or () for word in part.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(
            f"--concurrency {','.join(words)} is no list of numbers",
            fix="Give how many streams are kept open together, e.g. --concurrency 1,8,32",
        )
    return [int(word) for word in words]

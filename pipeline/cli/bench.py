"""The command ``bench``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.bench_load import LoadOptions
from pipeline.cli.options import Connection, Output, served_path
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.bench.traffic.schedule import Level

INPUT_TOKENS = 256
LOAD_INPUT_TOKENS = 128
SERVER = "server"


def bench(
    *,
    concurrency: Annotated[
        list[str] | None,
        typer.Option(metavar="STREAMS,...", help="Streams kept open together; 1,8 by default."),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Requests per number of streams, spread over the rounds; 40 by default. A load "
            "lasts --duration instead.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each number is measured, in turns.")] = 5,
    output_tokens: Annotated[
        str, typer.Option(metavar="LENGTH", help="Tokens per request; of a load also as below.")
    ] = "32",
    input_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Tokens of the prompts that prefill is measured with, about; 256 by default. Of a "
            "load: of all prompts, 128 by default, or uniform:LOW,HIGH, normal:MEAN,STDDEV, "
            "lognormal:MEAN,MEDIAN.",
            show_default=False,
        ),
    ] = None,
    load: LoadOptions,
    server: Connection,
    output: Output,
) -> None:
    """Measure throughput and latency of a running server.

    With any option of a load, client processes of their own send for --duration.
    """
    if load.given or not (output_tokens.isdecimal() and (input_tokens or "1").isdecimal()):
        if requests is not None:
            raise UsageError(
                "--requests does not go with a load, which lasts as long as --duration says",
                fix="Leave --requests out, or the options of a load",
            )
        _bench_load(concurrency, rounds, output_tokens, input_tokens, load, server, output)
        return
    from pipeline.bench import measure, print_results
    from pipeline.cli.console import print_json, progress_for

    levels = _levels(concurrency) or [1, 8]
    progress = progress_for(output.json, output.verbosity)
    with server.address() as address, progress.task("load test", rounds) as task:
        results = measure(
            address,
            model=server.model,
            concurrency=levels,
            requests=40 if requests is None else requests,
            rounds=rounds,
            output_tokens=int(output_tokens),
            input_tokens=INPUT_TOKENS if input_tokens is None else int(input_tokens),
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


def _bench_load(
    concurrency: list[str] | None,
    rounds: int,
    output_tokens: str,
    input_tokens: str | None,
    load: LoadOptions,
    server: Connection,
    output: Output,
) -> None:
    from pipeline.bench.traffic import (
        Objectives,
        measure_load,
        print_load,
        remark_lines,
        write_samples,
    )
    from pipeline.bench.traffic.lengths import parse_lengths
    from pipeline.bench.traffic.samples import check_name
    from pipeline.bench.traffic.schedule import Sizes
    from pipeline.cli.console import fitted, print_json, progress_for

    if load.samples is not None:
        check_name(load.samples)

    trace = _trace(load, input_tokens)
    sizes = Sizes(
        parse_lengths(input_tokens or str(LOAD_INPUT_TOKENS), "--input-tokens"),
        parse_lengths(output_tokens, "--output-tokens"),
        trace,
    )
    levels = _loads(concurrency, load, sizes)
    objectives = None if load.goodput is None else Objectives.parse(load.goodput)
    _check_peer(load, server, levels)
    progress = progress_for(output.json, output.verbosity)
    with _servers(server, load.against) as (servers, baseline):
        peer = _peer(load, next(iter(servers.values())), server.model)
        # What a trace shows, it shows once; with another server intervals need rounds.
        shown = 1 if load.replays and load.against is None else rounds
        with progress.task("load", shown) as task:
            results, samples = measure_load(
                servers,
                levels,
                sizes,
                baseline=baseline,
                objectives=objectives,
                model=server.model,
                seconds=load.seconds,
                warmup=load.warmup,
                rounds=shown,
                clients=1 if load.clients is None else load.clients,
                seed=load.seed,
                timeout=server.timeout,
                peer=peer,
                on_round=lambda _number: task.advance(),
            )
    if load.samples is not None:
        write_samples(load.samples, iter(samples))
    if output.json:
        print_json(results)
    else:
        print_load(results)
        for remark in remark_lines(results):
            print("", *fitted([remark], sys.stdout), sep="\n")


def _trace(load: LoadOptions, input_tokens: str | None) -> list[Any]:
    if load.trace is None:
        return []
    if input_tokens is not None:
        raise UsageError(
            "--trace and --input-tokens exclude each other",
            why="A trace says how long its requests are",
            fix="Leave one of them out",
        )
    from pipeline.bench.traffic import read_trace

    return read_trace(load.trace)


def _loads(concurrency: list[str] | None, load: LoadOptions, sizes: Any) -> list[Level]:
    """The loads that the options ask for: rates, a trace at its own times, or streams."""
    from pipeline.bench.traffic.schedule import CLOSED, OPEN, TRACE, Level

    if load.rate is not None and concurrency:
        raise UsageError(
            "--rate and --concurrency exclude each other",
            why="An open loop sends at a rate whatever is open, a closed one when a stream is free",
            fix="Leave one of them out",
        )
    if load.rate is not None:
        return [Level(OPEN, rate) for rate in load.rates]
    if load.trace is not None and not concurrency:
        rows = [row for row in sizes.rows if row.at_s < load.seconds]
        return [Level(TRACE, len(rows) / max(rows[-1].at_s, 1.0))]
    return [Level(CLOSED, streams) for streams in dict.fromkeys(_levels(concurrency) or [1, 8])]


def _check_peer(load: LoadOptions, server: Connection, levels: list[Level]) -> None:
    if not load.perf_analyzer:
        return
    from pipeline.bench.traffic.schedule import CLOSED

    if load.against is not None or levels[0].kind != CLOSED:
        raise UsageError(
            "--perf-analyzer goes with one server and --concurrency alone",
            fix="Leave --against, --rate and --trace out",
        )
    if server.tls or server.headers:
        raise UsageError(
            "--perf-analyzer goes without TLS and headers",
            why="perf_analyzer sends no header over gRPC",
            fix="Measure on an address without them, or leave --perf-analyzer out",
        )


def _peer(load: LoadOptions, server: Any, model: str) -> Any:
    if not load.perf_analyzer:
        return None
    from pipeline.bench.traffic.peer import Peer, find_peer

    return Peer(find_peer(), server, model)


@contextmanager
def _servers(connection: Connection, against: str | None) -> Iterator[tuple[dict[str, Any], str]]:
    """The servers by name, and which of them is the baseline.

    One that is given as a repository is started, for as long as it is needed.
    """
    from pipeline.bench.traffic.fleet import Server
    from pipeline.serving import reachable

    with ExitStack() as stack:
        address = stack.enter_context(connection.address())
        own = Server(address, connection.tls, connection.headers)
        if against is None:
            yield {SERVER: own}, SERVER
            return
        folder = served_path(Path(against)) if Path(against).is_dir() else None
        other = stack.enter_context(reachable(None if folder else against, folder))
        name = connection.url or str(connection.repository)
        if name == against:
            name = f"{name} (again)"
        base = Server(other.grpc, *(() if folder else (connection.tls, connection.headers)))
        yield {name: own, against: base}, against


def _levels(given: list[str] | None) -> list[int]:
    """The numbers in an option that may be repeated and may hold several with commas."""
    words = [word.strip() for part in given or () for word in part.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(
            f"--concurrency {','.join(words)} is no list of numbers",
            fix="Give how many streams are kept open together, e.g. --concurrency 1,8,32",
        )
    return [int(word) for word in words]

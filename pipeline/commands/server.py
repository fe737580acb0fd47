"""Commands that start or talk to a server."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import JsonOption, RepositoryOption, UrlOption


def serve(
    repository: Annotated[Path, typer.Argument(help="A repository, e.g. build/<name>/repository.")],
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless asked.")] = (
        "127.0.0.1"
    ),
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 picks a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Metrics port; 0 picks a free one.")] = 8002,
    log: Annotated[Path, typer.Option(help="The server's log.")] = Path("triton.log"),
    devices: Annotated[
        str | None, typer.Option(help="GPUs, e.g. 0,1; the first ones unless given.")
    ] = None,
    orchestrator: Annotated[
        bool, typer.Option("--orchestrator", help="One server that spawns a worker per rank.")
    ] = False,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the command for a GPU, to copy.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Serve a repository with Triton until interrupted, after checking every file of it."""
    from pipeline.console import print_json
    from pipeline.serving import device_numbers, serve_command, serve_forever

    options: dict[str, Any] = {
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "devices": device_numbers(devices),
        "orchestrator": orchestrator,
    }
    if print_command:
        launch = serve_command(repository, **options)
        if json_output:
            print_json({"command": list(launch.command), "image": launch.image})
        else:
            print(launch.text)
        return

    def ready(addresses: dict[str, str], seconds: float) -> None:
        if json_output:
            print_json({**addresses, "ready_seconds": round(seconds, 3)})
            sys.stdout.flush()  # whoever reads the file or pipe waits for exactly this
        else:
            shown = ", ".join(f"{name} {address}" for name, address in addresses.items())
            print(f"ready in {seconds:.1f} s: {shown}; stop with Ctrl-C", flush=True)

    serve_forever(repository, log=log, on_ready=ready, **options)


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    url: UrlOption = None,
    repository: RepositoryOption = None,
    model: Annotated[str, typer.Option(help="tensorrt_llm_bls or ensemble.")] = "tensorrt_llm_bls",
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate, at most.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="0 or absent is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from this much probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text; repeatable.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for the whole answer.")] = 120.0,
    tls_root: Annotated[Path | None, typer.Option(help="PEM of the authority to trust.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of the client certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of the client's key.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Stream a completion to the terminal."""
    from pipeline.client import Client, GenerateRequest, Tls
    from pipeline.serving import reachable

    request = GenerateRequest(
        prompt=sys.stdin.read() if prompt == "-" else prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_words=tuple(stop or ()),
    )
    tls = Tls(tls_root, tls_cert, tls_key) if tls_root or tls_cert or tls_key else None
    pieces = []
    with (
        reachable(url, repository) as address,
        Client(address, model=model, timeout=timeout, tls=tls) as client,
    ):
        started = time.monotonic()
        with client.stream(request) as stream:
            for chunk in stream:
                pieces.append(chunk.text)
                if not json_output:
                    print(chunk.text, end="", flush=True)
        seconds = time.monotonic() - started
    if json_output:
        from pipeline.console import print_json

        print_json({"text": "".join(pieces), "pieces": len(pieces), "seconds": round(seconds, 3)})
    else:
        print()


def verify(
    url: UrlOption = None,
    repository: RepositoryOption = None,
    model: Annotated[str, typer.Option(help="tensorrt_llm_bls or ensemble.")] = "tensorrt_llm_bls",
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML here.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Run the conformance checks against a server, started here or anywhere."""
    from pipeline.console import print_json
    from pipeline.serving import reachable
    from pipeline.verify import render_table, run_conformance, to_json, to_junit

    with reachable(url, repository) as address:
        report = run_conformance(address, model=model)
    if junit:
        junit.write_text(to_junit(report), encoding="utf-8")
    if json_output:
        print_json(to_json(report))
    else:
        render_table(report)
    report.raise_for_failures()


def bench(
    url: UrlOption = None,
    repository: RepositoryOption = None,
    model: Annotated[str, typer.Option(help="tensorrt_llm_bls or ensemble.")] = "tensorrt_llm_bls",
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Streams kept open together; repeatable.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests per measurement.")] = 16,
    output_tokens: Annotated[int, typer.Option(help="Tokens per request.")] = 32,
    json_output: JsonOption = False,
) -> None:
    """Measure throughput and latency of a running server."""
    from pipeline.bench import measure, render_table
    from pipeline.console import print_json
    from pipeline.serving import reachable

    with reachable(url, repository) as address:
        results = measure(
            address,
            model=model,
            concurrency=concurrency or [1, 8],
            requests=requests,
            output_tokens=output_tokens,
        )
    if json_output:
        print_json(results)
    else:
        render_table(results)

"""The command ``serve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.options import EnvOption, Invocation, Output, new_file


def serve(
    *,
    context: typer.Context,
    repository: Annotated[Path, typer.Argument(help="A repository, e.g. build/<name>/repository.")],
    host: Annotated[str, typer.Option(help="Address to listen on; loopback by default.")] = (
        "127.0.0.1"
    ),
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 picks a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Metrics port; 0 picks a free one.")] = 8002,
    log: Annotated[Path, typer.Option(help="The server's log.", callback=new_file)] = Path(
        "triton.log"
    ),
    devices: Annotated[
        str | None, typer.Option(help="GPUs, e.g. 0,1; the first ones by default.")
    ] = None,
    orchestrator: Annotated[
        bool, typer.Option("--orchestrator", help="One server that spawns a worker per rank.")
    ] = False,
    mpirun: Annotated[
        bool, typer.Option("--mpirun", help="Start an engine of one rank under mpirun too.")
    ] = False,
    env: EnvOption = None,  # noqa: ARG001  its callback has done it
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the docker command of a GPU repository.")
    ] = False,
    output: Output,
) -> None:
    """Serve a repository with Triton until interrupted, after checking every file of it."""
    from pipeline.cli.console import print_json, print_warning
    from pipeline.serving import check_ports, device_numbers, serve_command, serve_forever

    print_warning(repository)
    check_ports({"grpc": grpc_port, "http": http_port, "metrics": metrics_port})
    options: dict[str, Any] = {
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "devices": device_numbers(devices),
        "orchestrator": orchestrator,
        "mpirun": mpirun,
    }
    if print_command:
        launch = serve_command(repository, **options)
        if output.json:
            print_json({"command": list(launch.command), "image": launch.image})
        else:
            print(launch.text)
        return

    def ready(addresses: dict[str, str], seconds: float) -> None:
        if output.json:
            print_json({**addresses, "ready_seconds": round(seconds, 3)})
            sys.stdout.flush()  # whoever reads the file or pipe waits for exactly this
            # It is the one document of this run; what may go wrong later is told on stderr.
            context.ensure_object(Invocation).json = False
        else:
            shown = ", ".join(f"{name} {address}" for name, address in addresses.items())
            print(f"ready in {seconds:.1f} s: {shown}; stop with Ctrl-C", flush=True)

    serve_forever(repository, log=log, on_ready=ready, **options)

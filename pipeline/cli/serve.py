"""The command ``serve``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.cli.options import EnvOption, Invocation, Output, served_path
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.gateway.running import RunningGateway
    from pipeline.triton.access import ServerTls
    from pipeline.triton.running import RunningServer

HTTP_PORT = 8000
"""Where HTTP is by itself, on targets that need it to know whether they are ready."""

GATEWAY_S = 60.0
"""Seconds that a gateway may take to see that the server, which is ready, is the right one."""

ACCESS = "Who may connect"

LONGEST_DRAIN_S = 86_400
"""A day. Beyond 24 days poll(2), with which the wait is made, takes no time."""


def serve(
    *,
    context: typer.Context,
    repository: Annotated[
        Path,
        typer.Argument(help="build/NAME, or a repository by itself.", callback=served_path),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; loopback by default.")] = (
        "127.0.0.1"
    ),
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 picks a free one.")] = 8001,
    http_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Also listen for HTTP, on this port, e.g. 8000; 0 picks a free one. Without it "
            "there is no HTTP endpoint (on a GPU: on loopback only).",
        ),
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Metrics port; 0 picks a free one.")] = 8002,
    openai: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Also answer OpenAI's API on this port, e.g. 9000; 0 picks a free one. The "
            "command gateway has more options.",
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The server's log, appended to; - is standard output, or standard error with "
            "--json. Default: -, but on a terminal triton.log beside the repository.",
        ),
    ] = None,
    report_every: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="How often a line says what was served, if anything was; 0 for never.",
        ),
    ] = 60.0,
    drain: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=LONGEST_DRAIN_S,
            help="How long a stop waits for requests in flight; by default 5, and 30 on a GPU.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="The server's certificate, for TLS on gRPC. CPU only.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="The certificate's key.", rich_help_panel=ACCESS),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="Let in only clients with a certificate of this authority.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    require_provenance: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="Serve it only if the owner of this public key signed it, as it is.",
        ),
    ] = None,
    key_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Ask each request for the key that this environment variable holds. CPU only.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    hung_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Restart a server that has shown no sign of life for so long; 0 for never. CPU "
            "only.",
        ),
    ] = 60.0,
    give_up_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="End when a server that was lost has not come back for so long; 0 for never. CPU "
            "only.",
        ),
    ] = 300.0,
    devices: Annotated[
        str | None, typer.Option(help="GPUs, e.g. 0,1; the first ones by default.")
    ] = None,
    orchestrator: Annotated[
        bool, typer.Option("--orchestrator", help="One server that spawns a worker per rank.")
    ] = False,
    mpirun: Annotated[
        bool, typer.Option("--mpirun", help="Start an engine of one rank under mpirun too.")
    ] = False,
    env: EnvOption = None,
    print_: Annotated[
        Literal["command", "systemd", "compose"] | None,
        typer.Option(
            "--print",
            help="Print what would serve it, and stop: Triton's command, a systemd unit, or a "
            "compose file.",
        ),
    ] = None,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="The same as --print command.")
    ] = False,
    output: Output,
) -> None:
    """Serve a repository until interrupted, after checking every file of it.

    With Triton, or with the engine's own server where its target has one.
    """
    from pipeline.cli.console import print_json, print_warning
    from pipeline.serving import check_ports, device_numbers
    from pipeline.triton.access import key_of

    print_warning(repository)
    ports = {"grpc": grpc_port, "metrics": metrics_port}
    if http_port is not None:
        ports["http"] = http_port
    check_ports(ports)
    tls, key = _tls(tls_cert, tls_key, tls_client_ca), key_of(os.environ, key_from)
    if openai is not None:
        _check_openai(openai, ports, tls)
        _check_gateway(repository)
    options: dict[str, Any] = {
        "host": host,
        "http_port": HTTP_PORT,
        **{f"{name}_port": port for name, port in ports.items()},
        "devices": device_numbers(devices),
        "orchestrator": orchestrator,
        "mpirun": mpirun,
        "exit_timeout_s": drain,
        "http": http_port is not None,
        "tls": tls,
        "key": key,
        "hung_after_s": hung_after,
        "give_up_after_s": give_up_after,
    }
    form = "command" if print_command else print_
    if form:
        from pipeline.service.printed import printed

        document = printed(
            form,
            repository,
            options,
            env or [],
            key_from=key_from,
            signer=require_provenance,
            openai=openai,
        )
        if output.json:
            print_json(document)
        else:
            print(document["text"].rstrip("\n"))
        return

    from pipeline.service.destination import destinations
    from pipeline.service.forever import serve_forever
    from pipeline.service.greeting import greeting
    from pipeline.service.relay import Relay, reopening

    server_log, voice = destinations(log, repository, json=output.json)

    def ready(addresses: dict[str, str], seconds: float) -> None:
        if output.json:
            print_json({**addresses, "ready_seconds": round(seconds, 3)})
            sys.stdout.flush()  # whoever reads the file or pipe waits for exactly this
            # It is the one document of this run; what may go wrong later is told on stderr.
            context.ensure_object(Invocation).json = False
        else:
            access = _access(tls, key_from)
            relay.say(greeting(repository, addresses, server_log.path, seconds, access=access))

    with Relay(server_log, voice) as relay, reopening(relay, wanted=log is not None):
        gateway = None if openai is None else _gateway(repository, host, openai, key, relay.say)
        serve_forever(
            repository,
            relay,
            ready,
            report_every=report_every,
            beside=gateway,
            signer=require_provenance,
            **options,
        )


def _check_openai(port: int, ports: Mapping[str, int], tls: ServerTls | None) -> None:
    """Refuses a gateway that could not be, before a server is started."""
    from pipeline.dependencies import check_installed
    from pipeline.gateway.requirements import REQUIREMENTS

    if not 0 <= port <= 65535:
        raise UsageError(f"--openai must be between 0 and 65535, not {port}")
    if port and port in ports.values():
        same = next(name for name, its in ports.items() if its == port)
        raise UsageError(
            f"--openai and --{same}-port are the same: {port}",
            fix="Choose another; 0 picks a free one",
        )
    if tls is not None:
        raise UsageError(
            "--openai does not go with --tls-cert",
            why="The gateway would need certificates of its own to reach the server",
            fix="Start trtllm-pipeline gateway --url grpcs://... with them beside the server",
        )
    check_installed(REQUIREMENTS)


def _check_gateway(repository: Path) -> None:
    """Refuses a gateway in front of a server that answers OpenAI's API itself."""
    from pipeline.serving import target_of
    from pipeline.store.artifact import MANIFEST
    from pipeline.targets import get_target

    if (repository / MANIFEST).is_file() and get_target(target_of(repository)).own_server:
        raise UsageError(
            "--openai is for Triton's models; this build's server answers OpenAI's API itself",
            where=str(repository),
            fix="Leave --openai out, and choose its port with --http-port",
        )


def _gateway(
    repository: Path, host: str, port: int, key: str | None, say: Callable[[str], object]
) -> Callable[[RunningServer], RunningGateway]:
    """What opens a gateway for the server once it is ready; its port is opened now."""
    from pipeline.gateway.desk import Options
    from pipeline.gateway.model import open_model
    from pipeline.gateway.opening import Servers, open_gateway
    from pipeline.gateway.running import listen
    from pipeline.service.forever import timestamp
    from pipeline.triton.access import KEY_HEADER

    model = open_model(repository)
    opened = listen(host, port, "--openai")

    def gateway(server: RunningServer) -> RunningGateway:
        return open_gateway(
            Servers.at(
                [f"{server.grpc_url}?metrics={server.metrics_port}"],
                headers={KEY_HEADER: key} if key else {},
            ),
            model,
            Options(keys=(key,) if key else ()),
            opened,
            drain_s=server.patience_s,
            patience_s=GATEWAY_S,
            say=lambda line: say(f"{timestamp()} {line}"),
        )

    return gateway


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """What the options about certificates say; they are looked at before anything else happens."""
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise UsageError(
            "TLS needs the server's certificate and its key",
            fix="Give both --tls-cert and --tls-key; trtllm-pipeline certificates DIR makes a set "
            "to try",
        )
    from pipeline.triton.access import ServerTls

    tls = ServerTls(cert, key, client_ca)
    tls.check()
    return tls


def _access(tls: ServerTls | None, key_from: str | None) -> list[str]:
    """What a client's command has to say besides the address."""
    words = []
    if tls is not None:
        words += ["--tls-root", "CA.pem"]
        if tls.client_authority is not None:
            words += ["--tls-cert", "CLIENT.pem", "--tls-key", "CLIENT.key"]
    if key_from is not None:
        words += ["--key-from", key_from]
    return words

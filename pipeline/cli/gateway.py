"""The command ``gateway``."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.invocation import Invocation
from pipeline.cli.options import SERVER, Certificates, Output, served_path
from pipeline.gateway.fleet.policy import Policy

if TYPE_CHECKING:
    from types import FrameType

    from pipeline.gateway.desk import Options

PORT = 9000
RESUMES, WAIT_S = Policy().resumes, Policy().wait_s
PATIENCE_S = 10.0
"""Seconds that a start waits for a server; a gateway may come up before its servers."""
CLIENTS = "Clients"
_NONE = Certificates()
_ASK = "--key-from NAME asks for a key"


@dataclass(frozen=True)
class Limits:
    """What clients may ask for, and who they are.

    Attributes:
        model_name: What they call the model.
        default_max_tokens: Tokens of an answer where the request does not say.
        max_requests: That are answered at a time.
        max_body: Megabytes of a request's body.
    """

    model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What clients call the model; repeatable, the first is the one that it says. "
            "Default: the build's name.",
            rich_help_panel=CLIENTS,
        ),
    ] = None
    default_max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of an answer where the request does not say; all that the context leaves "
            "by default.",
            rich_help_panel=CLIENTS,
        ),
    ] = None
    max_requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests that are answered at a time; more are told to ask again.",
            rich_help_panel=CLIENTS,
        ),
    ] = 512
    max_body: Annotated[
        int,
        typer.Option(
            metavar="MIB", min=1, help="The largest body of a request.", rich_help_panel=CLIENTS
        ),
    ] = 4

    def options(self, keys: tuple[str, ...]) -> Options:
        """Makes them what a gateway takes.

        Args:
            keys: Any of which opens it.
        """
        from pipeline.gateway.desk import MEGABYTE, Options

        return Options(
            keys=keys,
            most_bytes=self.max_body * MEGABYTE,
            most_requests=self.max_requests,
        )


@dataclass(frozen=True)
class ToServers:
    """How the gateway talks to the servers behind it.

    Attributes:
        certificates: The options about TLS and headers.
        server_key_from: The environment variable with the key that they ask for.
        timeout: Seconds for one request.
        resumes: How often one answer may go on.
        wait: Seconds that it waits for a server.
    """

    certificates: Certificates = _NONE
    server_key_from: Annotated[
        str | None,
        typer.Option(
            "--server-key-from",
            metavar="NAME",
            help="Send servers the key that this environment variable holds, as serve --key-from "
            "asks.",
            rich_help_panel=SERVER,
        ),
    ] = None
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds for one request, with all that it waits for servers.",
            rich_help_panel=SERVER,
        ),
    ] = 600.0
    resumes: Annotated[
        int,
        typer.Option(
            min=0,
            help="How often one answer may go on after its server was lost; 0 for never.",
            rich_help_panel=SERVER,
        ),
    ] = RESUMES
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="How long an answer waits for a server, each time that it needs one.",
            rich_help_panel=SERVER,
        ),
    ] = WAIT_S


def gateway(
    *,
    context: typer.Context,
    url: Annotated[
        list[str],
        typer.Option(
            "--url",
            help="gRPC address of a running server, e.g. localhost:8001, with ?metrics=8002 behind "
            "it where its metrics are; repeatable.",
            rich_help_panel=SERVER,
        ),
    ],
    tokenizer: Annotated[
        Path,
        typer.Option(
            help="The model's tokenizer and chat template: build/NAME, a repository, or a model's "
            "folder.",
            callback=served_path,
        ),
    ],
    context_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens of a prompt and its answer together, where --tokenizer is no repository.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback by default.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = PORT,
    key_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Ask each request for a key that this environment variable holds; several have "
            "spaces between them.",
            rich_help_panel=CLIENTS,
        ),
    ] = None,
    tool_calls: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="How the model writes calls of tools: llama3, hermes or mistral. By default what "
            "its chat template teaches.",
        ),
    ] = None,
    drain: Annotated[
        int,
        typer.Option(
            metavar="SECONDS", min=0, help="How long a stop waits for requests in flight."
        ),
    ] = 30,
    limits: Limits,
    servers: ToServers,
    output: Output,
) -> None:
    """Answer OpenAI's API for a served model until interrupted; repeat --url for more servers."""
    from pipeline.cli.console import print_json, show
    from pipeline.dependencies import check_installed
    from pipeline.gateway.model import open_model
    from pipeline.gateway.opening import Servers, keys_of, open_gateway
    from pipeline.gateway.requirements import REQUIREMENTS
    from pipeline.gateway.running import listen
    from pipeline.service import notify
    from pipeline.service.forever import timestamp
    from pipeline.triton.ports import is_loopback

    check_installed(REQUIREMENTS)
    options = limits.options(keys_of(os.environ, key_from))
    model = open_model(
        tokenizer,
        names=limits.model_name or (),
        context_length=context_length,
        default_max_tokens=limits.default_max_tokens,
        tool_calls=tool_calls,
    )
    behind = Servers.at(
        url,
        tls=servers.certificates.tls,
        headers=servers.certificates.metadata(servers.server_key_from),
        timeout=servers.timeout,
        policy=Policy(resumes=servers.resumes, wait_s=servers.wait),
    )
    manager = notify.take_socket()

    def say(line: str) -> None:
        print(f"{timestamp()} {line}", file=sys.stderr, flush=True)

    running = open_gateway(
        behind,
        model,
        options,
        listen(host, port, "--port"),
        drain_s=drain,
        patience_s=PATIENCE_S,
        say=(lambda _line: None) if output.quiet else say,
    )
    with running:

        def stop(_number: int, _frame: FrameType | None) -> None:
            running.ask_to_stop()

        previous = {
            number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            if output.json:
                print_json({"openai": f"{running.url}/v1", "model": model.name})
                sys.stdout.flush()  # whoever reads the file or pipe waits for exactly this
                context.ensure_object(Invocation).json = False
            else:
                chats, key = model.template is not None, bool(options.keys)
                print(greeting(running.url, model.name, chats=chats, key=key), flush=True)
                if not key and not is_loopback(host):
                    show("note", f"whoever reaches {host} may use it: {_ASK}", "bold")
            notify.tell(manager, "READY=1")
            _watch(running, say, drain, manager)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    running.raise_for_error()


def greeting(url: str, model: str, *, chats: bool, key: bool) -> str:
    """Writes the lines of a gateway that answers.

    Args:
        url: Where it is.
        model: What it calls the model.
        chats: Whether the model takes messages.
        key: Whether requests need a key.
    """
    from pipeline.service.greeting import ask_openai

    lines = [
        f"ready, pid {os.getpid()}; stop with Ctrl-C",
        f"  OpenAI   {url}/v1",
        f"  model    {model}",
        f"  metrics  {url}/metrics",
    ]
    # A key on the command line of curl would be in the process list.
    if not key:
        lines += ["try:", *ask_openai(f"{url}/v1", chats=chats)]
    return "\n".join(lines)


def _watch(running: Any, say: Any, drain: int, manager: str | None) -> None:
    from pipeline.service import notify

    told = False
    while not running.wait(0.2):
        if running.stopping and not told:
            told = True
            notify.tell(manager, "STOPPING=1")
            count = running.inflight
            which = "1 request" if count == 1 else f"{count} requests"
            say(
                f"stopping; waits up to {drain} s for {which} in flight, and not at all after "
                "another Ctrl-C or SIGTERM"
                if count
                else "stopping; no request is in flight"
            )

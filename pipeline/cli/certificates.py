"""The command ``certificates``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Output


def certificates(
    *,
    folder: Annotated[Path, typer.Argument(help="Where they go; it is created.")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="A name or address of the server, besides localhost; repeatable.",
        ),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=397, metavar="DAYS", help="How long they are valid.")
    ] = 7,
    output: Output,
) -> None:
    """Make a test authority with certificates of a server and a client, to try mutual TLS."""
    from pipeline.cli.console import print_json
    from pipeline.service.certificates import make_certificates

    ca, cert, key, client_cert, client_key = make_certificates(folder, name or (), days)
    if output.json:
        names = ("ca", "server_cert", "server_key", "client_cert", "client_key")
        paths = (ca, cert, key, client_cert, client_key)
        print_json(dict(zip(names, map(str, paths), strict=True)))
        return
    if output.quiet:
        return
    print(
        f"in {folder}, valid for {days} days; for tests, not for people's data: nobody can revoke\n"
        "them, and the authority's key is gone, so that nobody can make more\n"
        f"  trtllm-pipeline serve REPOSITORY --tls-cert {cert} --tls-key {key} \\\n"
        f"    --tls-client-ca {ca}\n"
        f"  trtllm-pipeline generate --url localhost:8001 --tls-root {ca} \\\n"
        f"    --tls-cert {client_cert} --tls-key {client_key} 'Once there was a'"
    )

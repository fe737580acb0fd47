"""The command ``sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Output, served_path


def sign(
    *,
    repository: Annotated[
        Path,
        typer.Argument(help="build/NAME, or a repository by itself.", callback=served_path),
    ],
    key: Annotated[
        Path,
        typer.Option(metavar="PEM", help="The Ed25519 private key to sign with."),
    ],
    output: Output,
) -> None:
    """Sign a repository's statement of its provenance, after checking every file of it."""
    from pipeline.cli.console import print_json
    from pipeline.provenance import envelope
    from pipeline.serving import check_custody

    path = envelope.sign(repository, check_custody(repository), key)
    if output.json:
        print_json({"envelope": str(path)})
    elif not output.quiet:
        print(f"signed: {path}")

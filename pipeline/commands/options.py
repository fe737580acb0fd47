"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, e.g. compile.max_seq_len=256."
    ),
]
BuildDirOption = Annotated[
    Path, typer.Option("--build-dir", help="Where the store and the outputs go.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="gRPC address of a running server, e.g. localhost:8001.")
]
RepositoryOption = Annotated[
    Path | None,
    typer.Option("--repository", help="Start a server on this repository instead of using --url."),
]

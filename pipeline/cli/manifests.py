"""The command ``manifests``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Output, served_path


def manifests(
    *,
    repository: Annotated[
        Path,
        typer.Argument(help="build/NAME, or a repository by itself.", callback=served_path),
    ],
    kind: Annotated[str, typer.Option(metavar="KIND", help="What is written.")],
    output_folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Write the files there, whole or not at all; without it they are listed.",
        ),
    ] = None,
    output: Output,
) -> None:
    """Write what runs a build as a service: Kubernetes manifests, a chart, units."""
    from pipeline.cli.console import print_json
    from pipeline.manifests.build import read_build
    from pipeline.manifests.deployed import describe
    from pipeline.manifests.kinds import writer_of
    from pipeline.manifests.values import Values

    write = writer_of(kind)
    files = write(describe(read_build(repository), Values()))
    if output.json:
        print_json({"kind": kind, "files": sorted(files)})
    else:
        print("\n".join(sorted(files)))
    del output_folder

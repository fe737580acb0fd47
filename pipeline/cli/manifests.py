"""The command ``manifests``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Output, served_path
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.manifests.deployed import Deployed

CHOICES = "What is chosen"


@dataclass(frozen=True)
class Choices:
    """The usual values as options; a values file and ``--set`` have all of them.

    Attributes:
        values: A values file.
        overrides: Single values.
        image: ``image``.
        gateway_image: ``gateway.image``.
        replicas: ``replicas``.
        namespace: ``namespace``.
        storage_class: ``repository.storageClass``.
        gpu_product: ``gpu.product``.
    """

    values: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A YAML file of values, as a chart's.", rich_help_panel=CHOICES
        ),
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a value, e.g. gateway.replicas=3; repeatable.",
            rich_help_panel=CHOICES,
        ),
    ] = None
    image: Annotated[
        str | None, typer.Option(help="The server's image.", rich_help_panel=CHOICES)
    ] = None
    gateway_image: Annotated[
        str | None, typer.Option(help="The gateway's image.", rich_help_panel=CHOICES)
    ] = None
    replicas: Annotated[
        int | None, typer.Option(help="Servers; 2 by default.", rich_help_panel=CHOICES)
    ] = None
    namespace: Annotated[
        str | None, typer.Option(help="Where the objects go.", rich_help_panel=CHOICES)
    ] = None
    storage_class: Annotated[
        str | None,
        typer.Option(help="The volume's storage class.", rich_help_panel=CHOICES),
    ] = None
    gpu_product: Annotated[
        str | None,
        typer.Option(help="Node label nvidia.com/gpu.product.", rich_help_panel=CHOICES),
    ] = None

    @property
    def options(self) -> Mapping[str, Any]:
        """What was given as an option of its own, by the value's key; None for what was not."""
        return {
            "image": self.image,
            "gateway.image": self.gateway_image,
            "replicas": self.replicas,
            "namespace": self.namespace,
            "repository.storageClass": self.storage_class,
            "gpu.product": self.gpu_product,
        }


def manifests(
    *,
    repository: Annotated[
        Path,
        typer.Argument(help="build/NAME, or a repository by itself.", callback=served_path),
    ],
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="What is written; without it all kinds are listed."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Write the files there, whole or not at all; without it they are listed.",
        ),
    ] = None,
    choices: Choices,
    output: Output,
) -> None:
    """Write what runs a build as a service: Kubernetes, a Helm chart, compose, systemd."""
    from pipeline.cli.console import print_json
    from pipeline.manifests.kinds import KINDS, kind_of, writer_of
    from pipeline.tables import print_table

    if kind is None:
        if folder is not None:
            raise UsageError(
                "--output needs the kind of what is to be written",
                fix=f"Give --kind with one of {', '.join(KINDS)}",
            )
        if output.json:
            print_json({row.name: row.sentence for row in KINDS.values()})
        else:
            print_table(["kind", "writes"], [[row.name, row.sentence] for row in KINDS.values()])
        return
    kind_of(kind)
    from pipeline.cli.console import print_warning
    from pipeline.manifests.build import read_build
    from pipeline.manifests.choosing import read_values
    from pipeline.manifests.deployed import describe
    from pipeline.manifests.writing import write_folder

    values = read_values(choices.values, choices.overrides or (), choices.options)
    print_warning(repository)
    deployed = describe(read_build(repository), values)
    files = writer_of(kind)(deployed)
    if folder is not None:
        write_folder(files, folder)
    if output.json:
        print_json(
            {
                "kind": kind,
                "name": deployed.name,
                "digest": deployed.values.repository.digest,
                "output": None if folder is None else str(folder),
                "files": {name: len(text.encode()) for name, text in files.items()},
                "values": deployed.values.model_dump(mode="json", by_alias=True),
            }
        )
    elif not output.quiet:
        _show(deployed, files, kind, folder)


def _show(deployed: Deployed, files: Mapping[str, str], kind: str, folder: Path | None) -> None:
    """Prints what was written, or would be, and what it is made of."""
    from pipeline.cli.console import fitted
    from pipeline.manifests.kinds import lines_of
    from pipeline.tables import print_table, size

    rows = [[name, size(len(text.encode()))] for name, text in files.items()]
    print_table([kind, "size"], rows, whole=(0,), right=(1,))
    said = lines_of(kind)
    lines = _started(deployed) if said is None else said(deployed)
    lines.append(f"written: {folder}" if folder else "nothing is written without --output DIR")
    print("\n".join(fitted(["", *lines], sys.stdout)))


def _started(deployed: Deployed) -> list[str]:
    """How servers start and stop."""
    speed = deployed.measured
    loading = "not measured" if speed.load_s is None else f"{speed.load_s:.1f} s"
    drain = deployed.values.drain
    stop = f"{drain.endpoints_seconds} s out of the traffic, then up to "
    stop += f"{drain.exit_timeout_seconds} s for requests in flight"
    return [
        f"loading: {loading}, so {deployed.values.startup.failure_threshold} looks of 5 s",
        f"stop:    {stop}",
    ]

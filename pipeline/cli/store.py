"""Commands about the artifact store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import BuildDirOption, Output
from pipeline.errors import StoreError, UsageError

if TYPE_CHECKING:
    from pipeline.store.build_dir import BuildDir


def list_(*, build_dir: BuildDirOption = Path("build"), output: Output) -> None:
    """List the artifacts with their keys and sizes."""
    from pipeline.cli.console import print_json
    from pipeline.store.retention import inventory
    from pipeline.tables import print_table

    rows = inventory(_existing(build_dir).store)
    if output.json:
        print_json(rows)
    else:
        columns = ["stage", "key", "created", "MiB", "seconds"]
        shown = [
            [row["stage"], row["key"][:12], row["created"], row["bytes"] / 2**20, row["seconds"]]
            for row in rows
        ]
        print_table(columns, shown)


def verify(*, build_dir: BuildDirOption = Path("build"), output: Output) -> None:
    """Read every byte of every artifact and compare it with its manifest."""
    from pipeline.cli.console import print_json

    store = _existing(build_dir).store
    damaged = store.verify()
    whole = len(store.artifacts()) - len(damaged)
    found = {
        "whole": whole,
        "damaged": [{"path": str(d.path), "problems": d.problems} for d in damaged],
    }
    if not output.json:
        print(f"{whole} artifact{' is' if whole == 1 else 's are'} whole")
    if damaged:
        raise StoreError(
            f"{len(damaged)} damaged artifact(s): {damaged[0].problems[0]}",
            where=str(damaged[0].path),
            fix="Run the recipe again, which rebuilds it, or remove it with store prune",
            found=found,
        )
    if output.json:
        print_json(found)


def prune(
    *,
    build_dir: BuildDirOption = Path("build"),
    keep: Annotated[bool, typer.Option(help="Keep what the last run of each recipe uses.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
    output: Output,
) -> None:
    """Remove artifacts that no recipe's last run uses, and damaged ones."""
    from pipeline.cli.console import print_json
    from pipeline.store.retention import prune as remove

    removed = remove(_existing(build_dir), keep=keep, dry_run=dry_run)
    if output.json:
        print_json([str(path) for path in removed])
    else:
        verb = "would remove" if dry_run else "removed"
        print("\n".join([*(f"{verb} {path}" for path in removed), f"{len(removed)} artifact(s)"]))


def _existing(build_dir: Path) -> BuildDir:
    """The build directory, which a mistyped name must not create."""
    from pipeline.store.build_dir import BuildDir

    build = BuildDir(build_dir)
    if not build_dir.is_dir():
        raise UsageError(
            "there is no such build directory",
            where=str(build_dir),
            fix="Name the --build-dir that recipes were run with",
        )
    if not build.store.root.is_dir():
        raise UsageError(
            "this directory holds no artifact store",
            where=str(build_dir),
            fix="Name the --build-dir that recipes were run with, or run one first",
        )
    return build

"""Commands about the artifact store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import BuildDirOption, JsonOption


def list_(build_dir: BuildDirOption = Path("build"), json_output: JsonOption = False) -> None:
    """List the artifacts with their keys and sizes."""
    from pipeline.console import print_json, print_table
    from pipeline.retention import inventory
    from pipeline.run import BuildDir

    rows = inventory(BuildDir(build_dir).store)
    if json_output:
        print_json(rows)
    else:
        columns = ["stage", "key", "created", "MiB", "seconds"]
        shown = [
            [row["stage"], row["key"][:12], row["created"], row["bytes"] / 2**20, row["seconds"]]
            for row in rows
        ]
        print_table(columns, shown)


def verify(build_dir: BuildDirOption = Path("build"), json_output: JsonOption = False) -> None:
    """Read every byte of every artifact and compare it with its manifest."""
    from pipeline.console import print_json
    from pipeline.errors import StoreError
    from pipeline.run import BuildDir

    store = BuildDir(build_dir).store
    damaged = store.verify()
    if json_output:
        print_json([{"path": str(d.path), "problems": d.problems} for d in damaged])
    else:
        print(f"{len(store.artifacts()) - len(damaged)} artifacts are whole")
    if damaged:
        raise StoreError(
            f"{len(damaged)} damaged artifact(s): {damaged[0].problems[0]}",
            where=str(damaged[0].path),
            fix="Run the recipe again, which rebuilds it, or remove it with store prune",
        )


def prune(
    build_dir: BuildDirOption = Path("build"),
    keep: Annotated[bool, typer.Option(help="Keep what the last run of each recipe uses.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Remove artifacts that no recipe's last run uses, and damaged ones."""
    from pipeline.console import print_json
    from pipeline.retention import prune as remove
    from pipeline.run import BuildDir

    removed = remove(BuildDir(build_dir), keep=keep, dry_run=dry_run)
    if json_output:
        print_json([str(path) for path in removed])
    else:
        verb = "would remove" if dry_run else "removed"
        print("\n".join([*(f"{verb} {path}" for path in removed), f"{len(removed)} artifact(s)"]))

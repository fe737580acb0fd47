"""Commands about the artifact store."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import BuildDirOption, Output, served_path
from pipeline.errors import RepositoryError, StoreError, UsageError

SHORT = 12
"""Digits of a key that tell artifacts apart for people."""

if TYPE_CHECKING:
    from pipeline.store.build_dir import BuildDir


def list_(*, build_dir: BuildDirOption = Path("build"), output: Output) -> None:
    """List the artifacts: how old and how large they are, and which builds use them.

    Below them is what stages left that did not end.
    """
    from pipeline.cli.console import print_json
    from pipeline.store.retention import inventory, unfinished
    from pipeline.tables import count, print_table, size

    build = _existing(build_dir)
    rows, left = inventory(build), unfinished(build)
    if output.json:
        print_json(rows + left)
        return
    if output.verbose:
        for row in rows:
            used = ", ".join(row["used_by"]) or "nothing"
            print(f"{row['path']}\n  {row['created']}  {size(row['bytes'])}  ", end="")
            print(f"took {row['seconds']:.1f} s  used by {used}")
    else:
        now = datetime.now(timezone.utc)
        shown = [
            [
                row["stage"],
                row["key"][:SHORT],
                _age(row["created"], now),
                size(row["bytes"]),
                " ".join(row["used_by"]) or None,
            ]
            for row in rows
        ]
        whole = range(4)
        print_table(["stage", "key", "age", "size", "used by"], shown, whole=whole, right=(2, 3))
    if not output.quiet:
        total = size(sum(row["bytes"] for row in rows))
        print(f"\n{count(len(rows), 'artifact')}, {total}")
    for row in left:
        when = "prune removes it" if row["old"] else "a run of its recipe goes on with it"
        if not row["bytes"]:
            when = "nothing of it is kept yet"
        print(
            f"not finished: {row['stage']} {row['key'][:SHORT]}, {size(row['bytes'])}, "
            f"{_age(row['created'], datetime.now(timezone.utc))} old; {when}"
        )


def _age(created: str, now: datetime) -> str:
    """How long ago an artifact was made, in the largest unit of which it is more than one."""
    try:
        made = datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return created  # it says that the artifact is damaged
    seconds = max((now - made).total_seconds(), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


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
    if not (output.json or output.quiet):
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
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Remove whatever stages left that did not end, however recent."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
    output: Output,
) -> None:
    """Remove artifacts that no recipe's last run uses, and damaged ones.

    Also what stages left that did not end, once nothing has changed in it for a week.
    """
    from pipeline.cli.console import print_json
    from pipeline.store.retention import prune as remove
    from pipeline.tables import count, size

    removed = remove(_existing(build_dir), keep=keep, dry_run=dry_run, unfinished=unfinished)
    if output.json:
        print_json(
            {
                "artifacts": [str(path) for path in removed.paths],
                "unfinished": [str(path) for path in removed.unfinished],
                "freed_bytes": removed.freed,
                "dry_run": dry_run,
            }
        )
        return
    verb, would = ("would remove", "would be ") if dry_run else ("removed", "")
    if not output.quiet:
        for path in (*removed.paths, *removed.unfinished):
            print(f"{verb} {path}")
    amount = count(len(removed.paths), "artifact")
    if removed.unfinished:
        amount += f" and {len(removed.unfinished)} not finished"
    print(f"{amount}, {size(removed.freed)} {would}freed")


def publish(
    *,
    repository: Annotated[
        Path,
        typer.Argument(help="build/NAME, or a repository by itself.", callback=served_path),
    ],
    to: Annotated[
        Path,
        typer.Option("--to", metavar="DIR", help="The folder of repositories, such as a volume."),
    ],
    expect: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Fail where the repository is another one."),
    ] = None,
    output: Output,
) -> None:
    """Copy a repository to DIR/DIGEST for servers to read, whole or not at all."""
    from pipeline.cli.console import print_json, print_warning
    from pipeline.serving import check_custody
    from pipeline.store.publish import publish as copy

    if not to.is_dir():
        raise UsageError(
            "there is no such folder", where=str(to), fix="Name one that exists, or mount it first"
        )
    print_warning(repository)
    manifest = check_custody(repository)
    place, copied = copy(repository, manifest, to)
    digest = manifest["digest"]
    found = {"digest": digest, "path": str(place), "copied": copied}
    if expect not in (None, digest):
        raise RepositoryError(
            "the repository is another one than expected",
            where=str(place),
            why=f"{digest} was published, {expect} was expected; another version of this program "
            "builds another one, and so does a GPU each time",
            fix=f"Serve it with repository.digest={digest}, or write the manifests again from it",
            found=found,
        )
    if output.json:
        print_json(found)
    elif not output.quiet:
        print(f"{'published' if copied else 'there already'}: {place}")


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

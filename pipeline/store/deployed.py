"""Finds the repository that a build left in its folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UsageError
from pipeline.store.artifact import MANIFEST

FOLDER = "repository"
EXPORT = "export"
"""What is for another program to run, in a build's folder."""
README = "README.md"
"""How such files are run, beside them."""
_ASIDE = {
    "failed": "its repository failed verification",
    "unverified": "its repository was not verified",
}


def find_repository(given: Path) -> Path:
    """Returns the repository that a path names: itself, or the one in a build's folder.

    Args:
        given: A repository, or ``build/<name>``.

    Returns:
        The repository; the path as it is where it is neither, which whoever reads it refuses.

    Raises:
        UsageError: The build has none that passed, only one that was put aside; or it is for
            another program to run.
    """
    if (given / MANIFEST).exists() or not given.is_dir():
        return given
    if (given / FOLDER / MANIFEST).exists():
        return given / FOLDER
    for state, why in _ASIDE.items():
        kept = given / f"{FOLDER}.{state}"
        if (kept / MANIFEST).exists():
            raise UsageError(
                "this build has no repository that passed",
                where=str(given),
                why=f"{why[0].upper()}{why[1:]}; its report says more",
                fix=f"Run the recipe again, or name it by its own path to take it nevertheless: "
                f"{kept}",
            )
    if (given / EXPORT / MANIFEST).exists():
        raise UsageError(
            "this build is for another program to run, so it has no repository",
            where=str(given),
            why="Its compile target writes files that are not served here",
            fix=f"Run it as {given / EXPORT / README} says",
        )
    return given


def build_folder(repository: Path) -> Path | None:
    """Returns the folder of the build that a repository lies in; None for one that was moved."""
    name = repository.name.partition(".")[0]
    folder = repository.parent
    return folder if name == FOLDER and (folder / "history.jsonl").is_file() else None

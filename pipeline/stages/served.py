"""What the stages that start a server have in common."""

from __future__ import annotations

from pathlib import Path

from pipeline.dependencies import Requirements
from pipeline.recipe import Recipe
from pipeline.store.digests import digest_of, file_digest, files_below
from pipeline.targets import get_target

LOG_NAME = "triton.log"
TOOLS = ("nvidia-pytriton", "tritonclient", "grpcio")
PACKAGE = Path(__file__).resolve().parents[1]


def code_digest(*places: str) -> str:
    """One digest over Python files of the pipeline.

    What is asked, and how, decides what a server answers; so the asking code is part of the key,
    and the code that writes what the server reads.

    Args:
        places: Folders and files below ``pipeline/``.
    """
    return digest_of(
        {
            str(path.relative_to(PACKAGE)): file_digest(path)
            for place in places
            for path in _python_files(PACKAGE / place)
        }
    )


def _python_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [place / name for name in files_below(place) if name.endswith(".py")]


def target_package(recipe: Recipe) -> str:
    """The folder of the recipe's target below ``pipeline/``, for :func:`code_digest`.

    Raises:
        UnsupportedError: There is no such target.
    """
    module = type(get_target(recipe.compile.target)).__module__
    return "/".join(module.split(".")[1:-1])


def needs(recipe: Recipe) -> Requirements:
    """The client's package and those that the target is served with."""
    return [("tritonclient", "client"), *get_target(recipe.compile.target).needs(recipe)]

"""What the stages that start a server have in common."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pipeline.dependencies import Requirements, check_installed, versions
from pipeline.recipe.schema import Recipe
from pipeline.store.digests import digest_of, file_digest, files_below
from pipeline.targets import get_target

LOG_NAME = "triton.log"
TOOLS = ("nvidia-pytriton", "tritonclient", "grpcio")
CLIENT = "trtllm_client"
PACKAGE = Path(__file__).resolve().parents[1]


def code_digest(*places: str) -> str:
    """Digests Python files of the pipeline, and of the client, to one hexadecimal text.

    What is asked, and how, decides what a server answers; so the asking code is part of the key,
    and the code that writes what the server reads.

    Args:
        places: Folders and files below ``pipeline/``, the client's name, or a file of it.

    Raises:
        MissingDependencyError: The client is not installed.
    """
    return digest_of(
        {
            f"{place}/{path.relative_to(root).as_posix()}": file_digest(path)
            for place in places
            for root in [_root(place)]
            for path in _python_files(root)
        }
    )


def _root(place: str) -> Path:
    package, _, module = place.partition("/")
    if package != CLIENT:
        return PACKAGE / place
    check_installed([(CLIENT, "client")])
    # Found and not imported: a plan needs no gRPC.
    spec = importlib.util.find_spec(CLIENT)
    assert spec
    assert spec.origin
    return Path(spec.origin).resolve().parent / module


def _python_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [place / name for name in files_below(place) if name.endswith(".py")]


def target_package(recipe: Recipe) -> str:
    """Names the folder of the recipe's target below ``pipeline/``, for :func:`code_digest`.

    Raises:
        UnsupportedError: There is no such target.
    """
    module = type(get_target(recipe.compile.target)).__module__
    return "/".join(module.split(".")[1:-1])


def own_server(recipe: Recipe) -> dict[str, Any]:
    """Gathers what decides the answers of an engine that has a server of its own, for a key.

    It is empty for an engine of Triton's.

    Raises:
        UnsupportedError: There is no such target.
    """
    target = get_target(recipe.compile.target)
    if not target.own_server:
        return {}
    packages = [package for package, _ in target.needs(recipe)]
    code = code_digest("engine_client", target_package(recipe))
    return {"server": {"code": code, "tools": versions(packages)}}


def needs(recipe: Recipe) -> Requirements:
    """Lists the client's package and those that the target is served with."""
    return [("tritonclient", "client"), *get_target(recipe.compile.target).needs(recipe)]

"""Optional packages: imports that name the extra, installed versions, and two pins."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable
from types import ModuleType

from pipeline.errors import MissingDependencyError

_OWN, _CLIENT = "trtllm-pipeline", "trtllm-client"
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

MODELOPT = "0.37.0"
TRANSFORMERS = "4.57.3"

Requirements = Iterable[tuple[str, str]]
"""Modules of optional packages, each with the extra that installs it."""


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: Dotted name, such as ``modelopt.torch.quantization``.
        extra: The extra of this project that installs it.

    Raises:
        MissingDependencyError: It, or something it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = _package(error.name or module)
        asked_for = package == _package(module)
        raise MissingDependencyError(
            f"the Python package {package} is not installed",
            why=None if asked_for else f"{module} needs it",
            fix=install(extra),
        ) from error


def missing(requirements: Requirements) -> list[tuple[str, str]]:
    """Finds which packages are not installed; nothing is imported.

    Args:
        requirements: What is wanted.

    Returns:
        Package and extra of each that is absent, once, in the order asked for.
    """
    wanted = dict.fromkeys((_package(module), extra) for module, extra in requirements)
    return [(name, extra) for name, extra in wanted if importlib.util.find_spec(name) is None]


def check_installed(requirements: Requirements) -> None:
    """Refuses to begin what would end at the first import of an absent package.

    Args:
        requirements: What will be imported.

    Raises:
        MissingDependencyError: Naming all absent packages and the extras that install them.
    """
    absent = missing(requirements)
    if not absent:
        return
    packages = list(dict.fromkeys(name for name, _ in absent))
    extras = ",".join(dict.fromkeys(extra for _, extra in absent))
    several = len(packages) > 1
    raise MissingDependencyError(
        f"the Python package{'s' * several} {', '.join(packages)} "
        f"{'are' if several else 'is'} not installed",
        fix=install(extras),
    )


def installed(package: str) -> str | None:
    """Returns the installed version of a distribution, without importing it; None without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns installed versions by distribution name; ``absent`` where there is none."""
    return {package: installed(package) or "absent" for package in packages}


def required() -> frozenset[str]:
    """Returns the distributions that this project and its client ask for, with all extras."""
    found = set()
    for name in (_OWN, _CLIENT):
        for text in _requires(name):
            match = _REQUIREMENT.match(text)
            if match:
                found.add(match.group())
    return frozenset(found)


def _requires(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def install(extras: str) -> str:
    """Says how to install extras of this project, as the last sentence of an error.

    No package index has the project, so it is installed from a checkout, with its client.
    """
    return f"In a checkout of this project: pip install ./client '.[{extras}]'"


def _package(module: str) -> str:
    return module.partition(".")[0]

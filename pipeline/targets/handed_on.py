"""Which environment variables of this process reach a server or a container, by name.

A container inherits nothing, and the server of the wheel little
(:mod:`pipeline.triton.surroundings`). What NCCL, Open MPI, UCX, TensorRT-LLM and CUDA read is
handed on to a container by itself, anything else where it was named with ``--env``. Command lines
have the names alone: the Docker client takes the values out of its own environment, so no value
stands in a process list or a log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, MutableMapping

from pipeline.errors import UsageError

PREFIXES = ("NCCL_", "OMPI_MCA_", "UCX_", "TRTLLM_", "TLLM_", "CUDA_")
"""Beginnings of the names that are handed on by themselves."""

NAMES = "TRTLLM_PIPELINE_ENV"
"""The variable with further names, separated by commas; ``--env`` adds to it."""

OURS = frozenset(
    {
        NAMES,
        # Which GPUs there are, and in which order, is decided where the container is started.
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
        # How the engine's ranks are started is an option of serve.
        *("TRTLLM_ORCHESTRATOR", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"),
        *("HOME", "USER", "PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"),
        "PYTHONDONTWRITEBYTECODE",
    }
)
"""Names that are decided here, whatever the environment says."""

# What an installation says of itself, CUDA_HOME or NCCL_VERSION: the image has its own. Of the same
# kind are folders of CUDA's daemons, which are not there inside.
PLACES = re.compile(r"_(VERSION|HOME|ROOT|PATH|DIR|DIRECTORY)$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|_(PASS|PWD)$|CREDENTIAL|AUTH|APIKEY|(^|_)KEY(_|$)",
    re.IGNORECASE,
)
# An address with a password in front of its host.
_SECRET_URL = re.compile(r"://[^/@]*:[^/@]*@")


def handed_on(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Lists the names of the variables that a container started now is to have, in order.

    Raises:
        UsageError: :data:`NAMES` has one that cannot be handed on.
    """
    found = {
        name
        for name in environ
        if name.startswith(PREFIXES) and name not in OURS and not PLACES.search(name)
    }
    return sorted(found.union(name for name in named(environ) if name in environ))


def named(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Lists the names that were given with ``--env`` or in :data:`NAMES`.

    Raises:
        UsageError: One cannot be handed on.
    """
    names = [name.strip() for name in environ.get(NAMES, "").split(",")]
    return [_checked(name, NAMES) for name in names if name]


def looks_secret(name: str) -> bool:
    """Says whether a variable's name is one that secrets have."""
    return bool(_SECRET.search(name))


def hand_on(words: Iterable[str], environ: MutableMapping[str, str] = os.environ) -> None:
    """Names variables to hand on, for as long as this process lives.

    Args:
        words: ``NAME`` of a variable that is set, or ``NAME=VALUE`` to set it too.
        environ: Is changed.

    Raises:
        UsageError: One is no name, not set, not to be handed on, or a secret with its value, which
            every user of this machine could read in the process list.
    """
    names = [name for name in environ.get(NAMES, "").split(",") if name]
    for word in words:
        name, given, value = word.partition("=")
        _checked(name, "--env")
        if given and (_SECRET.search(name) or _SECRET_URL.search(value)):
            # The value is not repeated.
            raise UsageError(
                f"--env {name}=... would show a secret to everybody who lists the processes",
                fix=f"Export it, and name it alone: --env {name}",
            )
        if given:
            environ[name] = value
        elif name not in environ:
            raise UsageError(
                f"--env {name}: this variable is not set",
                fix=f"Export it first, or give its value: --env {name}=VALUE",
            )
        names.append(name)
    environ[NAMES] = ",".join(dict.fromkeys(names))


def _checked(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not the name of an environment variable",
            where=where,
            fix="Give NAME or NAME=VALUE" if where == "--env" else "Separate names by commas",
        )
    if name in OURS or name.startswith("LD_"):
        raise UsageError(
            f"{name} is not handed on to a server",
            where=where,
            why="It would take the server's own programs or GPUs from it",
            fix="Leave it out; GPUs are chosen with serve --devices, or with CUDA_VISIBLE_DEVICES "
            "for a build",
        )
    return name

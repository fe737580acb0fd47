"""Whether the GPU target can run on this machine, and how, and what is known about its pin."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from pipeline.dependencies import installed
from pipeline.errors import UsageError
from pipeline.targets.base import Diagnosis
from pipeline.targets.handed_on import handed_on
from pipeline.targets.tensorrt.docker import (
    DAEMON_REMEDY,
    daemon_problem,
    gpu_problem,
    selinux_enforces,
)
from pipeline.targets.tensorrt.environment import inspect_machine
from pipeline.targets.tensorrt.toolchain import (
    BULLETINS,
    DEFAULT_CONTAINER,
    ENGINE_FLOW_REMOVED,
    TENSORRT,
    TENSORRT_LLM,
    WAY_OUT,
)

# doctor is asked often, also where the daemon hangs.
ASKING_S = 5
NEEDED = "Docker and the NVIDIA container toolkit"
START = (
    f"{DAEMON_REMEDY}. For GPUs it needs the NVIDIA container toolkit: nvidia-ctk runtime "
    "configure --runtime=docker, then restart it"
)


def findings() -> list[Diagnosis]:
    """Looks at GPUs, driver, docker and TensorRT-LLM, and says what is known about the pin."""
    engine, machine = installed("tensorrt-llm"), inspect_machine()
    docker = shutil.which("docker")
    problem = docker and (daemon_problem(ASKING_S) or gpu_problem(ASKING_S))
    containers = docker is not None and not problem
    wanted, container = f"{DEFAULT_CONTAINER.driver} or later", DEFAULT_CONTAINER
    branch = (machine.driver or "0").partition(".")[0]
    driver_fits = branch.isdigit() and int(branch) >= container.driver
    gpus = ", ".join(f"{gpu.name} (SM {gpu.sm})" for gpu in machine.gpus)
    how = "absent"
    if machine.gpus and engine == TENSORRT_LLM:
        how = "in place"
    elif machine.gpus and containers and driver_fits and engine is None:
        how = "in the container"
    return [
        Diagnosis(
            "tensorrt-llm",
            engine or "absent",
            engine in (None, TENSORRT_LLM),
            f"Use {TENSORRT_LLM}: {ENGINE_FLOW_REMOVED} and later have no engine flow; "
            f"the image is {container.image}",
        ),
        Diagnosis(
            "NVIDIA GPU",
            gpus or "absent",
            bool(machine.gpus),
            f"{machine.problem}; plan and pre-flight need none, building and serving engines do",
        ),
        Diagnosis(
            "NVIDIA driver",
            machine.driver or "absent",
            driver_fits,
            f"CUDA {container.cuda} of {container.tag} needs {wanted}, or forward compatibility "
            "on a data-center GPU",
        ),
        Diagnosis(
            "docker",
            docker or "absent",
            containers or engine == TENSORRT_LLM,
            f"{problem}. {START}" if problem else f"Install {NEEDED} to use the pinned container",
        ),
        Diagnosis(
            "target tensorrt",
            how,
            how != "absent",
            f"Needs a GPU, driver {wanted} and a Docker that runs, or to run inside "
            f"{container.image} after scripts/install python3 .venv there",
        ),
        *_containers(),
        Diagnosis(
            "security",
            f"{len(BULLETINS)} notices",
            False,
            f"TensorRT-LLM {TENSORRT_LLM} and TensorRT {TENSORRT} are known to be vulnerable: "
            f"{'; '.join(map(str, BULLETINS))}. "
            "Keep the ports on loopback or behind a gateway, load only engines you built, "
            f"run as a user without rights. {WAY_OUT}",
        ),
    ]


def _containers() -> Iterator[Diagnosis]:
    """What containers get of this machine, where that is anything."""
    if selinux_enforces():
        yield Diagnosis("SELinux", "enforcing; containers are started with label=disable")
    try:
        names = handed_on()
    except UsageError as error:
        yield Diagnosis("handed on", "nothing", False, str(error))
        return
    if names:
        yield Diagnosis("handed on", ", ".join(names))

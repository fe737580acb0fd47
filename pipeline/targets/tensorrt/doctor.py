"""Whether the GPU target can run on this machine, and how, and what is known about its pin."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

from pipeline.dependencies import installed
from pipeline.errors import UsageError
from pipeline.targets.base import Diagnosis
from pipeline.targets.handed_on import handed_on
from pipeline.targets.machine import GIB, shared_memory
from pipeline.targets.tensorrt.docker import (
    DAEMON_REMEDY,
    daemon_problem,
    gpu_access,
    selinux_enforces,
)
from pipeline.targets.tensorrt.environment import Machine, another_pythons, inspect_machine
from pipeline.targets.tensorrt.gpus import MIN_SM
from pipeline.targets.tensorrt.toolchain import (
    BULLETINS,
    DEFAULT_CONTAINER,
    ENGINE_FLOW_REMOVED,
    TENSORRT,
    TENSORRT_LLM,
    WAY_OUT,
)

# doctor is asked often, also where the daemon or the driver hangs.
ASKING_S = 5
NEEDED = "Docker and the NVIDIA container toolkit"
TOOLKIT = (
    "Install the NVIDIA container toolkit, then: sudo nvidia-ctk runtime configure "
    "--runtime=docker, and restart the daemon"
)
# Ranks of an engine and NCCL, where no docker run of ours sets it.
RANKS = GIB


def findings() -> list[Diagnosis]:
    """Looks at GPUs, driver, docker and TensorRT-LLM, and says what is known about the pin."""
    engine = installed("tensorrt-llm")
    with ThreadPoolExecutor() as asking:
        asked = asking.submit(inspect_machine, timeout_s=ASKING_S)
        containers = [] if engine else list(_docker(asking))
        machine = asked.result()
    container = DEFAULT_CONTAINER
    branch = (machine.driver or "0").partition(".")[0]
    return [
        _gpus(machine),
        Diagnosis(
            "NVIDIA driver",
            machine.driver or "absent",
            branch.isdigit() and int(branch) >= container.driver,
            f"CUDA {container.cuda} of {container.tag} needs {container.driver} or later, or "
            "forward compatibility on a data-center GPU",
        ),
        _tensorrt_llm(engine, containers),
        *containers,
        *([shared_memory(RANKS, "Ranks and Python models need")] if engine else ()),
        *_handed_on(),
        Diagnosis(
            "security",
            f"{len(BULLETINS)} notices",
            False,
            f"TensorRT-LLM {TENSORRT_LLM} and TensorRT {TENSORRT} are known to be vulnerable: "
            f"{'; '.join(map(str, BULLETINS))}. "
            "Keep the ports on loopback or behind a gateway, load only engines you built, "
            f"run as a user without rights. {TENSORRT_LLM} is the last release with engines. "
            f"{WAY_OUT}",
            needed=False,
        ),
    ]


def _gpus(machine: Machine) -> Diagnosis:
    counted = Counter((gpu.name, gpu.sm) for gpu in machine.gpus)
    names = [
        f"{f'{count} x ' if count > 1 else ''}{name} (SM {sm})"
        for (name, sm), count in counted.items()
    ]
    old = [name for name, sm in counted if sm < MIN_SM]
    advice = f"{machine.problem}; plan and pre-flight need none, building and serving engines do"
    if old:
        advice = f"TensorRT-LLM {TENSORRT_LLM} has kernels from SM {MIN_SM} (Ampere) on"
    return Diagnosis("NVIDIA GPU", ", ".join(names) or "absent", bool(names) and not old, advice)


def _tensorrt_llm(engine: str | None, containers: list[Diagnosis]) -> Diagnosis:
    name, image = "tensorrt-llm", DEFAULT_CONTAINER.image
    if engine is None and all(finding.ok for finding in containers):
        return Diagnosis(name, f"{TENSORRT_LLM}, in the container")
    if engine == TENSORRT_LLM:
        return Diagnosis(name, f"{engine}, in place")
    if engine is None:
        other = another_pythons()
        advice = (
            f"Make Docker ready for {image}, or run inside it, after scripts/install python3 .venv "
            "there"
        )
        return Diagnosis(name, "absent", False, str(other) if other else advice)
    return Diagnosis(
        name,
        engine,
        False,
        f"Use {TENSORRT_LLM}: {ENGINE_FLOW_REMOVED} and later have no engine flow; "
        f"the image is {image}",
    )


def _docker(asking: Executor) -> Iterator[Diagnosis]:
    """The daemon, and how it hands GPUs on where it answers."""
    program = shutil.which("docker")
    if program is None:
        advice = f"Install {NEEDED} to use the pinned container"
        yield Diagnosis("docker", "absent", False, advice)
        return
    answers = asking.submit(gpu_access, ASKING_S)
    problem = daemon_problem(ASKING_S)
    yield Diagnosis("docker", *_daemon(program, problem))
    if problem:
        return
    access = answers.result()
    advice = f"{access.problem}. {TOOLKIT}"
    value = "absent" if access.problem else access.how or "not known"
    yield Diagnosis("container toolkit", value, not access.problem, advice)


def _daemon(program: str, problem: str | None) -> tuple[str, bool, str]:
    """What was found, whether it is well, and the advice, by what the daemon said."""
    if problem is None:
        return program, True, ""
    if "permission denied" in problem.lower():
        group = "Add yourself to its group: sudo usermod -aG docker $USER, then log in again"
        return "permission denied", False, f"{problem}. {group}"
    if "does not answer" in problem:
        return "does not answer", False, f"{problem}. Look at it: systemctl status docker"
    said = problem if problem.endswith("?") else f"{problem}."
    stopped = "cannot connect" in problem.lower()
    value = "daemon stopped" if stopped else "cannot start containers"
    return value, False, f"{said} {DAEMON_REMEDY}"


def _handed_on() -> Iterator[Diagnosis]:
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

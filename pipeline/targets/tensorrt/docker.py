"""Running the pinned container with the GPUs, through the Docker client.

:func:`confined` is the one place that says what a container may do, whether it builds, tries or
serves an engine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UnsupportedError
from pipeline.targets.handed_on import handed_on
from pipeline.targets.tensorrt.environment import DEVICE_ORDER
from pipeline.targets.tensorrt.process import ask

SELINUX_ENFORCE = Path("/sys/fs/selinux/enforce")
UNLABELLED = "--security-opt=label=disable"
ASK_DAEMON = ("docker", "version", "--format", "{{.Server.Version}}")
DAEMON_TIMEOUT_S = 15
NVIDIA_HOOK = "nvidia-container-runtime-hook"
DAEMON_REMEDY = (
    "Start it (systemctl start docker), or add yourself to the docker group; or run inside the "
    "container itself"
)


def confined(name: str, user: str, gpus: str, *, here: bool = True) -> list[str]:
    """Returns how a ``docker run`` command begins: GPUs, shared memory, and no privilege.

    Variables of this process that a container is to have are named, never given: see
    :mod:`pipeline.targets.handed_on`.

    Args:
        name: Of the container, to find one that was left behind.
        user: ``uid:gid`` of the process.
        gpus: As ``--gpus`` takes them.
        here: Whether it runs on this machine; otherwise what depends on the machine is left out.

    Returns:
        The command's words; mounts, image and program come next.
    Raises:
        UsageError: A variable that is named for the container cannot be handed on.
    """
    return [
        *("docker", "run", "--rm", "--init", f"--name={name}", f"--gpus={gpus}"),
        # MPI ranks, NCCL and Python models talk through shared memory, of which Docker's default is
        # 64 MB, and pin memory.
        *("--shm-size=2g", "--ulimit=memlock=-1", "--ulimit=stack=67108864"),
        *(f"--user={user}", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
        *((UNLABELLED,) if here and selinux_enforces() else ()),
        *(f"--env={name}" for name in (handed_on() if here else ())),
    ]


def selinux_enforces() -> bool:
    """Says whether SELinux would keep a container from the folders that are mounted into it.

    Its label is then switched off rather than the folders labelled anew (``:z``): that would change
    every file of a repository or checkpoint for everybody else, and cannot be done to one on NFS.
    """
    try:
        return SELINUX_ENFORCE.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


@dataclass(frozen=True)
class GpuAccess:
    """How the daemon hands GPUs on, as far as it tells.

    Attributes:
        how: What it does it with; None where there is nothing, or it does not tell.
        problem: Why it cannot; None where it can, or does not tell.
    """

    how: str | None = None
    problem: str | None = None


def daemon_problem(timeout: float = DAEMON_TIMEOUT_S) -> str | None:
    """Says why no container can be started here; None when one can.

    Args:
        timeout: Seconds that the daemon has to answer.
    """
    try:
        answer = ask(ASK_DAEMON, timeout)
    except FileNotFoundError:
        return "docker is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"docker does not answer: {error}"
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        return f"docker cannot start containers: {lines[-1]}"
    return None


def gpu_access(timeout: float = DAEMON_TIMEOUT_S) -> GpuAccess:
    """Asks how the daemon hands a GPU on.

    The daemon takes ``--gpus`` by CDI devices or by NVIDIA's hook on its PATH
    (``daemon/nvidia_linux.go`` of moby); nvidia-ctk registers a runtime beside it.

    Args:
        timeout: Seconds that the daemon has to answer.
    """
    try:
        answer = ask(("docker", "info", "--format", "{{json .}}"), timeout)
        if answer.returncode:
            return GpuAccess()
        told = json.loads(answer.stdout)
        runtimes = sorted(told["Runtimes"])
        devices = [str(device.get("ID")) for device in told.get("DiscoveredDevices") or ()]
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return GpuAccess()  # it does not tell
    ways = [f"runtime {name}" for name in runtimes if "nvidia" in name]
    ways += [f"CDI device {name}" for name in devices if "nvidia" in name]
    if ways:
        return GpuAccess(ways[0])
    if shutil.which(NVIDIA_HOOK):
        return GpuAccess(NVIDIA_HOOK)
    return GpuAccess(problem=f"docker has no NVIDIA runtime, only {', '.join(runtimes) or 'none'}")


def docker_run(
    name: str, user: str, mounts: list[str], workdir: str, *, here: bool = True
) -> list[str]:
    """Returns ``docker run`` up to the image, for a program that works on mounted directories.

    Args:
        name: Of the container, to find one that was left behind.
        user: ``uid:gid`` of the process.
        mounts: From :func:`bind`.
        workdir: The working directory inside.
        here: See :func:`confined`.

    Returns:
        The command's words; the image and the program come next.
    Raises:
        UsageError: See :func:`confined`.
    """
    return [
        *confined(name, user, "all", here=here),
        # The mapped user has no entry in the image's passwd: PyTorch asks for its name, and
        # several libraries for a home to keep caches in.
        *("--env=HOME=/tmp", "--env=USER=trtllm"),
        # By name only: handed on where it is set.
        "--env=CUDA_VISIBLE_DEVICES",
        *(f"--env={key}={value}" for key, value in DEVICE_ORDER.items()),
        *(f"--mount={mount}" for mount in mounts),
        f"--workdir={workdir}",
    ]


def bind(source: Path, target: str, *, readonly: bool = False) -> str:
    """Makes a ``--mount`` value; unlike ``--volume`` it fails when the source is not there.

    Args:
        source: A folder or file of this machine.
        target: Its absolute path inside the container.
        readonly: Whether the container may not write to it.

    Raises:
        UnsupportedError: Docker cannot express the path.
    """
    path, option = source.resolve(), ",readonly" if readonly else ""
    if "," in str(path):
        raise UnsupportedError(
            "docker cannot mount a path with a comma",
            where=str(path),
            fix="Move it, or name it through a symbolic link without one",
        )
    return f"type=bind,source={path},target={target}{option}"


def image_digest(image: str) -> str | None:
    """Asks Docker for the digest, ``sha256:...``, that an image was pulled under; None without one.
    Raises:
        OSError: Docker is not installed.
    """
    answer = subprocess.run(
        ["docker", "image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', image],
        capture_output=True,
        text=True,
        check=False,
    )
    first = answer.stdout.strip().partition("\n")[0]
    return first.rpartition("@")[2] or None if answer.returncode == 0 else None

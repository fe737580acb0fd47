"""Running the pinned container with the GPUs, through the Docker client."""

from __future__ import annotations

import subprocess
from pathlib import Path


def docker_run(name: str, user: str, mounts: list[str], workdir: str) -> list[str]:
    """``docker run`` up to the image.

    Args:
        name: Of the container, to find one that was left behind.
        user: ``uid:gid`` of the process.
        mounts: From :func:`bind`.
        workdir: The working directory inside.
    """
    return [
        *("docker", "run", "--rm", "--init", "--name", name, "--gpus", "all"),
        # MPI ranks and NCCL talk through shared memory; 64 MB is Docker's default.
        *("--shm-size=2g", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864"),
        *("--user", user),
        # The mapped user has no entry in the image's passwd: PyTorch asks for its name, and
        # several libraries for a home to keep caches in.
        *("--env", "HOME=/tmp", "--env", "USER=trtllm"),
        # By name only: handed on where it is set.
        *("--env", "CUDA_VISIBLE_DEVICES"),
        *(part for mount in mounts for part in ("--mount", mount)),
        *("--workdir", workdir),
    ]


def bind(source: Path, target: str, *, readonly: bool = False) -> str:
    """A ``--mount`` value; unlike ``--volume`` it fails when the source is not there."""
    option = ",readonly" if readonly else ""
    return f"type=bind,source={source.resolve()},target={target}{option}"


def image_digest(image: str) -> str | None:
    """The digest an image was pulled under; None when Docker does not know one."""
    answer = subprocess.run(
        ["docker", "image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', image],
        capture_output=True,
        text=True,
        check=False,
    )
    first = answer.stdout.strip().partition("\n")[0]
    return first.rpartition("@")[2] or None if answer.returncode == 0 else None

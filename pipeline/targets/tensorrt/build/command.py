"""The ``trtllm-build`` command line, and where it runs.

It runs in place where TensorRT-LLM is installed, and otherwise in the pinned container through
Docker. TensorRT-LLM is never imported: that takes many seconds and needs a GPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import MissingDependencyError, UnsupportedError
from pipeline.recipe.schema import Recipe
from pipeline.store.digests import digest_of
from pipeline.targets.tensorrt.docker import DAEMON_REMEDY, bind, daemon_problem, docker_run
from pipeline.targets.tensorrt.environment import Toolkit, another_pythons
from pipeline.targets.tensorrt.plan.build_config import BuildConfig

EXECUTABLE = "trtllm-build"
# In the working directory, which is the output directory: the engine's config.json records both,
# and a repository should not tell where it was built.
CACHE_NAME = "model.cache"
PREVIOUS_CACHE = "previous.cache"


@dataclass(frozen=True)
class Build:
    """One run of ``trtllm-build``.

    Attributes:
        checkpoint: The checkpoint; mounted read-only in a container.
        output: The directory the engine goes to, in which the command runs. A
            :data:`PREVIOUS_CACHE` in it is the timing cache to start from.
        config: What is built.
    """

    checkpoint: Path
    output: Path
    config: BuildConfig

    def in_place(self, executable: str = EXECUTABLE) -> list[str]:
        """Returns the command, word by word, with the paths of this machine."""
        return self._command(executable, self.checkpoint, self.output)

    def in_container(self, image: str, user: str, *, here: bool = True) -> list[str]:
        """Returns the ``docker run`` command, word by word.

        Args:
            image: The image to run.
            user: ``uid:gid`` that the engine's files shall belong to.
            here: Whether it runs on this machine; see :mod:`pipeline.targets.tensorrt.docker`.

        Raises:
            UnsupportedError: Docker cannot mount the checkpoint's or the engine's path.
        """
        mounts = [bind(self.checkpoint, "/checkpoint", readonly=True), bind(self.output, "/engine")]
        inside = self._command(EXECUTABLE, Path("/checkpoint"), Path("/engine"))
        run = docker_run(self.container_name, user, mounts, "/engine", here=here)
        return [*run, image, *inside]

    @property
    def container_name(self) -> str:
        """A name per output directory, so that a build which was left behind can be found."""
        return f"trtllm-build-{digest_of(str(self.output))[:12]}"

    def _command(self, executable: str, checkpoint: Path, output: Path) -> list[str]:
        previous = Path(PREVIOUS_CACHE) if (self.output / PREVIOUS_CACHE).is_file() else None
        config = self.config.with_timing_cache(previous, Path(CACHE_NAME))
        return [
            *(executable, "--checkpoint_dir", str(checkpoint), "--output_dir", str(output)),
            *config.flags(),
            *("--log_level", "info"),
        ]


def build_elsewhere(recipe: Recipe) -> str:
    """Says how the engine of a recipe is built on another machine, as a remedy."""
    return (
        f"`trtllm-pipeline plan {recipe.arguments} --script build-engine.sh` writes a script that "
        "builds it there and says how to bring it there; go on here with run --engine"
    )


def command_for(build: Build, tools: Toolkit, recipe: Recipe) -> list[str]:
    """Returns the command that builds here, word by word.

    Raises:
        MissingDependencyError: Neither TensorRT-LLM nor Docker is installed; says how to build
            elsewhere.
        UnsupportedError: Docker's daemon does not answer.
    """
    user = f"{os.getuid()}:{os.getgid()}"
    if tools.image is None:
        executable = find_executable()
        if executable is None:
            raise MissingDependencyError(
                f"{EXECUTABLE} is not on the PATH although tensorrt-llm is installed",
                fix=f"Install it again, or add {Path(sys.executable).parent} to the PATH",
            )
        return build.in_place(executable)
    if shutil.which("docker") is None:
        if other := another_pythons():
            raise other
        raise MissingDependencyError(
            "neither TensorRT-LLM nor Docker is installed here",
            why="An engine is built by trtllm-build, which runs in place or in its container",
            fix="Install Docker and the NVIDIA container toolkit, or build where they are: "
            f"{build_elsewhere(recipe)}",
        )
    if problem := daemon_problem():
        raise UnsupportedError(
            "no container can be started here to build the engine in",
            why=problem,
            fix=DAEMON_REMEDY,
        )
    return build.in_container(tools.image, user)


def find_executable() -> str | None:
    """Finds ``trtllm-build`` beside this Python, or else on the PATH; None without one."""
    beside = Path(sys.executable).parent / EXECUTABLE
    return str(beside) if beside.is_file() else shutil.which(EXECUTABLE)

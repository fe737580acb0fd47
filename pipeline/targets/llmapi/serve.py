"""Serves a repository of the LLM API in NVIDIA's container, or in place inside one.

The server is one tritonserver whatever the number of ranks: the LLM starts its workers itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UnsupportedError, UsageError
from pipeline.targets.tensorrt.docker import daemon_problem
from pipeline.targets.tensorrt.environment import DEVICE_ORDER, inspect_machine
from pipeline.targets.tensorrt.serve.container import Endpoints, server_command
from pipeline.targets.tensorrt.serve.docker import docker_command
from pipeline.targets.tensorrt.serve.launch import (
    Launch,
    endpoints,
    engine_ranks,
    free_endpoints,
    inside_container,
    patience,
    refuse_unreadable,
)
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER
from pipeline.triton.running import ServerOptions


def docker_launch(repository: Path, options: ServerOptions, points: Endpoints) -> Launch:
    """Says how to serve a repository with docker, on any machine.

    Raises:
        RepositoryError: The engine's ``config.json`` does not say its ranks.
        UsageError: The number of GPUs is not the number of ranks, or an option is for engines.
        UnsupportedError: Docker cannot mount the repository's path.
    """
    _refuse_options(repository, options)
    ranks, image = engine_ranks(repository), DEFAULT_CONTAINER.image
    devices = _devices(options.devices, ranks)
    name, wait = f"trtllm-pipeline-{points.grpc}", patience(options)
    command = docker_command(
        image,
        repository,
        server_command(1, exit_timeout_s=wait),
        name=name,
        devices=devices,
        published=points,
    )
    return Launch(command, points, image, name, exit_timeout_s=wait)


def command_launch(repository: Path, options: ServerOptions) -> Launch:
    """Says how to serve a repository, for this machine or another."""
    points = endpoints(options)
    if inside_container():
        return _local_launch(repository, options, points)
    return docker_launch(repository, options, points)


def plan_launch(repository: Path, options: ServerOptions) -> Launch:
    """Says how to serve a repository on this machine.

    Raises:
        UnsupportedError: There is no GPU or no docker; the message has the command to run
            elsewhere.
        UsageError: See :func:`docker_launch`.
    """
    points = free_endpoints(options)
    if inside_container():
        return _local_launch(repository, options, points)
    launch, machine = docker_launch(repository, options, points), inspect_machine()
    problem = daemon_problem() if machine.gpus else machine.problem
    if problem:
        raise UnsupportedError(
            "the LLM API is served by a machine with a GPU and docker",
            why=f"Here, {problem}",
            # Between marks: the sentence's full stop would become part of the command.
            fix=f"With the repository at the same place there, run `{launch.text}`",
        )
    refuse_unreadable(repository)
    return launch


def _local_launch(repository: Path, options: ServerOptions, points: Endpoints) -> Launch:
    _refuse_options(repository, options)
    environment = {"PYTHONDONTWRITEBYTECODE": "1", **DEVICE_ORDER}
    if options.devices is not None:
        devices = _devices(options.devices, engine_ranks(repository))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    wait = patience(options)
    command = server_command(1, str(repository.resolve()), points, wait)
    return Launch(command, points, None, "", environment, exit_timeout_s=wait)


def _devices(asked: Sequence[int | str] | None, ranks: int) -> list[int | str]:
    chosen: list[int | str] = list(range(ranks)) if asked is None else list(asked)
    if len(chosen) != ranks or len(set(chosen)) != ranks:
        raise UsageError(
            f"the repository is for {ranks} rank(s), so it needs {ranks} different GPU(s)",
            why=f"{len(set(chosen))} were named",
            fix=f"Give {ranks} to --devices, e.g. {','.join(map(str, range(ranks)))}",
        )
    return chosen


def _refuse_options(repository: Path, options: ServerOptions) -> None:
    if options.orchestrator or options.mpirun:
        raise UsageError(
            "--orchestrator and --mpirun are for repositories of the tensorrt target",
            where=str(repository),
            fix="Leave them out: the LLM starts the processes of its ranks itself",
        )

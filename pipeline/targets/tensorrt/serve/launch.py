"""Decides how a TensorRT repository is served here, or why it cannot be."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.dependencies import installed
from pipeline.errors import RepositoryError, UnsupportedError, UsageError, cause
from pipeline.targets.tensorrt.build.engine import read_engine_manifest
from pipeline.targets.tensorrt.docker import daemon_problem
from pipeline.targets.tensorrt.environment import (
    DEVICE_ORDER,
    InstalledGpu,
    Machine,
    another_pythons,
    inspect_machine,
    toolkit,
)
from pipeline.targets.tensorrt.serve.container import (
    EXIT_TIMEOUT_S,
    MOUNT,
    ORCHESTRATOR_ENVIRONMENT,
    Endpoints,
    orchestrator_command,
    server_command,
    world_size,
)
from pipeline.targets.tensorrt.serve.docker import USER, docker_command, unreadable
from pipeline.targets.tensorrt.toolchain import Container, container_for
from pipeline.triton.parameters import DRAFT_ENGINE_DIR, ENGINE_DIR
from pipeline.triton.ports import is_loopback, reserve
from pipeline.triton.running import ServerOptions, in_lines

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Launch:
    """One way to start a server.

    Attributes:
        command: The whole command line.
        endpoints: Where the server answers.
        image: The container image; None when it starts in place.
        name: The container's name.
        environment: Variables to add in place; a container's are in its command.
        prepare: A command that makes the repository appear at ``/models`` first; in place only.
        exit_timeout_s: Seconds that the stopping server waits for requests in flight.
    """

    command: Sequence[str]
    endpoints: Endpoints
    image: str | None
    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Sequence[str] = ()
    exit_timeout_s: int = EXIT_TIMEOUT_S

    @property
    def text(self) -> str:
        """The command line, to copy."""
        variables = [f"{key}={value}" for key, value in self.environment.items()]
        command = shlex.join([*(["env", *variables] if variables else []), *self.command])
        return f"{shlex.join(self.prepare)} && {command}" if self.prepare else command

    @property
    def lines(self) -> str:
        """The same with a backslash at the end of each line but the last."""
        variables = [f"{key}={value}" for key, value in self.environment.items()]
        command = in_lines([*(["env", *variables] if variables else []), *self.command])
        return f"{shlex.join(self.prepare)} &&\n{command}" if self.prepare else command


def patience(options: ServerOptions) -> int:
    """Returns the seconds that the stopping server is asked to wait for requests in flight."""
    given = options.exit_timeout_s
    return EXIT_TIMEOUT_S if given is None else given


def endpoints(options: ServerOptions) -> Endpoints:
    """Returns the address and ports asked for, as they are: free or not.

    Raises:
        UsageError: Certificates or a key were given.
    """
    _refuse_access(options)
    return _endpoints(options, options.http_port, options.grpc_port, options.metrics_port)


def free_endpoints(options: ServerOptions) -> Endpoints:
    """Returns the ports asked for when they are free, and a free one for each 0.

    Raises:
        ServerError: A port is in use, not allowed, or the address is not this machine's.
        UsageError: Certificates or a key were given.
    """
    _refuse_access(options)
    asked = {"gRPC": options.grpc_port, "metrics": options.metrics_port}
    # One after the other, since the numbers must not be the same.
    ports = reserve(options.host, asked | ({"HTTP": options.http_port} if options.http else {}))
    http = ports["HTTP"] if options.http else reserve(LOOPBACK, {"HTTP": options.http_port})["HTTP"]
    return _endpoints(options, http, ports["gRPC"], ports["metrics"])


def _endpoints(options: ServerOptions, http: int, grpc: int, metrics: int) -> Endpoints:
    # The ranks' readiness is asked for over HTTP, so it is there, but for nobody else.
    inner = None if options.http or is_loopback(options.host) else LOOPBACK
    return Endpoints(options.host, http=http, grpc=grpc, metrics=metrics, http_host=inner)


def _refuse_access(options: ServerOptions) -> None:
    if options.tls or options.key:
        raise UsageError(
            "--tls-cert and --key-from are for repositories of the CPU",
            why="Nobody has run them in the container of a GPU's",
            fix="Leave them out, and put a gateway with TLS in front",
        )


def engine_manifest(repository: Path) -> dict[str, Any]:
    """Reads ``engine.json`` of a repository: what the engine is bound to.

    Raises:
        CompileError: It is missing or not of this version.
    """
    return read_engine_manifest(repository / ENGINE_DIR)


def engine_ranks(repository: Path) -> int:
    """Reads ``world_size`` of the repository's engine.

    Raises:
        RepositoryError: The engine's ``config.json`` is missing or does not say.
    """
    try:
        return world_size(repository)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RepositoryError(
            "the engine does not say how many ranks it has",
            where=str(repository / ENGINE_DIR / "config.json"),
            why=cause(error),
            fix="Run the recipe again, or copy the repository again from where it was built",
        ) from error


def serving_container(manifest: Mapping[str, Any]) -> Container:
    """Finds the image that can read an engine: the one it was built in, or with the same TensorRT.

    Args:
        manifest: ``engine.json`` of the engine.

    Raises:
        UnsupportedError: No known image has that TensorRT-LLM and TensorRT.
    """
    built_in = (manifest.get("container") or {}).get("image")
    wanted = (str(manifest.get(key)) for key in ("tensorrt_llm", "tensorrt"))
    return container_for(*wanted, built_in=built_in)


def inside_container() -> bool:
    """Says whether this process is in a container that can serve: with Triton and TensorRT-LLM."""
    return bool(shutil.which("tritonserver") and installed("tensorrt-llm"))


def docker_launch(
    repository: Path,
    endpoints: Endpoints,
    *,
    devices: Sequence[int | str] | None = None,
    orchestrator: bool = False,
    mpirun: bool = False,
    exit_timeout_s: int = EXIT_TIMEOUT_S,
) -> Launch:
    """Says how to serve a repository with docker, on any machine.

    Args:
        repository: The repository.
        endpoints: Address and ports of the machine.
        devices: GPUs to use; None takes the first ones.
        orchestrator: Let one server spawn a worker per rank, instead of one server per rank.
        mpirun: Start one rank under ``mpirun`` too.
        exit_timeout_s: Seconds that the stopping server waits for requests in flight.

    Raises:
        CompileError: The engine's ``engine.json`` is missing or not of this version.
        RepositoryError: The engine's ``config.json`` is missing or does not say its ranks.
        UsageError: The number of GPUs is not the engine's number of ranks.
        UnsupportedError: No known image can read the engine, or Docker cannot mount the
            repository's path.
    """
    manifest = engine_manifest(repository)
    ranks = engine_ranks(repository)
    chosen = list(range(ranks)) if devices is None else list(devices)
    if len(chosen) != ranks or len(set(chosen)) != ranks:
        raise UsageError(
            f"the engine has {ranks} rank(s), so it needs {ranks} different GPU(s)",
            why=f"{len(set(chosen))} were named",
            fix=f"Give {ranks} to --devices, e.g. {','.join(map(str, range(ranks)))}",
        )
    image = serving_container(manifest).image
    name = f"trtllm-pipeline-{endpoints.grpc}"
    command = docker_command(
        image,
        repository,
        orchestrator_command(ranks, exit_timeout_s=exit_timeout_s)
        if orchestrator
        else server_command(ranks, mpirun=mpirun, exit_timeout_s=exit_timeout_s),
        name=name,
        devices=chosen,
        published=endpoints,
        environment=ORCHESTRATOR_ENVIRONMENT if orchestrator else None,
    )
    return Launch(command, endpoints, image, name, exit_timeout_s=exit_timeout_s)


def local_launch(
    repository: Path,
    endpoints: Endpoints,
    *,
    devices: Sequence[int] | None = None,
    orchestrator: bool = False,
    mpirun: bool = False,
    exit_timeout_s: int = EXIT_TIMEOUT_S,
) -> Launch:
    """Says how to serve a repository inside the container, with its own tritonserver.

    Args:
        repository: The repository; where it is not at ``/models``, ``prepare`` links it there.
        endpoints: Address and ports of the server.
        devices: GPUs to use; None leaves those that are visible.
        orchestrator: See :func:`docker_launch`.
        mpirun: Likewise.
        exit_timeout_s: Likewise.

    Raises:
        CompileError: The engine's ``engine.json`` is missing or not of this version.
        RepositoryError: The engine's ``config.json`` is missing or does not say its ranks.
        UnsupportedError: What is installed here cannot read the engine.
    """
    manifest, here = engine_manifest(repository), toolkit()
    wanted = {"TensorRT-LLM": manifest.get("tensorrt_llm"), "TensorRT": manifest.get("tensorrt")}
    found = {"TensorRT-LLM": here.tensorrt_llm, "TensorRT": here.tensorrt}
    wrong = [name for name in wanted if wanted[name] != found[name]]
    if wrong:
        raise UnsupportedError(
            "this container cannot read the engine: "
            + "; ".join(f"it has {name} {found[name]}, not {wanted[name]}" for name in wrong),
            where=str(repository / ENGINE_DIR),
            why="A TensorRT engine runs with the TensorRT that built it only",
            fix=f"Serve it in {serving_container(manifest).image}, or compile it again here",
        )
    ranks = engine_ranks(repository)
    environment = {"PYTHONDONTWRITEBYTECODE": "1", **DEVICE_ORDER}
    if orchestrator:
        environment |= ORCHESTRATOR_ENVIRONMENT
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    command = server_command(ranks, MOUNT, endpoints, exit_timeout_s, mpirun=mpirun)
    if orchestrator:
        command = orchestrator_command(ranks, MOUNT, endpoints, exit_timeout_s)
    link = () if at_mount(repository) else ("ln", "-sfn", str(repository.resolve()), MOUNT)
    return Launch(command, endpoints, None, "", environment, link, exit_timeout_s)


def at_mount(repository: Path) -> bool:
    """Says whether the repository is where its ``config.pbtxt`` says that the engine is."""
    return Path(MOUNT).resolve() == repository.resolve()


def plan_launch(
    repository: Path,
    endpoints: Endpoints,
    *,
    devices: Sequence[int] | None = None,
    orchestrator: bool = False,
    mpirun: bool = False,
    exit_timeout_s: int = EXIT_TIMEOUT_S,
) -> Launch:
    """Says how to serve a repository on this machine.

    Raises:
        MissingDependencyError: There is no docker, and TensorRT-LLM is another Python's.
        UnsupportedError: There is no docker or no GPU (the command to run elsewhere is in the
            message), the GPU is not the engine's, or the toolchain is another.
        UsageError: See :func:`docker_launch`.
    """
    local = inside_container()
    machine = inspect_machine()
    ranks = engine_ranks(repository)
    first = [gpu.device for gpu in machine.gpus[:ranks]]
    check_gpus(repository, machine, first if devices is None else devices, ranks)
    if local:
        # The server inherits the visible GPUs.
        launch = local_launch(
            repository,
            endpoints,
            devices=devices,
            orchestrator=orchestrator,
            mpirun=mpirun,
            exit_timeout_s=exit_timeout_s,
        )
    else:
        given = first if devices is None and machine.gpus else devices
        launch = docker_launch(
            repository,
            endpoints,
            devices=given,
            orchestrator=orchestrator,
            mpirun=mpirun,
            exit_timeout_s=exit_timeout_s,
        )
    problem = None if machine.gpus else machine.problem
    if not problem and not local:
        problem = daemon_problem()
    if problem:
        if machine.gpus and (other := another_pythons()):
            raise other
        raise UnsupportedError(
            "this engine is served by a machine with its GPU and docker",
            why=f"Here, {problem}",
            # Between marks: the sentence's full stop would become part of the command.
            fix=f"With the repository at the same place there, run `{launch.text}`",
        )
    if not local:
        refuse_unreadable(repository)
    return launch


def refuse_unreadable(repository: Path) -> None:
    """Refuses a repository that the container's user cannot read.

    Raises:
        UnsupportedError: With the command that lets it.
    """
    if path := unreadable(repository):
        raise UnsupportedError(
            f"the container's user {USER} cannot read the repository",
            where=path,
            fix=f"Let it: chmod -R a+rX {shlex.quote(str(repository))}",
        )


def check_gpus(
    repository: Path, machine: Machine, devices: Sequence[int | str] | None, ranks: int
) -> None:
    """Refuses GPUs that the engine was not built for; a machine without any is not judged here.

    Raises:
        UnsupportedError: There are too few, or they are another model.
    """
    if not machine.gpus:
        return
    by_name = {gpu.device: gpu for gpu in machine.gpus}
    wanted = [str(device) for device in devices or ()]
    chosen: list[InstalledGpu] = [by_name[name] for name in wanted if name in by_name]
    if len(chosen) < ranks:
        raise UnsupportedError(
            f"the engine has {ranks} rank(s), but {len(chosen)} of the GPUs asked for are here",
            why=f"nvidia-smi lists GPU {', '.join(by_name)}",
            fix="Use a machine with enough GPUs, or compile with a smaller tensor_parallel",
        )
    drafts = [repository / DRAFT_ENGINE_DIR] if (repository / DRAFT_ENGINE_DIR).is_dir() else []
    for engine in (repository / ENGINE_DIR, *drafts):
        _check_model(engine, chosen)


def _check_model(engine: Path, chosen: Sequence[InstalledGpu]) -> None:
    manifest = read_engine_manifest(engine)
    built = manifest.get("gpu") or {}
    for gpu in chosen:
        if (gpu.name, gpu.sm) != (built.get("name"), built.get("sm")):
            raise UnsupportedError(
                f"the engine is for {built.get('name')} (SM {built.get('sm')}), GPU {gpu.index} is "
                f"{gpu.name} (SM {gpu.sm})",
                where=str(engine),
                why="A TensorRT engine runs on the GPU model it was built on only",
                fix=f"Serve it on that GPU in {serving_container(manifest).image}, or run the "
                "recipe again here",
            )

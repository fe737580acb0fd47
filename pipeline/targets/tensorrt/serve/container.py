"""The command that serves a TensorRT repository inside the container.

Also the container's own entry point: a stock image needs this one file and a repository at
``/models``. ``--check`` is its health check. Standard library only; it imports nothing of this
project.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOUNT = "/models"
ENGINE = "tensorrt_llm"
ENGINE_CONFIG = f"{ENGINE}/1/engine/config.json"
ENGINE_MANIFEST = f"{ENGINE}/1/engine/engine.json"
EXIT_TIMEOUT_S = 30
CHECK_TIMEOUT_S = 3.0
CALLING_THREADS = 256

# Open MPI binds each of at most two processes to one core, which tritonserver's threads and Python
# models would share.
MPIRUN = ("mpirun", "--allow-run-as-root", "--bind-to", "none")
ORCHESTRATOR_ENVIRONMENT = {
    "TRTLLM_ORCHESTRATOR": "1",
    "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1",
}


@dataclass(frozen=True)
class Endpoints:
    """Where a server listens.

    Attributes:
        host: Its address.
        http_host: That of HTTP, where it is another one.
    """

    host: str
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    http_host: str | None = None


INSIDE = Endpoints("0.0.0.0")  # noqa: S104  what is published outside is docker's decision


def world_size(repository: Path) -> int:
    """Reads the number of ranks of the repository's engine.

    Raises:
        OSError: There is no engine.
        KeyError, ValueError: Its ``config.json`` does not say.
    """
    config = json.loads((repository / ENGINE_CONFIG).read_text(encoding="utf-8"))
    return int(config["pretrained_config"]["mapping"]["world_size"])


def tensorrt_problem(repository: Path, here: str) -> str | None:
    """Says why an image cannot read the repository's engine; None when nothing says so.

    Without this Triton ends with TensorRT's own message on a version tag, in a loop of restarts.

    Args:
        repository: The repository.
        here: The image's ``TRT_VERSION``.
    """
    try:
        manifest = json.loads((repository / ENGINE_MANIFEST).read_text(encoding="utf-8"))
        wanted, container = manifest["tensorrt"], manifest.get("container")
        image = container["image"] if container else None
    except (OSError, KeyError, TypeError, ValueError):
        return None
    # Packages of one release are numbered behind it: 10.14.1.48.post1, 10.14.1.48-1+cuda13.0.
    versions = [re.match(r"\d+(\.\d+)*", str(version)) for version in (wanted, here)]
    if not all(versions) or len({version[0] for version in versions if version}) == 1:
        return None
    use = f"Use {image} (TRITON_IMAGE of docker compose)"
    if image is None:
        use = f"Use an image with TensorRT {wanted}; trtllm-pipeline serve --print-command names it"
    return f"the engine was built with TensorRT {wanted}, this image has {here}. {use}"


def server_command(
    ranks: int,
    repository: str = MOUNT,
    endpoints: Endpoints = INSIDE,
    exit_timeout_s: int | str = EXIT_TIMEOUT_S,
    *,
    mpirun: bool = False,
) -> list[str]:
    """Serves an engine of that many ranks.

    One rank is a plain tritonserver. More are the leader layout: one tritonserver per rank under
    mpirun, of which rank 0 loads every model and listens, and the others load the engine only; they
    stay inside its loading for as long as rank 0 lives, so they never listen.

    Only the plain server ends in order. ``mpirun`` answers SIGTERM with SIGTERM to every rank and
    SIGKILL a moment later, whatever Triton's exit timeout is (open-mpi/ompi#12149), so take several
    ranks out of the traffic before they are stopped.

    Args:
        ranks: ``world_size`` of the engine.
        repository: Where the repository is for the server.
        endpoints: Where rank 0 listens.
        exit_timeout_s: Seconds that a stopping server gives to requests in flight; one rank only.
            Text is what becomes a number where it runs.
        mpirun: Start one rank under ``mpirun`` too, as upstream's launch_triton_server.py does
            without ``--no-mpi``. It helps where MPI cannot start in a process of its own, and costs
            the stop in order.
    """
    if ranks == 1 and not mpirun:
        return _rank(0, repository, endpoints, exit_timeout_s)
    command = [*MPIRUN]
    for rank in range(ranks):
        command += [":"] if rank else []
        command += ["-n", "1", *_rank(rank, repository, endpoints, exit_timeout_s)]
    return command


def orchestrator_command(
    gpus: int,
    repository: str = MOUNT,
    endpoints: Endpoints = INSIDE,
    exit_timeout_s: int = EXIT_TIMEOUT_S,
) -> list[str]:
    """Serves in orchestrator mode: one tritonserver spawns a worker process per rank itself.

    Needs :data:`ORCHESTRATOR_ENVIRONMENT`. Works on one machine only. The server itself takes no
    GPU memory, which leaves it to the workers. It stops as several ranks do; see
    :func:`server_command`.

    Args:
        gpus: GPUs that the server sees.
        repository: Where the repository is for the server.
        endpoints: Where it listens.
        exit_timeout_s: Seconds that Triton would give to requests in flight.
    """
    return [
        *(*MPIRUN, "-n", "1"),
        *_rank(0, repository, endpoints, exit_timeout_s),
        "--pinned-memory-pool-byte-size=0",
        "--enable-peer-access=false",
        *(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(gpus)),
    ]


def _rank(rank: int, repository: str, endpoints: Endpoints, exit_timeout_s: int | str) -> list[str]:
    control = ["--model-control-mode=none"]
    if rank:
        control = ["--model-control-mode=explicit", f"--load-model={ENGINE}"]
    return [
        "tritonserver",
        f"--model-repository={repository}",
        *control,
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        f"--http-address={endpoints.http_host or endpoints.host}",
        f"--http-port={endpoints.http}",
        f"--grpc-address={endpoints.host}",
        f"--grpc-port={endpoints.grpc}",
        f"--metrics-address={endpoints.host}",
        f"--metrics-port={endpoints.metrics}",
        f"--exit-timeout-secs={exit_timeout_s}",
        # Ranks share /dev/shm; with one prefix they would remove each other's regions.
        f"--backend-config=python,shm-region-prefix-name=trtllm_pipeline_rank{rank}_",
        # Each call that waits for its model's first response holds one; Triton's 32 make the
        # streams of more clients stall.
        f"--backend-config=python,thread-pool-size={CALLING_THREADS}",
        "--log-format=ISO8601",
    ]


def is_ready(port: int = INSIDE.http) -> bool:
    """Asks whether every model of the server on this machine is ready."""
    url = f"http://127.0.0.1:{port}/v2/health/ready"
    try:
        # A proxy of the environment has nothing to do with this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=CHECK_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Becomes the server, or checks the one that runs; returns an exit code if it does not."""
    parser = argparse.ArgumentParser(description="Serve the TensorRT repository at /models.")
    parser.add_argument("--check", action="store_true", help="exit 0 if the server is ready")
    parser.add_argument("--orchestrator", action="store_true", help="spawn a worker per rank")
    parser.add_argument("--mpirun", action="store_true", help="use mpirun for one rank too")
    options = parser.parse_args(arguments)
    if options.check:
        return 0 if is_ready() else 1
    try:
        ranks = world_size(Path(MOUNT))
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"{MOUNT}/{ENGINE_CONFIG} does not say how many ranks the engine has: {error!r}"
        fix = f"Mount a repository that trtllm-pipeline built at {MOUNT}."
        print(f"error: {reason}. {fix}", file=sys.stderr)
        return 5
    here = os.environ.get("TRT_VERSION")
    if here and (problem := tensorrt_problem(Path(MOUNT), here)):
        print(f"error: {problem}.", file=sys.stderr)
        return 3
    command = server_command(ranks, mpirun=options.mpirun)
    if options.orchestrator:
        command = orchestrator_command(ranks)
    environment = ORCHESTRATOR_ENVIRONMENT if options.orchestrator else {}
    print(" ".join(command), flush=True)
    try:
        os.execvpe(command[0], command, {**os.environ, **environment})  # noqa: S606
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error.strerror}.", file=sys.stderr)
    return 6


if __name__ == "__main__":
    sys.exit(main())

"""The real tritonserver under its supervisor."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from pipeline.errors import ServerError
from pipeline.triton.guardian import SHARED_MEMORY, children
from pipeline.triton.server import TritonServer
from pipeline.triton.stubs import is_alive, live_stubs
from tests.conftest import PROJECT
from tests.integration.echo_models import write_counter

REGIONS = "trtllm_pipeline_*"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_counter(tmp_path / "repository", "counter")
    return write_counter(tmp_path / "repository", "other")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "server.log"


@contextmanager
def counting(url: str, count: int) -> Iterator[queue.Queue[int | Exception | None]]:
    """A stream of the counter model: its numbers, None at the end, or the error."""
    client = grpcclient.InferenceServerClient(url)
    answers: queue.Queue[int | Exception | None] = queue.Queue()

    def on_answer(result: Any, error: Exception | None) -> None:
        if error:
            answers.put(error)
            return
        answers.put(int(result.as_numpy("index")[0]))
        if result.get_response().parameters["triton_final_response"].bool_param:
            answers.put(None)

    client.start_stream(on_answer)
    tensor = grpcclient.InferInput("count", [1], "INT32")
    tensor.set_data_from_numpy(np.array([count], np.int32))
    client.async_stream_infer("counter", [tensor], enable_empty_final_response=True)
    try:
        yield answers
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()


def numbers(url: str, count: int) -> list[int | Exception]:
    received: list[int | Exception] = []
    with counting(url, count) as answers:
        while (answer := answers.get(timeout=10)) is not None:
            received.append(answer)
            if isinstance(answer, Exception):
                break
    return received


def wait_for(condition: Callable[[], object], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def regions(server: int) -> set[Path]:
    """Shared memory that the server's stubs were given, by their command lines."""
    words = [
        word
        for pid in children(server)
        for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    ]
    return {path for path in SHARED_MEMORY.glob(REGIONS) if path.name in words}


def test_serves_and_leaves_nothing_behind(repository: Path, log: Path) -> None:
    server = TritonServer(repository, log_file=log)
    assert server.health().state == "stopped"
    with server:
        health = server.health()
        assert health.state == "ready"
        assert sorted(health.stubs.values()) == ["counter", "other"]
        assert numbers(server.grpc_url, 5) == [0, 1, 2, 3, 4]
        assert urllib.request.urlopen(f"{server.http_url}/v2/health/live").status == 200
        assert b"nv_inference_request_success" in urllib.request.urlopen(server.metrics_url).read()
        pids = [health.pid, *health.stubs]
        shared = regions(health.pid or 0)
        assert len(shared) == 2
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 10
    assert not any(is_alive(pid) for pid in pids if pid)
    assert not any(path.exists() for path in shared)
    assert server.health().state == "stopped"
    server.stop()
    # Files that no manifest lists would make the repository look changed.
    assert not list(repository.rglob("__pycache__"))
    assert "Started GRPCInferenceService" in log.read_text()


def test_listens_on_loopback_only_and_without_model_control(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log) as server:
        pid = server.health().pid
        listening = subprocess.run(
            [sys.executable, "-c", LISTENERS, str(pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(listening) == 3
        # 127.0.0.1, as IPv4 and as an IPv6 socket that maps it.
        loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
        assert {address.split(":")[0] for address in listening} <= loopback
        request = urllib.request.Request(
            f"{server.http_url}/v2/repository/models/counter/unload", data=b"{}"
        )
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 403"):
            urllib.request.urlopen(request)
        assert numbers(server.grpc_url, 1) == [0]


# Local addresses of the listening TCP sockets of a process, as /proc/net/tcp writes them.
LISTENERS = """
import os, sys
pid = sys.argv[1]
links = {os.readlink(e.path) for e in os.scandir(f"/proc/{pid}/fd") if os.path.islink(e.path)}
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/{pid}/net/{name}").readlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in links:
            print(words[1])
"""


def test_port_in_use(repository: Path, log: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"the gRPC port {port} is in use"):
            TritonServer(repository, grpc_port=port, log_file=log).start()
    assert not log.exists()


def test_missing_repository(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="there is no such model repository"):
        TritonServer(tmp_path / "nowhere").start()


def test_log_that_cannot_be_written(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="the server's log cannot be written"):
        TritonServer(repository, log_file=tmp_path / "file" / "server.log").start()


def test_cause_of_a_broken_model(repository: Path, log: Path) -> None:
    write_counter(repository, "broken", 'raise RuntimeError("no engine here")\n')
    server = TritonServer(repository, log_file=log)
    with pytest.raises(ServerError, match="Triton did not start") as caught:
        server.start()
    assert "Model broken failed to load: RuntimeError: no engine here" in str(caught.value)
    assert "broken/1/model.py:1" in str(caught.value)
    assert server.health().pid is None


def test_cause_of_an_unfilled_template(repository: Path, log: Path) -> None:
    config = repository / "other" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 0", "max_batch_size: ${size}"))
    with pytest.raises(
        ServerError, match=r"other/config\.pbtxt is not a valid model conf.*got: \$"
    ):
        TritonServer(repository, log_file=log).start()


def test_models_that_load_too_slowly(repository: Path, log: Path) -> None:
    write_counter(repository, "slow", "import time; time.sleep(60)\n")
    server = TritonServer(repository, log_file=log, ready_timeout_s=1.0, exit_timeout_s=1)
    with pytest.raises(ServerError, match="Triton was not ready after 1 s"):
        server.start()
    assert server.health().pid is None


def test_stops_while_a_client_holds_its_stream_open(repository: Path, log: Path) -> None:
    server = TritonServer(repository, log_file=log, exit_timeout_s=2).start()
    with counting(server.grpc_url, 100_000) as answers:
        assert answers.get(timeout=10) == 0
        health = server.health()
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 10
    assert not any(is_alive(pid) for pid in [health.pid or 0, *health.stubs])


def test_recovers_from_a_killed_stub(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log) as server:
        stub = next(pid for pid, name in server.health().stubs.items() if name == "counter")
        with counting(server.grpc_url, 100_000) as answers:
            assert answers.get(timeout=10) == 0
            os.kill(stub, signal.SIGKILL)
            # The request in flight ends with an error instead of never.
            while not isinstance(answer := answers.get(timeout=10), Exception):
                pass
        assert "StatusCode.UNAVAILABLE" in str(answer)
        assert wait_for(lambda: server.health().state == "ready", 10)
        assert server.health().restarts == 1
        assert "model counter died" in str(server.health().error)
        assert numbers(server.grpc_url, 3) == [0, 1, 2]


def test_recovers_from_a_killed_server_and_a_killed_guardian(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log) as server:
        os.kill(server.health().pid or 0, signal.SIGKILL)
        assert wait_for(lambda: server.health().restarts == 1, 10)
        os.kill(_guardian_of(server.health().pid or 0), signal.SIGKILL)
        assert wait_for(lambda: server.health().restarts == 2, 10)
        assert numbers(server.grpc_url, 2) == [0, 1]


def _guardian_of(server: int) -> int:
    stat = Path(f"/proc/{server}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def test_gives_up_when_the_model_cannot_come_back(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log) as server:
        (repository / "counter/1/answers.py").write_text("raise RuntimeError('disk is gone')\n")
        stub = next(pid for pid, name in server.health().stubs.items() if name == "counter")
        os.kill(stub, signal.SIGKILL)
        with pytest.raises(ServerError, match="restarted too often") as caught:
            server.wait(60)
        assert "disk is gone" in str(caught.value)
        assert server.health().state == "failed"
        assert server.health().pid is None


def test_a_killed_supervisor_leaves_nothing(repository: Path, log: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from pipeline.triton.server import TritonServer\n"
        f"server = TritonServer(Path({str(repository)!r}), log_file=Path({str(log)!r})).start()\n"
        "print(server.health().pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as supervisor:
        assert supervisor.stdout
        server = int(supervisor.stdout.readline())
        guardian = _guardian_of(server)
        stubs, shared = live_stubs(server), regions(server)
        assert len(stubs) == len(shared) == 2
        os.kill(supervisor.pid, signal.SIGKILL)
    assert wait_for(lambda: not is_alive(guardian), 12)
    assert not any(is_alive(pid) for pid in [server, *stubs])
    assert not any(path.exists() for path in shared)

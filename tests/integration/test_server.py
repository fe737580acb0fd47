"""The real tritonserver under its supervisor."""

from __future__ import annotations

import dataclasses
import errno
import http.client
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from pipeline.errors import ServerError
from pipeline.service.relay import Relay
from pipeline.service.sink import Sink
from pipeline.triton import process
from pipeline.triton import server as server_module
from pipeline.triton.by_hand import by_hand
from pipeline.triton.guardian import SHARED_MEMORY, children
from pipeline.triton.installation import Installation
from pipeline.triton.owners import places
from pipeline.triton.ports import reserve
from pipeline.triton.process import ServerProcess
from pipeline.triton.server import TritonServer
from pipeline.triton.stubs import is_alive, live_stubs
from tests.conftest import PROJECT
from tests.integration.echo_models import write_counter

REGIONS = "trtllm_pipeline_*"
# As long as a busy machine may take; what has happened is seen at once.
PATIENCE_S = 60.0

# Waits for the server nearly all the time, as the engine's stub does when it publishes metrics.
WAITING = """
import threading
import triton_python_backend_utils as pb_utils


def publish():
    family = pb_utils.MetricFamily(
        name="waits_total", description="waits", kind=pb_utils.MetricFamily.COUNTER
    )
    metric = family.Metric(labels={"model": "waiting"})
    while True:
        metric.increment(1)


threading.Thread(target=publish, daemon=True).start()
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_counter(tmp_path / "repository", "counter")
    return write_counter(tmp_path / "repository", "other")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    root = tmp_path_factory.mktemp("served")
    write_counter(root / "repository", "counter")
    with TritonServer(root / "repository", log_file=root / "server.log") as server:
        yield server


@contextmanager
def _supervisor(
    repository: Path, log: Path, owners: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A supervisor that can be killed, and the process id of its server.

    Args:
        owners: A folder of its own for who owns which server, as ``own_places`` makes one.
    """
    program = (
        "import sys, time; from pathlib import Path\n"
        "from pipeline.triton import process\n"
        "from pipeline.triton.server import TritonServer\n"
        f"process.places = lambda: Path({str(owners or places())!r})\n"
        f"server = TritonServer(Path({str(repository)!r}), log_file=Path({str(log)!r})).start()\n"
        "print(server.health().pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program]
    # Nobody is left to remove the private folder when the guardian is killed as well.
    environment = {**os.environ, "TMPDIR": str(repository.parent)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=PROJECT, env=environment
    ) as supervisor:
        assert supervisor.stdout
        yield supervisor, int(supervisor.stdout.readline())


@pytest.fixture
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder in which servers tell who owns them.

    Other tests start servers on this machine at the same time, and each of them may remove what a
    killed one has left.
    """
    folder = places(tmp_path)
    assert folder
    for module in (process, server_module):
        monkeypatch.setattr(module, "places", lambda: folder)
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "server.log"


@contextmanager
def counting(
    url: str, count: int, model: str = "counter"
) -> Iterator[queue.Queue[int | Exception | None]]:
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
    client.async_stream_infer(model, [tensor], enable_empty_final_response=True)
    try:
        yield answers
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()


def numbers(url: str, count: int) -> list[int | Exception]:
    received: list[int | Exception] = []
    with counting(url, count) as answers:
        while (answer := answers.get(timeout=60)) is not None:
            received.append(answer)
            if isinstance(answer, Exception):
                break
    return received


def wait_for(condition: Callable[[], object], within_s: float = PATIENCE_S) -> bool:
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
    server = TritonServer(repository, log_file=log, exit_timeout_s=60)
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
    # Nobody is waited for.
    assert time.monotonic() - stopping < server.patience_s
    assert not any(is_alive(pid) for pid in pids if pid)
    assert not any(path.exists() for path in shared)
    assert server.health().state == "stopped"
    server.stop()
    # Files that no manifest lists would make the repository look changed.
    assert not list(repository.rglob("__pycache__"))
    assert "Started GRPCInferenceService" in log.read_text()


def test_secrets_of_the_environment_reach_no_process(
    repository: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "NVIDIA_API_KEY", "https_proxy")
    for name in secrets:
        monkeypatch.setenv(name, "not for the server")
    monkeypatch.setenv("ONEDNN_VERBOSE", "0")
    monkeypatch.setenv("ASKED_FOR", "yes")
    before = os.umask(0o022)
    try:
        with TritonServer(repository, log_file=log, variables=["ASKED_FOR", "UNSET"]) as server:
            health = server.health()
            pids = [health.pid or 0, *health.stubs, _guardian_of(health.pid or 0)]
            for pid in pids:
                text = Path(f"/proc/{pid}/environ").read_bytes().decode()
                assert "not for the server" not in text
                words = text.split("\0")
                assert {"ONEDNN_VERBOSE=0", "ASKED_FOR=yes"} <= set(words)
                assert not {word.partition("=")[0] for word in words} & {*secrets, "UNSET"}
            shared = regions(health.pid or 0)
            assert len(shared) == 2
            for path in [log, *shared]:
                assert path.stat().st_mode & 0o077 == 0, path
    finally:
        os.umask(before)


def test_listens_on_loopback_only_and_without_model_control(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log) as server:
        pid = str(server.health().pid)
        # The port for metrics opens last, after the server is ready.
        assert wait_for(lambda: len(listeners(pid)) == 3)
        listening = listeners(pid)
        # 127.0.0.1, as IPv4 and as an IPv6 socket that maps it.
        loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
        assert {address.split(":")[0] for address in listening} <= loopback
        request = urllib.request.Request(
            f"{server.http_url}/v2/repository/models/counter/unload", data=b"{}"
        )
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 403"):
            urllib.request.urlopen(request)
        assert numbers(server.grpc_url, 1) == [0]


def listeners(pid: str) -> list[str]:
    """Local addresses of a process's listening TCP sockets, as /proc/net/tcp writes them."""
    return subprocess.run(
        [sys.executable, "-c", LISTENERS, pid], capture_output=True, text=True, check=True
    ).stdout.split()


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


@pytest.mark.parametrize(
    "path",
    [
        "v2/systemsharedmemory/status",
        "v2/systemsharedmemory/region/x/register",
        "v2/cudasharedmemory/status",
        "v2/repository/index",
        "v2/logging",
        "v2/trace/setting",
    ],
)
def test_nobody_reconfigures_the_server(served: TritonServer, path: str) -> None:
    body = b"{}" if path.endswith(("register", "index")) else None
    with pytest.raises(urllib.error.HTTPError, match="HTTP Error 403"):
        urllib.request.urlopen(urllib.request.Request(f"{served.http_url}/{path}", data=body))


@pytest.mark.parametrize(
    "name",
    [
        "get_system_shared_memory_status",
        "get_cuda_shared_memory_status",
        "get_model_repository_index",
        "get_log_settings",
        "get_trace_settings",
    ],
)
def test_nobody_reconfigures_the_server_over_grpc(served: TritonServer, name: str) -> None:
    with (
        grpcclient.InferenceServerClient(served.grpc_url) as client,
        pytest.raises(InferenceServerException, match="This protocol is restricted"),
    ):
        getattr(client, name)()


def test_what_clients_and_monitoring_need_is_open(served: TritonServer) -> None:
    with grpcclient.InferenceServerClient(served.grpc_url) as client:
        assert client.is_server_ready()
        assert client.get_server_metadata().name == "triton"
        assert client.get_model_metadata("counter").name == "counter"
        assert client.get_model_config("counter").config.name == "counter"
        assert len(client.get_inference_statistics("counter").model_stats) == 1
    for path in ("v2/health/live", "v2", "v2/models/counter/config", "v2/models/stats"):
        assert urllib.request.urlopen(f"{served.http_url}/{path}").status == 200
    # The key that would open the rest is seen by nobody: /proc/PID/cmdline is for all users.
    words = Path(f"/proc/{served.health().pid}/cmdline").read_text().split("\0")
    assert {word.rpartition("=")[2] for word in words if "restricted" in word} == {"hidden"}
    assert b"closed=" not in Path(f"/proc/{served.health().pid}/environ").read_bytes()


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
    with pytest.raises(ServerError, match=r"log cannot be written.*Give another place"):
        TritonServer(repository, log_file=tmp_path / "file" / "server.log").start()


def test_cause_of_a_broken_model(repository: Path, log: Path) -> None:
    write_counter(repository, "broken", 'raise RuntimeError("no engine here")\n')
    server = TritonServer(repository, log_file=log)
    with pytest.raises(ServerError, match="Triton did not start") as caught:
        server.start()
    assert "Model broken failed to load: RuntimeError: no engine here" in str(caught.value)
    assert "broken/1/model.py:1" in str(caught.value)
    assert server.health().pid is None


def test_a_server_that_hangs_in_its_own_exit_is_not_waited_for(
    repository: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_counter(repository, "broken", 'raise RuntimeError("no engine here")\n')
    monkeypatch.setattr(ServerProcess, "poll", lambda _self: None)
    with pytest.raises(ServerError, match=r"Triton did not start.*no engine here"):
        TritonServer(repository, log_file=log, ready_timeout_s=60).start()


def test_what_a_server_said_before_it_ended_counts_when_its_end_is_not_seen(
    repository: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_counter(repository, "broken", 'raise RuntimeError("no engine here")\n')
    monkeypatch.setattr(ServerProcess, "poll", lambda _self: None)
    monkeypatch.setattr(ServerProcess, "pid", None)
    with pytest.raises(ServerError, match=r"Triton did not start.*no engine here"):
        TritonServer(repository, log_file=log, ready_timeout_s=60).start()


def test_a_backend_that_is_a_folder_with_a_model_serves_its_models(
    repository: Path, log: Path, tmp_path: Path
) -> None:
    """Triton's Python-based backends; the model's own folder holds a configuration and no code."""
    backend = tmp_path / "counting"
    backend.mkdir()
    for path in (repository / "counter" / "1").glob("*.py"):
        path.rename(backend / path.name)
    config = repository / "counter" / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "python"', 'backend: "counting"'))
    with TritonServer(repository, log_file=log, backends={"counting": backend}) as server:
        assert numbers(server.grpc_url, 3) == [0, 1, 2]
        assert set(server.health().stubs.values()) == {"counter", "other"}
    with pytest.raises(ServerError, match="unable to find backend library for backend 'counting'"):
        TritonServer(repository, log_file=log).start()


def failing_server(folder: Path, times: int) -> Installation:
    """The real server behind a script that dies first, as Triton was seen to die under load."""
    real, count = Installation.find(), folder / "count"
    script = folder / "tritonserver"
    script.write_text(
        "#!/bin/sh\n"
        f"echo x >> {count}\n"
        f'if [ $(wc -l < {count}) -gt {times} ]; then exec {real.binary} "$@"; fi\n'
        'echo "terminate called after throwing an instance of '
        "'boost::interprocess::lock_exception'\"\n"
        "echo '  what():  boost::interprocess::lock_exception'\n"
        "kill -ABRT $$\n"
    )
    script.chmod(0o755)
    return dataclasses.replace(real, binary=script)


def test_a_start_that_dies_of_a_lock_is_repeated_once(
    repository: Path,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    installation = failing_server(tmp_path, times=1)
    monkeypatch.setattr(Installation, "find", lambda: installation)
    with TritonServer(repository, log_file=log) as server:
        assert numbers(server.grpc_url, 3) == [0, 1, 2]
        assert server.health().restarts == 0
    assert "starting it once more" in caplog.text
    assert "lock_exception" in caplog.text


def test_a_start_that_dies_of_a_lock_twice_names_it(
    repository: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = failing_server(tmp_path, times=2)
    monkeypatch.setattr(Installation, "find", lambda: installation)
    with pytest.raises(
        ServerError, match=r"did not start.*lock_exception.*fewer servers"
    ) as raised:
        TritonServer(repository, log_file=log).start()
    assert raised.value.as_dict()["error"] == "ServerError"  # as --json names it
    assert (tmp_path / "count").read_text() == "x\nx\n"


def test_cause_of_an_unfilled_template(repository: Path, log: Path) -> None:
    config = repository / "other" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 0", "max_batch_size: ${size}"))
    with pytest.raises(
        ServerError, match=r"other/config\.pbtxt is not a valid model conf.*got: \$"
    ):
        TritonServer(repository, log_file=log).start()


@pytest.mark.parametrize("name", ["with space", "a$(touch injected)'\"`;&", "naïve 漢字", "a\nb"])
def test_the_repositorys_path_may_hold_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    repository = write_counter(tmp_path / name, "counter")
    with TritonServer(repository, log_file=tmp_path / "server.log") as server:
        assert numbers(server.grpc_url, 2) == [0, 1]
    assert {path.name for path in tmp_path.iterdir()} == {name, "server.log"}
    write_counter(repository, "broken", 'raise RuntimeError("no engine here")\n')
    with pytest.raises(ServerError, match="no engine here") as caught:
        TritonServer(repository, log_file=tmp_path / "server.log").start()
    assert f"({repository}/broken/1/model.py:1, in" in str(caught.value)


def test_a_stub_that_dies_while_another_model_loads(repository: Path, log: Path) -> None:
    timer = "threading.Timer(0.5, lambda: os.kill(os.getpid(), 9)).start()"
    write_counter(repository, "doomed", f"import os, threading; {timer}\n")
    write_counter(repository, "slow", "import time; time.sleep(600)\n")
    server = TritonServer(repository, log_file=log, ready_timeout_s=600, exit_timeout_s=1)
    with pytest.raises(ServerError, match="Triton did not start") as caught:
        server.start()
    # Triton says so itself of one that ends before it has opened its model; and on a busy machine
    # it can have ended before anybody has seen whose process it is.
    assert re.search(
        "process of (model doomed|a model) died while the models were loading"
        "|Model doomed failed to load: its Python process ended by itself",
        str(caught.value),
    )
    assert server.health().pid is None


def test_a_model_that_fails_while_another_loads_is_told_at_once(
    repository: Path, log: Path
) -> None:
    write_counter(repository, "broken", 'raise RuntimeError("no engine here")\n')
    write_counter(repository, "slow", "import time; time.sleep(600)\n")
    server = TritonServer(repository, log_file=log, ready_timeout_s=600, exit_timeout_s=1)
    with pytest.raises(ServerError, match="Model broken failed to load: RuntimeError: no engine"):
        server.start()
    assert server.health().pid is None


def test_models_that_load_too_slowly(repository: Path, log: Path) -> None:
    write_counter(repository, "slow", "import time; time.sleep(60)\n")
    server = TritonServer(repository, log_file=log, ready_timeout_s=1.0, exit_timeout_s=1)
    with pytest.raises(ServerError, match="Triton was not ready after 1 s"):
        server.start()
    assert server.health().pid is None


def test_stops_while_a_client_holds_its_stream_open(repository: Path, log: Path) -> None:
    server = TritonServer(repository, log_file=log, exit_timeout_s=2).start()
    with counting(server.grpc_url, 100_000) as answers:
        assert answers.get(timeout=60) == 0
        health = server.health()
        started = time.monotonic()
        server.stop()
        # It counts for half an hour.
        assert time.monotonic() - started < PATIENCE_S
    assert not any(is_alive(pid) for pid in [health.pid or 0, *health.stubs])


def test_a_stop_that_waits_for_a_client_can_be_hurried(repository: Path, tmp_path: Path) -> None:
    sink = Sink.open(tmp_path / "log")
    with Relay(sink, sink) as relay:
        server = TritonServer(repository, log_file=relay.log, exit_timeout_s=120).start()
        assert server.patience_s == 120
        with counting(server.grpc_url, 100_000) as answers:
            assert answers.get(timeout=60) == 0
            health = server.health()
            hurried = threading.Timer(1.0, server.hurry)
            started = time.monotonic()
            hurried.start()
            server.stop()
            # Not before, and long before the client would have been given up.
            assert 1 <= time.monotonic() - started < 60
            hurried.join()
    assert not any(is_alive(pid) for pid in [health.pid or 0, *health.stubs])
    assert "Started GRPCInferenceService" in (tmp_path / "log").read_text()


def test_a_cause_is_found_whatever_the_log_is(repository: Path, tmp_path: Path) -> None:
    write_counter(repository, "broken", "raise LookupError('no such thing')\n")
    sink = Sink.open(tmp_path / "log")
    with Relay(sink, sink) as relay, pytest.raises(ServerError, match="no such thing") as caught:
        TritonServer(repository, log_file=relay.log).start()
    assert caught.value.where == str(tmp_path / "log")
    assert "no such thing" in (tmp_path / "log").read_text()


def test_the_printed_command_serves(tmp_path: Path) -> None:
    repository = write_counter(tmp_path / "it's a 'repository'", "counter")
    for _ in range(5):
        ports = reserve("127.0.0.1", {"grpc_port": 0, "http_port": 0, "metrics_port": 0})
        lines = by_hand(repository, "127.0.0.1", ports, 30).lines
        assert max(len(line) for line in lines.splitlines()) < 400
        with subprocess.Popen(
            ["bash", "-c", lines],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as running:
            # It became the server itself, so a signal reaches that.
            url = f"http://127.0.0.1:{ports['http_port']}"
            assert wait_for(lambda: running.poll() is not None or _is_ready(url), 120)  # noqa: B023
            if running.poll() is not None:
                continue  # somebody else has taken one of the ports meanwhile
            assert numbers(f"127.0.0.1:{ports['grpc_port']}", 3) == [0, 1, 2]
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(
                    urllib.request.Request(f"{url}/v2/repository/index", data=b"{}"), timeout=30
                )
            running.terminate()
            # 1 is Triton's own for models that a busy machine did not unload in time; a shell
            # between the two would have ended by the signal.
            assert running.wait(60) in (0, 1)
            return
    raise AssertionError("it never served")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2):
            return True
    except OSError:
        return False


def test_recovers_from_a_killed_stub(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log) as server:
        stub = next(pid for pid, name in server.health().stubs.items() if name == "counter")
        with counting(server.grpc_url, 100_000) as answers:
            assert answers.get(timeout=60) == 0
            os.kill(stub, signal.SIGKILL)
            # The request in flight ends with an error instead of never.
            while not isinstance(answer := answers.get(timeout=60), Exception):
                pass
        assert "StatusCode.UNAVAILABLE" in str(answer)
        assert wait_for(lambda: server.health().state == "ready")
        assert server.health().restarts == 1
        assert "model counter died" in str(server.health().error)
        assert numbers(server.grpc_url, 3) == [0, 1, 2]


def test_recovers_from_a_killed_server_and_a_killed_guardian(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log) as server:
        os.kill(server.health().pid or 0, signal.SIGKILL)
        assert wait_for(lambda: server.health().restarts == 1)
        os.kill(_guardian_of(server.health().pid or 0), signal.SIGKILL)
        assert wait_for(lambda: server.health().restarts == 2)
        assert numbers(server.grpc_url, 2) == [0, 1]


def test_a_killed_guardian_leaves_no_stub_that_waits_for_the_server(
    repository: Path, log: Path
) -> None:
    write_counter(repository, "waiting", WAITING)
    with TritonServer(repository, log_file=log, watchdog=False) as server:
        health = server.health()
        shared = regions(health.pid or 0)
        os.kill(_guardian_of(health.pid or 0), signal.SIGKILL)
        assert wait_for(lambda: not is_alive(health.pid or 0))
    assert len(health.stubs) == len(shared) == 3
    assert wait_for(lambda: not any(is_alive(pid) for pid in health.stubs))
    assert not any(path.exists() for path in shared)


def _guardian_of(server: int) -> int:
    stat = Path(f"/proc/{server}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    "whom", ["counter", pytest.param("tritonserver", marks=pytest.mark.faults)]
)
def test_recovers_from_a_process_that_was_stopped(repository: Path, log: Path, whom: str) -> None:
    with TritonServer(repository, log_file=log) as server:
        health = server.health()
        pids = {name: pid for pid, name in health.stubs.items()}
        with counting(server.grpc_url, 100_000) as answers:
            assert answers.get(timeout=60) == 0
            os.kill({**pids, "tritonserver": health.pid or 0}[whom], signal.SIGSTOP)
            while not isinstance(answers.get(timeout=30), Exception):
                pass
        assert wait_for(lambda: server.health().restarts == 1)
        assert f"{whom} was stopped by a signal" in str(server.health().error)
        assert numbers(server.grpc_url, 3) == [0, 1, 2]
    assert not any(is_alive(pid) for pid in [health.pid or 0, *health.stubs])


@pytest.mark.faults
def test_recovers_from_a_model_that_keeps_the_interpreters_lock(
    repository: Path, log: Path
) -> None:
    write_counter(repository, "hanging", "import orphan; orphan.end_with_parent(period_s=0.1)\n")
    version = repository / "hanging" / "1"
    shutil.copy(PROJECT / "model_repo/common/orphan.py", version)
    model = (version / "model.py").read_text()
    (version / "model.py").write_text(
        # As an engine's step that never ends does.
        model.replace(
            "        for index in range(count):",
            "        if count == 13:\n"
            "            import ctypes; ctypes.PyDLL(None).sleep(600)\n"
            "        for index in range(count):",
        )
    )
    with TritonServer(repository, log_file=log, hung_after_s=3) as server:
        time.sleep(5)
        assert server.health().restarts == 0
        with counting(server.grpc_url, 13, "hanging"):
            assert wait_for(lambda: server.health().restarts == 1)
        assert "model hanging has not moved for 3 s" in str(server.health().error)
        assert numbers(server.grpc_url, 3) == [0, 1, 2]


def test_serves_without_http(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log, http=False) as server:
        assert wait_for(lambda: len(listeners(str(server.health().pid))) == 2)
        assert server.answers()
        assert server.responds()
        assert numbers(server.grpc_url, 2) == [0, 1]


def test_gives_up_when_the_model_does_not_come_back_in_time(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log, give_up_after_s=3) as server:
        (repository / "counter/1/answers.py").write_text("raise RuntimeError('disk is gone')\n")
        stub = next(pid for pid, name in server.health().stubs.items() if name == "counter")
        os.kill(stub, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"did not come back in \d+ s") as caught:
            server.wait(60)
        assert "disk is gone" in str(caught.value)
        assert server.health().state == "failed"
        assert server.health().pid is None


def test_a_cause_that_passes_ends_nothing(repository: Path, log: Path) -> None:
    with TritonServer(repository, log_file=log) as server:
        answers = repository / "counter/1/answers.py"
        text = answers.read_text()
        answers.write_text("raise RuntimeError('disk is gone')\n")
        os.kill(server.health().pid or 0, signal.SIGKILL)
        assert wait_for(lambda: "disk is gone" in str(server.trouble))
        answers.write_text(text)
        assert wait_for(lambda: server.health().state == "ready")
        assert numbers(server.grpc_url, 2) == [0, 1]
        news = server.news()
    assert news[0] == "tritonserver ended by itself; starting Triton again"
    assert "disk is gone" in news[1]
    assert "starting Triton again in 1 s" in news[1]
    assert "ready again after" in news[-1]
    assert server.trouble is None


def test_bodies_that_a_usual_stack_does_not_hold_are_refused(served: TritonServer) -> None:
    """Each ended the server where its threads had 8 MiB."""
    bodies = (b"[" * 300_000, b'{"count": "' + b"a" * 20_000_000 + b'"}')
    for body in bodies:
        with pytest.raises(urllib.error.HTTPError, match="HTTP Error"):
            urllib.request.urlopen(f"{served.http_url}/v2/models/counter/generate", body)
    assert served.health().restarts == 0
    assert numbers(served.grpc_url, 2) == [0, 1]


@pytest.mark.faults
def test_nested_json_does_not_end_the_service(repository: Path, log: Path) -> None:
    """Triton's HTTP front parses without a bound on depth; more often than a budget would have."""
    with TritonServer(repository, log_file=log) as server:
        for restarts in range(1, 5):
            with pytest.raises((OSError, http.client.HTTPException)):
                urllib.request.urlopen(
                    f"{server.http_url}/v2/models/counter/generate", b"[" * 8_000_000, timeout=10
                )
            assert wait_for(
                lambda wanted=restarts: (
                    server.health().restarts == wanted  # type: ignore[misc]
                    and server.health().state == "ready"
                ),
                30,
            )
        # Its Python processes died with it, and are not what is named.
        assert str(server.health().error).startswith("tritonserver ")
        assert numbers(server.grpc_url, 2) == [0, 1]


def test_a_restart_that_the_machine_refuses_is_one_that_failed(
    repository: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with TritonServer(repository, log_file=log, give_up_after_s=1) as server:
        monkeypatch.setattr("pipeline.triton.server.ServerProcess", refused)
        os.kill(server.health().pid or 0, signal.SIGKILL)
        with pytest.raises(ServerError, match="did not come back") as caught:
            server.wait(60)
    assert "No space left on device" in str(caught.value)


def test_a_watchdog_that_fails_ends_the_wait(
    repository: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken() -> None:
        raise ZeroDivisionError("a mistake")

    with TritonServer(repository, log_file=log) as server:
        pid = server.health().pid or 0
        # Where the watchdog, which is running already, looks every time.
        monkeypatch.setattr("pipeline.triton.server.is_alive", lambda _pid: mistaken())
        with pytest.raises(ServerError, match="the watchdog crashed") as caught:
            server.wait(60)
        assert server.health().state == "failed"
    assert "a mistake" in str(caught.value)
    assert not is_alive(pid)


def test_a_stub_that_nobody_is_left_to_end_ends_itself(
    repository: Path, log: Path, own_places: Path
) -> None:
    write_counter(repository, "waiting", f"import orphan; orphan.end_with_parent()\n{WAITING}")
    shutil.copy(PROJECT / "model_repo/common/orphan.py", repository / "waiting" / "1")
    with _supervisor(repository, log, own_places) as (supervisor, server):
        guardian, stubs = _guardian_of(server), live_stubs(server)
        shared = regions(server)
        os.kill(supervisor.pid, signal.SIGKILL)
        os.kill(guardian, signal.SIGKILL)
    assert len(stubs) == 3
    assert wait_for(lambda: not any(is_alive(pid) for pid in [server, *stubs]))
    for path in shared:
        path.unlink(missing_ok=True)


def test_the_next_start_removes_what_a_killed_supervisor_and_guardian_left(
    repository: Path, log: Path, tmp_path: Path, own_places: Path
) -> None:
    """With two other servers, of which one lives and one belongs to nobody that is known."""
    stranger = SHARED_MEMORY / f"trtllm_pipeline_{uuid.uuid4().hex[:12]}_stranger"
    stranger.touch()
    counter = write_counter(tmp_path / "third", "counter")
    try:
        with (
            TritonServer(counter, log_file=tmp_path / "third.log") as other,
            _supervisor(repository, log, own_places) as (supervisor, server),
        ):
            guardian, stubs, shared = _guardian_of(server), live_stubs(server), regions(server)
            environment = Path(f"/proc/{server}/environ").read_bytes().decode().split("\0")
            beats = next(w for w in environment if w.startswith("TRTLLM_PIPELINE_BEATS="))
            runtime = Path(beats.partition("=")[2]).parent
            for stub in stubs:
                # One that is stopped cannot end by itself.
                os.kill(stub, signal.SIGSTOP)
            os.kill(supervisor.pid, signal.SIGKILL)
            os.kill(guardian, signal.SIGKILL)
            # Until then it holds the lock that says that the server has an owner.
            supervisor.wait(PATIENCE_S)
            assert wait_for(lambda: not is_alive(server))
            assert len(stubs) == len(shared) == 2
            assert all(is_alive(pid) for pid in stubs)
            assert runtime.is_dir()
            with TritonServer(counter, log_file=tmp_path / "next.log") as following:
                assert wait_for(lambda: not any(is_alive(pid) for pid in stubs))
                assert not any(path.exists() for path in shared)
                assert not runtime.exists()
                assert "removed what killed servers had left" in following.news()[0]
            assert numbers(other.grpc_url, 3) == [0, 1, 2]
            assert other.health().restarts == 0
            assert len(regions(other.health().pid or 0)) == 1
        assert stranger.exists()
    finally:
        stranger.unlink()


def test_a_killed_supervisor_leaves_nothing(repository: Path, log: Path) -> None:
    with _supervisor(repository, log) as (supervisor, server):
        guardian = _guardian_of(server)
        stubs, shared = live_stubs(server), regions(server)
        assert len(stubs) == len(shared) == 2
        os.kill(supervisor.pid, signal.SIGKILL)
    assert wait_for(lambda: not is_alive(guardian))
    assert not any(is_alive(pid) for pid in [server, *stubs])
    assert not any(path.exists() for path in shared)

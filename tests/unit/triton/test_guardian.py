"""The guardian with small programs in the place of tritonserver."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.triton import guardian
from pipeline.triton.guardian import KILL, SHARED_MEMORY, children, remove_regions
from pipeline.triton.stubs import is_alive

GUARDIAN = (sys.executable, "-I", "-S", guardian.__file__)
OBEDIENT = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + OBEDIENT
# Its child ignores SIGTERM and outlives it, in the server's place a hung Python stub.
WITH_STUB = (
    "import subprocess, sys; "
    f"p = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], stdout=subprocess.PIPE); "
    f"p.stdout.readline(); {OBEDIENT}"
)
# Becomes the program in its arguments, which finds the file numbers below 1,100 taken.
MANY_FILES = (
    "import os, resource, sys; _, hard = resource.getrlimit(resource.RLIMIT_NOFILE); "
    "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)); "
    "[os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True) for _ in range(1100)]; "
    "os.execv(sys.argv[1], sys.argv[1:])"
)

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    path = tmp_path / "runtime"
    path.mkdir()
    return path


@pytest.fixture
def start(runtime: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(
        program: str, grace_s: float = 60.0, shm_prefix: str = "", before: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        settings = {"grace_s": grace_s, "shm_prefix": shm_prefix, "runtime": str(runtime)}
        process = subprocess.Popen(
            [*before, *GUARDIAN, json.dumps(settings), sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout
        process.stdout.readline()
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe and not pipe.closed:
                pipe.close()


def gone(pid: int, within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_end_of_input_stops_the_server(start: Start, runtime: Path) -> None:
    process = start(OBEDIENT)
    (server,) = children(process.pid)
    assert process.stdin
    process.stdin.close()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not is_alive(server)
    assert not runtime.exists()


def test_it_guards_whatever_the_number_of_open_files(start: Start) -> None:
    process = start(OBEDIENT, before=(sys.executable, "-c", MANY_FILES))
    assert process.poll() is None
    assert process.stdin
    process.stdin.close()
    assert process.wait(60) == 128 + signal.SIGTERM


def test_a_server_that_does_not_stop_is_killed_after_the_grace(start: Start) -> None:
    process = start(STUBBORN, grace_s=0.3)
    (server,) = children(process.pid)
    assert process.stdin
    process.stdin.close()
    assert process.wait(60) == 128 + signal.SIGKILL
    assert not is_alive(server)


def test_the_kill_byte_does_not_wait(start: Start) -> None:
    process = start(STUBBORN, grace_s=600.0)
    assert process.stdin
    process.stdin.write(KILL)
    process.stdin.close()
    assert process.wait(60) == 128 + signal.SIGKILL


def test_sigterm_stops_the_server(start: Start) -> None:
    process = start(OBEDIENT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def test_the_servers_own_end_is_passed_on(start: Start, runtime: Path) -> None:
    process = start("print('up', flush=True); raise SystemExit(7)")
    assert process.wait(60) == 7
    assert not runtime.exists()


def test_processes_of_the_server_do_not_outlive_it(start: Start) -> None:
    process = start(WITH_STUB)
    (server,) = children(process.pid)
    (stub,) = children(server)
    assert process.stdin
    process.stdin.close()
    process.wait(60)
    assert not is_alive(server)
    assert not is_alive(stub)


def test_shared_memory_is_removed_by_prefix(start: Start) -> None:
    prefix = f"trtllm_test_{uuid.uuid4().hex}_"
    other = SHARED_MEMORY / f"trtllm_other_{uuid.uuid4().hex}"
    region = SHARED_MEMORY / f"{prefix}1"
    region.touch()
    other.touch()
    try:
        process = start(OBEDIENT, shm_prefix=prefix)
        assert process.stdin
        process.stdin.close()
        process.wait(60)
        assert not region.exists()
        assert other.exists()
    finally:
        other.unlink()
        remove_regions(prefix)


def test_an_empty_prefix_removes_nothing() -> None:
    region = SHARED_MEMORY / f"trtllm_test_{uuid.uuid4().hex}"
    region.touch()
    try:
        remove_regions("")
        assert region.exists()
    finally:
        region.unlink()


def test_a_killed_guardian_takes_the_server_along(start: Start) -> None:
    process = start(STUBBORN)
    (server,) = children(process.pid)
    process.kill()
    assert gone(server)


def test_a_killed_supervisor_ends_the_server(start: Start, runtime: Path, tmp_path: Path) -> None:
    # A supervisor of its own holds the pipe, so that it can be killed.
    settings = {"grace_s": 60.0, "shm_prefix": "", "runtime": str(runtime)}
    command = [*GUARDIAN, json.dumps(settings)]
    program = (
        "import subprocess, sys, time; "
        f"g = subprocess.Popen({[*command, sys.executable, '-c', OBEDIENT]!r}, "
        "stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True); "
        "g.stdout.readline(); print(g.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout
        pid = int(supervisor.stdout.readline())
        (server,) = children(pid)
        os.kill(supervisor.pid, signal.SIGKILL)
    assert gone(server)
    assert gone(pid)
    assert not runtime.exists()


LIMITS = (
    "import resource; print('up', flush=True); "
    "print(resource.getrlimit(resource.RLIMIT_STACK), flush=True)"
)
# Becomes the program in its arguments, under a limit that it is given.
LIMITED = (
    "import os, resource, sys; name, soft, hard = sys.argv[1:4]; "
    "resource.setrlimit(getattr(resource, name), (int(soft), int(hard))); "
    "os.execv(sys.argv[4], sys.argv[4:])"
)


@pytest.mark.parametrize(
    ("limit", "soft", "hard", "given"),
    [
        ("RLIMIT_STACK", 8 << 20, -1, (64 << 20, -1)),
        ("RLIMIT_STACK", 8 << 20, 16 << 20, (16 << 20, 16 << 20)),
        ("RLIMIT_STACK", 128 << 20, 256 << 20, (128 << 20, 256 << 20)),
        # Where what could be used is counted, threads with deep stacks could not be started.
        ("RLIMIT_AS", 64 << 30, 64 << 30, None),
    ],
)
def test_the_server_gets_stacks_for_large_texts(
    start: Start, limit: str, soft: int, hard: int, given: tuple[int, int] | None
) -> None:
    words = (sys.executable, "-c", LIMITED, limit, str(soft), str(hard))
    process = start(LIMITS, before=words)
    assert process.stdout
    expected = given or resource.getrlimit(resource.RLIMIT_STACK)
    assert process.stdout.readline().decode().strip() == str(expected)
    assert process.wait(60) == 0


def test_stacks_stay_as_they_are_where_memory_is_promised_strictly(tmp_path: Path) -> None:
    (tmp_path / "strict").write_text("2\n")
    before = resource.getrlimit(resource.RLIMIT_STACK)
    guardian.deepen_stack(tmp_path / "strict")
    guardian.deepen_stack(tmp_path / "no such file")
    assert resource.getrlimit(resource.RLIMIT_STACK) == before

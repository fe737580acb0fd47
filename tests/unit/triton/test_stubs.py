"""Stubs of a server, with small programs in their place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.triton.guardian import STUB, end_stubs
from pipeline.triton.stubs import NOTICED_S, LoadingStubs, is_alive

# Starts what its arguments say and never collects it.
SERVER = """
import subprocess, sys, time
subprocess.Popen(sys.argv[1:])
print("up", flush=True)
time.sleep(600)
"""


@contextmanager
def server(*command: str) -> Iterator[tuple[int, int]]:
    """Process ids of a server and of what it started."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *command], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        child = int(children[0])
        try:
            yield process.pid, child
        finally:
            process.kill()
            if is_alive(child):
                os.kill(child, signal.SIGKILL)


def dead(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def test_a_stub_that_dies_unnoticed_while_loading_is_lost_after_a_while(tmp_path: Path) -> None:
    # Its command line is that of a stub of the model.
    stub = tmp_path / STUB
    stub.symlink_to(sys.executable)
    model = tmp_path / "eng" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import time; time.sleep(600)")
    now = 0.0
    loading = LoadingStubs(clock=lambda: now)
    with server(str(stub), str(model)) as (pid, child):
        assert loading.lost(pid) is None
        now = 1000.0
        assert loading.lost(pid) is None
        os.kill(child, signal.SIGKILL)
        assert dead(child)
        assert loading.lost(pid) is None
        now += NOTICED_S / 2
        assert loading.lost(pid) is None
        now += NOTICED_S
        assert "process of model eng died while the models" in str(loading.lost(pid))
        assert loading.names == {child: "eng"}


def test_a_stub_that_died_before_it_was_seen_has_no_name(tmp_path: Path) -> None:
    now = 0.0
    loading = LoadingStubs(clock=lambda: now)
    with server(sys.executable, "-c", "") as (pid, child):
        assert dead(child)
        assert loading.lost(pid) is None
        now = NOTICED_S
        assert "process of a model died while the models" in str(loading.lost(pid))


def test_stubs_are_ended_by_the_prefix_of_their_server(tmp_path: Path) -> None:
    stub = tmp_path / STUB
    stub.symlink_to(sys.executable)
    sleep = ("-c", "import time; time.sleep(600)", "model.py")
    mine, other = f"mine_{uuid.uuid4().hex}_", f"other_{uuid.uuid4().hex}_"
    with (
        server(str(stub), *sleep, f"{mine}region") as (_, ended),
        server(str(stub), *sleep, f"{other}region") as (_, neighbour),
        server(sys.executable, *sleep, f"{mine}region") as (_, no_stub),
    ):
        end_stubs("")
        assert is_alive(ended)
        end_stubs(mine)
        assert dead(ended)
        assert is_alive(neighbour)
        assert is_alive(no_stub)

"""The memory of a server's processes, against psutil, with small programs in their place."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.targets.tensorrt.serve.container import Endpoints
from pipeline.targets.tensorrt.serve.launch import Launch
from pipeline.targets.tensorrt.serve.server import LaunchedServer
from pipeline.triton.memory import Memory, memory_of
from pipeline.triton.server import TritonServer

MIB = 1 << 20
# Two processes that hold 64 MiB together before the fork, and 32 MiB each after it.
PROGRAM = """
import os, time
shared = b"s" * (64 << 20)
child = os.fork()
own = bytes([65 + bool(child)]) * (32 << 20)
if child:
    print("up", flush=True)
time.sleep(60)
"""


def test_a_tree_of_processes_counts_what_they_share_once() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, start_new_session=True
    ) as root:
        assert root.stdout
        root.stdout.readline()
        time.sleep(0.3)  # the child fills its part, too
        process = psutil.Process(root.pid)
        (child,) = process.children()
        try:
            found = memory_of(root.pid)
            expected = sum(one.memory_full_info().pss for one in (process, child))
            resident = sum(one.memory_info().rss for one in (process, child))
        finally:
            child.kill()
            root.kill()
    assert found.bytes == pytest.approx(expected, rel=0.02)
    assert 128 * MIB < found.bytes < 160 * MIB
    assert resident > found.bytes + 60 * MIB


def test_a_process_that_is_not_there_has_no_figure() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    found = memory_of(gone.pid)
    assert found.bytes is None
    assert f"process {gone.pid} cannot be read" in str(found.why)


def test_a_server_that_does_not_run_says_so() -> None:
    assert TritonServer(Path("nowhere")).memory() == Memory(None, "the server does not run")
    launch = Launch(("tritonserver",), Endpoints("127.0.0.1"), None)
    assert LaunchedServer(Path("nowhere"), launch).memory().why == "the server does not run"


def test_the_processes_of_a_container_are_not_this_machines_to_measure() -> None:
    launch = Launch(("docker", "run"), Endpoints("127.0.0.1"), "image", "trtllm-pipeline-8001")
    memory = LaunchedServer(Path("nowhere"), launch).memory()
    assert memory.bytes is None
    assert "in a container" in str(memory.why)

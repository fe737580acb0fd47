"""Repositories and ports that are not as they should be."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import RepositoryError
from pipeline.serving import check_custody
from tests.conftest import PROJECT

from .record import Fault
from .service import ANY_PORTS, Service, until

DAMAGES: dict[str, Callable[[Path], object]] = {
    "a byte of the weights": lambda place: _flip(
        place / "tensorrt_llm/1/engine/openvino_model.bin"
    ),
    "a line of a model's code": lambda place: _rewrite(place / "tensorrt_llm_bls/1/model.py", b"#"),
    "a file more": lambda place: (place / "preprocessing/1/json.py").write_text("evil = 1\n"),
    "a version more, as a link": lambda place: (place / "postprocessing/2").symlink_to(
        place / "postprocessing/1"
    ),
    "a file less": lambda place: (place / "tensorrt_llm/config.pbtxt").unlink(),
    "a digest in the manifest": lambda place: _rewrite(place / "artifact.json", b"\n"),
}
"""What is done to a copy."""

HALVES: dict[str, Callable[[Path], object]] = {
    "no manifest yet": lambda place: (place / "artifact.json").unlink(),
    "half a manifest": lambda place: _halve(place / "artifact.json"),
    "half the weights": lambda place: _halve(place / "tensorrt_llm/1/engine/openvino_model.bin"),
    "no engine yet": lambda place: shutil.rmtree(place / "tensorrt_llm/1/engine"),
}
"""What a copy that was interrupted looks like."""


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    _put(path, bytes(content))


def _rewrite(path: Path, more: bytes) -> None:
    content = path.read_bytes()
    _put(
        path,
        content.replace(b'"sha256": "', b'"sha256": "0', 1) if more == b"\n" else content + more,
    )


def _halve(path: Path) -> None:
    content = path.read_bytes()
    _put(path, content[: len(content) // 2])


def _put(path: Path, content: bytes) -> None:
    path.unlink()  # it may be a hard link into a store
    path.write_bytes(content)


def refuse(repository: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``serve``, which is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "serve", str(repository), *ANY_PORTS],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.faults
@pytest.mark.parametrize("what", ["a byte of the weights", "no manifest yet"])
def test_serve_refuses_what_was_not_built(
    repository: Path, tmp_path: Path, fault: Callable[..., Fault], what: str
) -> None:
    row = fault(
        f"repository {'tampered with' if what in DAMAGES else 'half-written'}: {what}",
        "in a copy, which is served",
        "exit code 5 and one paragraph that names the file, before Triton starts",
    )
    place = tmp_path / "copy"
    shutil.copytree(repository, place)
    (DAMAGES | HALVES)[what](place)
    started = time.monotonic()
    done = refuse(place)
    row.measured("refused after", time.monotonic() - started)
    assert done.returncode == 5
    assert "openvino_model.bin" in done.stderr or "artifact.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert "ready" not in done.stdout


@pytest.mark.parametrize("kind", ["tampered with", "half-written"])
def test_custody_refuses_what_was_not_built(
    repository: Path, tmp_path: Path, fault: Callable[..., Fault], kind: str
) -> None:
    ways = DAMAGES if kind == "tampered with" else HALVES
    row = fault(
        f"repository {kind}",
        "; ".join(ways),
        "each is refused, and the file is named",
    )
    for number, damage in enumerate(ways.values()):
        place = tmp_path / f"{number}"
        shutil.copytree(repository, place)
        assert check_custody(place)
        damage(place)
        with pytest.raises(RepositoryError, match=r"artifact\.json|/"):
            check_custody(place)
    row.measured("refused", len(ways), f"of {len(ways)}")


@pytest.mark.faults
def test_a_taken_port_is_named(
    repository: Path, tmp_path: Path, fault: Callable[..., Fault]
) -> None:
    row = fault(
        "port taken",
        "another program listens on the gRPC port",
        "exit code 6 and one paragraph that names the port, before Triton starts",
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "serve", str(repository), *ANY_PORTS,
             "--grpc-port", port, "--log", str(tmp_path / "log")],
            cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        row.measured("refused after", time.monotonic() - started)
    assert done.returncode in (3, 6), done.stderr
    assert port in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.faults
def test_a_port_that_is_taken_during_a_restart_is_waited_for(
    repository: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    row = fault(
        "port taken during a restart",
        "tritonserver is killed and another program takes its gRPC port at once, for 6 s",
        "serve goes on trying, says why, and is back when the port is free",
    )
    service = own(repository)
    port = int(service.grpc.rpartition(":")[2])
    os.kill(service.server, signal.SIGKILL)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def taken() -> bool:
            try:
                other.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True

        until(taken, 10, "the port is free for a moment")
        other.listen()
        until(lambda: "again in" in service.voice, 90, "a start has failed")
    freed = time.monotonic()
    until(service.is_ready, 90, "ready again")
    row.measured("back after the port was free", time.monotonic() - freed)
    assert "address" in service.voice.lower() or str(port) in service.voice

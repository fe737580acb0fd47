"""Every user mistake gives one paragraph and the right exit code; nothing produced is lost."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import DEMO_MODEL
from ..processes import started
from .conftest import Cli


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["run", "absent.yaml"], 2, "absent.yaml: there is no such recipe"),
        (["run", "configs/demo.yaml", "--set", "model.source=./nowhere"], 2, "does not exist"),
        (["run", "configs/demo.yaml", "--set", "quantize.groupsize=64"], 2, "Did you mean"),
        (["run", "configs/demo.yaml", "--until", "ship"], 2, "there is no stage ship"),
        (
            ["run", "configs/demo.yaml", "--set", "evaluate.text=no.txt"],
            2,
            "no.txt: there is no such text file",
        ),
        (["plan", "configs/demo.yaml", "--set", "compile.tensor_parallel=3"], 3, "cannot be split"),
        (["plan", "configs/demo.yaml", "--set", "compile.max_seq_len=4096"], 3, "max_seq_len"),
        (["generate", "hello", "--url", "127.0.0.1:1"], 6, "127.0.0.1:1"),
        (["generate", "hello"], 2, "say where the server is"),
        (["generate", "hello", "--url", "127.0.0.1:1", "--max-tokens", "-5"], 2, "max_tokens"),
        (["verify", "--url", "127.0.0.1:1"], 6, "127.0.0.1:1"),
        (["serve", "no/such/repository"], 2, "there is no such repository"),
        (["compare", "no/such/report"], 2, "this is not a report"),
    ],
)
def test_mistakes_on_the_command_line(
    cli: Cli, tmp_path: Path, arguments: list[str], code: int, expected: str
) -> None:
    extra = ["--build-dir", str(tmp_path)] if arguments[0] in ("run", "plan") else []
    failed = cli(*arguments, *extra, check=False)
    assert failed.returncode == code, failed.stderr
    assert expected in failed.stderr
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in failed.stderr


def test_errors_as_json(cli: Cli) -> None:
    failed = cli("run", "absent.yaml", "--json", check=False)
    assert failed.returncode == 2
    error = json.loads(failed.stdout)
    assert error["exit_code"] == 2
    assert error["where"] == "absent.yaml"


def test_debug_shows_the_traceback(cli: Cli) -> None:
    assert "Traceback" in cli("run", "absent.yaml", "--debug", check=False).stderr


def test_a_corrupt_model_fails_its_stage(cli: Cli, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    failed = cli(
        "run", "configs/demo.yaml", "--set", f"model.source={model}", "--build-dir", str(tmp_path),
        check=False,
    )  # fmt: skip
    assert failed.returncode == 5
    assert "model.safetensors: the safetensors file is damaged" in failed.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a run of the demo, as long as nobody else writes there."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs more rights")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_what_was_published(cli: Cli, small_disk: Path) -> None:
    build = ["--build-dir", str(small_disk / "build")]

    def fill() -> None:
        """Leaves less than the checkpoint takes, once the snapshot is there."""
        while not list((small_disk / "build" / "store").glob("source/*")):
            time.sleep(0.02)
        free = shutil.disk_usage(small_disk).free
        (small_disk / "somebody-else").write_bytes(bytes(free - (2 << 20)))

    somebody = threading.Thread(target=fill, daemon=True)
    somebody.start()
    failed = cli("run", "configs/demo-float16.yaml", *build, check=False)
    somebody.join(timeout=10)
    assert failed.returncode == 5
    assert "No space left on device" in failed.stderr
    assert "source      done" in failed.stdout
    # The snapshot, and the report of the failure, which is small.
    assert "2 artifacts are whole" in cli("store", "verify", *build).stdout
    assert "report      done" in failed.stdout
    report = (small_disk / "build" / "tiny-llama-float16" / "report.md").read_text()
    assert "not finished. quantize" in report
    assert "No space left on device" in report
    assert list((small_disk / "build" / "store" / "tmp").iterdir()) == []


def test_nothing_is_left_of_a_server_that_sigterm_ended(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "generate", "--repository", str(repository)]
    with started(
        [*command, "--max-tokens", "300", "Once there was a gentle boy"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout
        assert running.stdout.read(1)
        assert len(list(tmp_path.glob("trtllm-pipeline-*/triton.log"))) == 1
        running.terminate()
        _, told = running.communicate(timeout=120)
    assert (running.returncode, told) == (143, b"terminated\n")
    assert list(tmp_path.glob("trtllm-pipeline-*")) == []


def test_a_taken_port_is_named_before_the_launch(cli: Cli, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = cli("serve", str(repository), "--grpc-port", str(port), check=False)
    assert failed.returncode == 6
    assert str(port) in failed.stderr


def test_bad_requests_leave_the_server_alive(cli: Cli, server: Any) -> None:
    url = ["--url", server.grpc_url]
    too_long = cli("generate", "word " * 2000, *url, check=False)
    assert too_long.returncode == 2
    assert "at most 512 (max_seq_len)" in too_long.stderr
    good = cli("generate", "Once there was a boy", "--max-tokens", "8", *url)
    assert good.stdout.strip()


def test_a_damaged_artifact_is_rebuilt_and_the_rest_is_kept(cli: Cli, demo: dict[str, Any]) -> None:
    by_name = {stage["stage"]: Path(stage["path"]) for stage in demo["stages"]}
    victim = next(by_name["compile"].glob("*.bin"))
    victim.chmod(0o644)
    data = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(data[:-1])
    damaged = cli("store", "verify", "--build-dir", str(cli.build), check=False)
    assert damaged.returncode == 5
    assert "openvino_model.bin has" in damaged.stderr
    again = json.loads(cli.run("configs/demo.yaml", "--json").stdout)
    status = {stage["stage"]: stage["status"] for stage in again["stages"]}
    assert status.pop("compile") == "run"
    assert set(status.values()) == {"cached"}

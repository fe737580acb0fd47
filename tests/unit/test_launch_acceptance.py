"""scripts/gpu-acceptance with stand-ins for the GPU and for the pipeline."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.conftest import PROJECT

SCRIPT = PROJECT / "scripts" / "gpu-acceptance"
TOOLS = (
    "sh",
    "rm",
    "mkdir",
    "date",
    "tail",
    "sed",
    "grep",
    "sleep",
    "cp",
    "tar",
    "gzip",
    "uname",
    "cat",
)

# Answers like trtllm-pipeline where the script looks: `run` leaves a repository, `serve` prints its
# addresses and stays until it is told to stop.
PIPELINE = """
case $1 in
run)
    case $2 in *int8*) name=tiny-llama-int8-sq ;; *) name=tiny-llama-int4-awq ;; esac
    mkdir -p "$BUILD/$name/repository.unverified/tensorrt_llm/1/engine"
    echo '{"schema": 1}' > "$BUILD/$name/repository.unverified/tensorrt_llm/1/engine/engine.json"
    log=$BUILD/store/compile/key-$name
    mkdir -p "$log" "$BUILD/store/timing"
    echo "$ trtllm-build $BUILD/store $PWD/configs $HOME/cache" > "$log/build.log"
    echo "cause" > "$BUILD/store/timing/failed-build.log"
    cat > "$BUILD/$name/lock.json" <<END
{
 "schema": 1,
 "stages": {
  "compile": {
   "digest": "sha256",
   "key": "key-$name",
   "material": {
    "key": "no"
   }
  },
  "repository": {
   "key": "neither"
  }
 }
}
END
    exit $RUN_CODE
    ;;
serve)
    case $* in *--print-command*) echo docker run; exit 0 ;; esac
    trap 'echo stopped >> "$BUILD/stopped"; exit 0' TERM
    echo '{"grpc": "127.0.0.1:8001"}'
    while :; do sleep 0.1; done
    ;;
verify) exit $VERIFY_CODE ;;
esac
"""


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A PATH with the plain tools only."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found
        (directory / name).symlink_to(found)
    return directory


def run(bin_dir: Path, **codes: str) -> subprocess.CompletedProcess[str]:
    out = bin_dir.parent / "out"
    return subprocess.run(
        [str(SCRIPT), str(out)],
        cwd=PROJECT,
        env={
            "PATH": str(bin_dir),
            "PIPELINE": str(bin_dir / "trtllm-pipeline"),
            "BUILD": str(out / "build"),
            "HOME": "/home/someone",
            "RUN_CODE": "0",
            "VERIFY_CODE": "0",
            **codes,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_is_executable() -> None:
    assert os.access(SCRIPT, os.X_OK)


def test_without_a_gpu(bin_dir: Path) -> None:
    done = run(bin_dir)
    assert done.returncode == 3
    assert "needs a machine with an NVIDIA GPU" in done.stderr


def test_without_docker(bin_dir: Path) -> None:
    program(bin_dir / "nvidia-smi", "echo a GPU")
    done = run(bin_dir)
    assert done.returncode == 3
    assert "neither docker nor trtllm-build" in done.stderr


def test_without_an_installation(bin_dir: Path) -> None:
    for name in ("nvidia-smi", "trtllm-build"):
        program(bin_dir / name, f"echo {name}")
    done = run(bin_dir)
    assert done.returncode == 3
    assert "run scripts/install python3 .venv first" in done.stderr


@pytest.fixture
def machine(bin_dir: Path) -> Path:
    for name in ("nvidia-smi", "docker"):
        program(bin_dir / name, f"echo {name}")
    program(bin_dir / "trtllm-pipeline", PIPELINE)
    return bin_dir


def steps(machine: Path) -> dict[tuple[str, str], str]:
    lines = (machine.parent / "out/report/steps.tsv").read_text().splitlines()
    return {(line.split("\t")[0], line.split("\t")[1]): line.split("\t")[2] for line in lines}


def test_every_step_passes(machine: Path) -> None:
    done = run(machine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step passed" in done.stdout
    ran = steps(machine)
    assert set(ran.values()) == {"0"}
    for recipe in ("tiny-llama-int4-awq", "tiny-llama-int8-sq"):
        names = [name for folder, name in ran if folder == recipe]
        assert names == ["plan", "run", "command", "ready", "generate", "verify", "bench"]
    out = machine.parent / "out"
    assert (out / "build/stopped").read_text() == "stopped\nstopped\n"
    with tarfile.open(out / "gpu-acceptance.tar.gz") as archive:
        names = set(archive.getnames())
    assert {
        "report/steps.tsv",
        "report/machine/doctor.out",
        "report/tiny-llama-int8-sq/engine.json",
        "report/tiny-llama-int4-awq/verify.out",
    } <= names


def test_the_archive_has_the_builds_log_and_no_directory_of_the_machine(machine: Path) -> None:
    assert run(machine).returncode == 0
    with tarfile.open(machine.parent / "out/gpu-acceptance.tar.gz") as archive:
        for name in ("tiny-llama-int4-awq", "tiny-llama-int8-sq"):
            log = archive.extractfile(f"report/{name}/build.log")
            assert log
            assert log.read() == b"$ trtllm-build OUTPUT/build/store PROJECT/configs ~/cache\n"
        assert "report/tiny-llama-int8-sq/failed-build.log" in archive.getnames()


def test_a_failed_verification_is_reported_and_the_rest_runs(machine: Path) -> None:
    done = run(machine, VERIFY_CODE="6")
    assert done.returncode == 1
    assert "exit code 6" in done.stdout
    assert "attach" in done.stdout
    ran = steps(machine)
    assert ran["tiny-llama-int4-awq", "verify"] == "6"
    assert ran["tiny-llama-int8-sq", "bench"] == "0"
    assert (machine.parent / "out/build/stopped").read_text() == "stopped\nstopped\n"


def test_a_failed_build_is_not_served(machine: Path) -> None:
    done = run(machine, RUN_CODE="5")
    assert done.returncode == 1
    assert ("tiny-llama-int4-awq", "ready") not in steps(machine)
    assert (machine.parent / "out/gpu-acceptance.tar.gz").is_file()

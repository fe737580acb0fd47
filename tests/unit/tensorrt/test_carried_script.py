"""The script of ``plan --script``, run by bash with the doubles of ``trtllm-build`` and Docker.

What it leaves is compared with what the pipeline's own build leaves on the same machine, and with
what ``sha256sum`` and the double say by themselves.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.progress import Silent
from pipeline.store.artifact import Artifact
from pipeline.targets.tensorrt.build.build import build_engine
from pipeline.targets.tensorrt.build.script import build_script
from tests.doubles.trtllm_build.machine import pretend
from tests.unit.tensorrt.build_support import carry, checkpoint_config, publish_checkpoint, recipe

TOOLS = (
    *("cat", "cp", "cut", "dirname", "id", "ls", "mkdir", "mv", "realpath", "rm", "sed"),
    *("sha256sum", "tee", "tr", "bash", "env"),
)
IMAGE = "nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3"


def machine(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, container: bool = False, **settings: str
) -> None:
    """A GPU machine with coreutils and the doubles, and nothing else on the PATH."""
    programs = ("nvidia-smi", "docker") if container else ("nvidia-smi", "trtllm-build")
    version = None if container else settings.pop("tensorrt_llm", "1.2.1")
    pretend(monkeypatch, folder, programs=programs, tensorrt_llm=version, **settings)
    # The script asks Python for the version that is installed, in a process of its own.
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))
    for tool in TOOLS:
        found = shutil.which(tool, path="/usr/bin:/bin")
        assert found, tool
        (folder / "bin" / tool).symlink_to(found)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Artifact:
    return publish_checkpoint(tmp_path / "store", checkpoint_config("int4_awq", tp=2))


TWO = recipe("int4_awq", tensor_parallel=2)


def built_here(checkpoint: Artifact, folder: Path) -> Path:
    """The same engine by the pipeline's own build."""
    folder.mkdir()
    build_engine(checkpoint.path, TWO, folder, Silent())
    return folder


def text_files(folder: Path) -> dict[str, Any]:
    return {
        name: json.loads((folder / name).read_text()) for name in ("config.json", "engine.json")
    }


@pytest.mark.parametrize("container", [False, True], ids=["in place", "in the container"])
def test_it_leaves_what_the_pipelines_own_build_leaves(
    checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: bool
) -> None:
    machine(monkeypatch, tmp_path / "machine", container=container, gpus="2", sm="89")
    done = carry(checkpoint, TWO, tmp_path / "box")
    assert done.returncode == 0, done.stderr
    engine = tmp_path / "box/engine"
    assert {path.name for path in engine.iterdir()} == {
        *("config.json", "engine.json", "SHA256SUMS", "build.log", "rank0.engine", "rank1.engine")
    }
    here = built_here(checkpoint, tmp_path / "here")
    assert text_files(engine) == text_files(here)
    assert text_files(engine)["engine.json"]["checkpoint"] == checkpoint.digest
    assert (text_files(engine)["engine.json"]["container"] or {}).get("image") == (
        IMAGE if container else None
    )
    assert "NVIDIA L40S (SM 89), driver 580.65.06; TensorRT-LLM 1.2.1" in done.stdout
    # The tool's own word for what it was asked.
    log = (engine / "build.log").read_text()
    assert "[I] CUDA_DEVICE_ORDER=PCI_BUS_ID" in log
    assert log.splitlines()[0].startswith("$ docker run --rm" if container else "$ trtllm-build ")


def test_sha256sum_finds_what_was_changed_afterwards(
    checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "machine", gpus="2")
    assert carry(checkpoint, TWO, tmp_path / "box").returncode == 0
    engine = tmp_path / "box/engine"
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=engine, check=False).returncode == 0
    with (engine / "rank1.engine").open("a") as file:
        file.write("x")
    done = subprocess.run(check, cwd=engine, capture_output=True, text=True, check=False)
    assert "rank1.engine: FAILED" in done.stdout


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_another_checkpoint_is_not_built(
    checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    machine(monkeypatch, tmp_path / "machine", gpus="2")
    copy = tmp_path / "box/the checkpoint"
    shutil.copytree(checkpoint.path, copy)
    rank = copy / "rank1.safetensors"
    content = rank.read_bytes()
    rank.unlink()
    if harm == "changed":
        rank.write_bytes(content[:-1] + b" ")
    done = carry(checkpoint, TWO, tmp_path / "box")
    assert done.returncode == 2
    assert "rank1.safetensors" in done.stdout + done.stderr
    assert "this is not the checkpoint, or not all of it" in done.stderr
    assert not (tmp_path / "box/engine").exists()


def test_a_second_build_starts_from_the_timings_of_the_first(
    checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "machine", gpus="2", sm="89")
    assert carry(checkpoint, TWO, tmp_path / "box", "first").returncode == 0
    timings = tmp_path / "box/nvidia-l40s-sm89-tensorrt-10.14.1.48.cache"
    timings.write_text("of an earlier build\n")
    assert carry(checkpoint, TWO, tmp_path / "box", "second").returncode == 0
    log = (tmp_path / "box/second/build.log").read_text()
    assert "Read 20 bytes of timing cache from previous.cache" in log
    assert not list((tmp_path / "box/second").glob("*.cache"))
    elsewhere = {"TIMING_CACHE": "kept here.cache"}
    assert carry(checkpoint, TWO, tmp_path / "box", "third", **elsewhere).returncode == 0
    assert (tmp_path / "box/kept here.cache").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sabotage": "skip-rank"}, "rank1.engine is missing or empty"),
        ({"fail": "gpu-memory"}, "trtllm-build failed"),
    ],
)
def test_a_build_that_fails_leaves_its_log_and_no_checksums(
    checkpoint: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    message: str,
) -> None:
    machine(monkeypatch, tmp_path / "machine", gpus="2", **settings)
    done = carry(checkpoint, TWO, tmp_path / "box")
    assert done.returncode == 1
    assert message in done.stderr
    assert "TensorRT LLM version: 1.2.1" in (tmp_path / "box/engine/build.log").read_text()
    assert not (tmp_path / "box/engine/SHA256SUMS").exists()
    again = carry(checkpoint, TWO, tmp_path / "box")
    assert again.returncode == 2
    assert "this folder is not empty" in again.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": "0"}, "nvidia-smi fails: No devices were found"),
        ({"sm": "80"}, r"the recipe is for L40S (SM 89), this machine has NVIDIA A100-SXM4-80GB"),
        ({"tensorrt_llm": "1.3.0rc22", "sm": "89"}, "this machine has TensorRT-LLM 1.3.0rc22"),
    ],
)
def test_a_machine_that_cannot_build_it_is_told(
    checkpoint: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    message: str,
) -> None:
    machine(monkeypatch, tmp_path / "machine", **settings)
    done = carry(checkpoint, recipe("int4_awq", tensor_parallel=2, gpu="L40S"), tmp_path / "box")
    assert done.returncode == 3
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_docker_and_trtllm_build(
    checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "machine", container=True)
    (tmp_path / "machine/bin/docker").unlink()
    done = carry(checkpoint, TWO, tmp_path / "box")
    assert done.returncode == 3
    assert "neither trtllm-build nor docker is on the PATH" in done.stderr


GPUS = """#!/bin/sh
echo '0, GPU-aaaa, NVIDIA L4, 8.9, 23034, 580.65.06, Disabled'
echo '1, GPU-bbbb, NVIDIA A100-SXM4-80GB, 8.0, 81920, 580.65.06, Disabled'
echo '2, GPU-cccc, NVIDIA L4, 8.9, 23034, 580.65.06, Disabled'
echo '3, GPU-dddd, NVIDIA L4, 8.9, 23034, 580.65.06, Enabled'
"""


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        (None, "different models, NVIDIA L4 and NVIDIA A100-SXM4-80GB. Choose"),
        ("0,1", "different models"),
        ("7", "CUDA_VISIBLE_DEVICES=7 names no whole GPU"),
        ("MIG-1234", "CUDA_VISIBLE_DEVICES=MIG-1234 names no whole GPU"),
        ("3", "MIG divides GPU 3, and this script builds on whole GPUs"),
        ("0,2", None),
        ("GPU-cccc", None),
    ],
)
def test_the_gpus_that_cuda_will_see_decide(
    checkpoint: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    message: str | None,
) -> None:
    machine(monkeypatch, tmp_path / "machine", gpus="2", sm="89")
    smi = tmp_path / "machine/bin/nvidia-smi"
    smi.unlink()
    smi.write_text(GPUS)
    smi.chmod(0o755)
    environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    done = carry(checkpoint, TWO, tmp_path / "box", **environment)
    if message:
        assert (done.returncode, message in done.stderr) == (3, True), done.stderr
    else:
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "box/engine/engine.json").read_text())
        assert manifest["gpu"] == {"name": "NVIDIA L4", "sm": 89, "memory_mib": 23034}


def test_the_machine_that_builds_decides_what_a_container_gets(
    checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SELinux and variables of the machine that wrote the script have no part in it."""
    enforce = tmp_path / "enforce"
    for module in ("script", "docker"):
        home = "build.script" if module == "script" else module
        monkeypatch.setattr(f"pipeline.targets.tensorrt.{home}.SELINUX_ENFORCE", enforce)
    machine(monkeypatch, tmp_path / "machine", gpus="2", container=True)
    enforce.write_text("1")
    monkeypatch.setenv("NCCL_HERE", "1")
    written = build_script(checkpoint, TWO)
    enforce.unlink()
    assert written == build_script(checkpoint, TWO)
    assert "NCCL_HERE" not in written
    monkeypatch.delenv("NCCL_HERE")

    there = {"NCCL_DEBUG": "INFO", "CUDA_HOME": "/opt/cuda", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert carry(checkpoint, TWO, tmp_path / "box", "first", **there).returncode == 0
    words = (tmp_path / "box/first/build.log").read_text().splitlines()[0].split()
    assert "--env=NCCL_DEBUG" in words
    assert not {word for word in words if "CUDA_HOME" in word or "INFO" in word or "label" in word}
    assert words.count("--env=CUDA_VISIBLE_DEVICES") == 1
    enforce.write_text("1")
    assert carry(checkpoint, TWO, tmp_path / "box", "second").returncode == 0
    words = (tmp_path / "box/second/build.log").read_text().splitlines()[0].split()
    assert words.index("--security-opt=label=disable") < words.index(IMAGE)


FORMATS = ["float16", "bfloat16", "int8_sq", "int4_awq", "w4a8_awq", "fp8"]


@pytest.mark.parametrize("name", FORMATS)
def test_bash_and_shellcheck_have_nothing_to_say(name: str, tmp_path: Path) -> None:
    checkpoint = publish_checkpoint(tmp_path / "store", checkpoint_config(name))
    script = tmp_path / "script"
    script.write_text(build_script(checkpoint, recipe(name, gpu="H200")))
    checks = [["bash", "-n"], *([["shellcheck"]] if shutil.which("shellcheck") else [])]
    for check in checks:
        done = subprocess.run([*check, script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), check


def test_its_head_says_what_is_built(checkpoint: Artifact) -> None:
    text = build_script(checkpoint, recipe("int4_awq", tensor_parallel=2, gpu="L40S"))
    head = text.partition("set -euo pipefail")[0]
    for said in (
        *("anywhere", "int4_awq (W4A16_AWQ), KV cache float16", IMAGE, checkpoint.digest),
        *("2: tensor parallel 2, pipeline parallel 1", "L40S (SM 89)", "TensorRT-LLM 1.2.1"),
        *("rank0.engine, rank1.engine, config.json", str(checkpoint.path)),
    ):
        assert said in head
    # One flag a line, each as the tool spells it.
    assert "\n  --max_batch_size 8\n  --max_input_len 512\n  --max_seq_len 1024\n" in text


def test_no_name_of_the_recipe_becomes_a_command(
    checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "machine", gpus="2")
    wild = TWO.model_copy(
        update={
            "name": "n\ntouch run-by-name",
            "model": TWO.model.model_copy(update={"source": "m\n$(touch run) `touch run`"}),
        }
    )
    assert carry(checkpoint, wild, tmp_path / "box").returncode == 0
    assert {path.name for path in (tmp_path / "box").iterdir()} == {
        *("build engine.sh", "the checkpoint", "engine"),
        "nvidia-h100-80gb-hbm3-sm90-tensorrt-10.14.1.48.cache",
    }


def test_folders_are_those_that_were_named_whatever_cd_would_look_up(
    checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, elsewhere = tmp_path / "a box", tmp_path / "elsewhere"
    machine(monkeypatch, tmp_path / "machine")
    shutil.copytree(checkpoint.path, box / "-checkpoint")
    (elsewhere / "-checkpoint").mkdir(parents=True)
    monkeypatch.setenv("CDPATH", str(elsewhere))
    script = box / "build.sh"
    script.write_text(build_script(checkpoint, TWO))
    (box / "taken").write_text("")
    for engine, code in (("an engine", 0), ("taken", 2)):
        done = subprocess.run(
            ["bash", script, "-checkpoint", engine],
            cwd=box, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        if code == 0:
            (hint,) = (line for line in done.stdout.splitlines() if "--engine" in line)
            words = shlex.split(hint.partition("with: ")[2])
            assert Path(words[-1]) == box / "an engine"
        else:
            assert "taken: this folder cannot be made" in done.stderr

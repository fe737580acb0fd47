"""From a laptop to a GPU machine and back: the commands as they are typed.

The doubles of ``nvidia-smi``, ``docker`` and ``trtllm-build`` are the GPU machine.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.trtllm_build.machine import BIN

from .conftest import Cli

RECIPE = "configs/demo-float16.yaml"
SETTINGS = [
    *("--set", "compile.target=tensorrt", "--set", "compile.tensor_parallel=2"),
    *("--set", "evaluate=null", "--set", "name=carried"),
]


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A build directory of its own, with the checkpoint."""
    cli = Cli(tmp_path_factory.mktemp("laptop"))
    early = cli(
        "plan", RECIPE, *SETTINGS, "--build-dir", str(cli.build), "--script", "-", check=False
    )
    assert early.returncode == 2
    assert early.stdout == ""
    assert "there is no checkpoint of this recipe to build from yet" in early.stderr
    # The remedy is a command that can be typed as it stands: the file, --set and the folder.
    remedy = early.stderr.strip().partition("Write it first: trtllm-pipeline ")[2].rstrip(".")
    again = ["run", RECIPE, *SETTINGS, "--build-dir", str(cli.build), "--until", "quantize"]
    assert shlex.split(remedy) == again
    cli.run(RECIPE, *SETTINGS, "--until", "quantize")
    return cli


def plan(cli: Cli, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return cli("plan", RECIPE, *SETTINGS, "--build-dir", str(cli.build), *arguments, **options)


@pytest.fixture(scope="module")
def engine(laptop: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script and the checkpoint, carried to the GPU machine and run there."""
    box = tmp_path_factory.mktemp("box")
    script = box / "build-engine.sh"
    planned = plan(laptop, "--script", str(script))
    assert f"\nscript: {script}\n" in planned.stdout
    assert os.access(script, os.X_OK)
    (stored,) = (laptop.build / "store/quantize").iterdir()
    assert f"\ncheckpoint: {stored}\n" in planned.stdout
    steps = [shlex.split(line) for line in planned.stdout.splitlines() if line.startswith("  s")]
    assert steps[-3:] == [
        ["scp", "-r", str(stored), "BOX:checkpoint"],
        ["scp", str(script), "BOX:"],
        ["ssh", "BOX", "bash build-engine.sh checkpoint engine"],
    ]
    as_json = json.loads(plan(laptop, "--script", str(script), "--json").stdout)
    assert (as_json["script"], as_json["checkpoint"]) == (str(script), str(stored))
    shutil.copytree(stored, box / "checkpoint")
    programs = box / "bin"
    programs.mkdir()
    for name in ("nvidia-smi", "docker"):
        (programs / name).symlink_to(BIN / name)
    built = subprocess.run(
        [script, "checkpoint"],
        cwd=box,
        env={"PATH": f"{programs}:/usr/bin:/bin", "TRTLLM_BUILD_DOUBLE_GPUS": "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "go on with: trtllm-pipeline run RECIPE --engine" in built.stdout
    return box / "engine"


def stages(cli: Cli) -> dict[str, Any]:
    lock = json.loads((cli.build / "carried/lock.json").read_text())
    return dict(lock["stages"])


def test_the_run_goes_on_to_what_needs_the_gpu(laptop: Cli, engine: Path) -> None:
    done = laptop.run(RECIPE, *SETTINGS, "--engine", str(engine), check=False)
    assert done.returncode == 3
    assert "compile: take in the engine that was built elsewhere" in done.stderr
    assert "the engine was not tried: its 2 rank(s) run on NVIDIA H100" in done.stderr
    assert "this engine is served by a machine with its GPU and docker" in done.stderr
    outputs = laptop.build / "carried"
    repository = outputs / "repository.unverified"
    served = repository / "tensorrt_llm/1/engine"
    assert {path.name for path in served.iterdir()} == {
        *("config.json", "engine.json", "rank0.engine", "rank1.engine")
    }
    for path in served.iterdir():
        assert path.read_bytes() == (engine / path.name).read_bytes()
    command = laptop("serve", str(repository), "--print-command").stdout
    assert json.loads((served / "engine.json").read_text())["container"]["image"] in command
    report = json.loads((outputs / "report.json").read_text())
    assert report["verdict"]["unreached"] == ["bench"]
    assert report["tools"]["gpu"] == "NVIDIA H100 80GB HBM3"
    assert "compiled elsewhere for tensorrt" in (outputs / "report.md").read_text()


def test_without_the_gpu_a_run_ends_with_the_command_to_type(laptop: Cli) -> None:
    done = laptop.run(RECIPE, *SETTINGS, "--until", "compile", check=False)
    assert done.returncode == 3
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: an engine can only be built on a machine with the GPU")
    program, *words = shlex.split(error.split("`")[1])
    assert program == "trtllm-pipeline"
    script = str(laptop.build / "build-engine.sh")
    assert words.pop() == "build-engine.sh"
    written = laptop(*words, script)
    assert f"script: {script}" in written.stdout
    html = (laptop.build / "carried/report.html").read_text()
    assert "<span>compile</span></td>" in html
    assert "docker run" not in error + html


def test_a_second_run_takes_it_from_the_store(laptop: Cli, engine: Path) -> None:
    arguments = [*SETTINGS, "--engine", str(engine), "--until", "compile", "--json"]
    laptop.run(RECIPE, *arguments)
    again = json.loads(laptop.run(RECIPE, *arguments).stdout)
    assert [stage["status"] for stage in again["stages"]] == ["cached"] * 3


def test_another_engine_has_another_key(laptop: Cli, engine: Path, tmp_path: Path) -> None:
    arguments = [*SETTINGS, "--until", "compile"]
    laptop.run(RECIPE, *arguments, "--engine", str(engine))
    first = stages(laptop)["compile"]["key"]
    other = tmp_path / "engine"
    shutil.copytree(engine, other)
    (other / "rank0.engine").write_text("another build of the same checkpoint\n")
    sums = subprocess.run(
        ["sha256sum", "config.json", "engine.json", "rank0.engine", "rank1.engine"],
        cwd=other, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (other / "SHA256SUMS").write_text(sums.stdout)
    laptop.run(RECIPE, *arguments, "--engine", str(other))
    assert stages(laptop)["compile"]["key"] != first


def test_an_engine_of_another_recipe_is_refused_in_one_paragraph(laptop: Cli, engine: Path) -> None:
    changed = [*SETTINGS, "--set", "compile.max_seq_len=384", "--until", "compile"]
    refused = laptop.run(RECIPE, *changed, "--engine", str(engine), check=False)
    assert refused.returncode == 5
    error = refused.stderr.splitlines()[-1]
    assert error.startswith(
        f"error: {engine}/config.json: the engine is not the one that was asked"
    )
    assert "max_seq_len is 512, not 384" in error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "compile.target=openvino"], 3, "CPU engines cannot be taken in: they are"),
        (["--engine", "nowhere"], 2, "nowhere: there is no such folder"),
        (
            ["--engine", "configs"],
            5,
            "no readable config.json of an engine. There is no such file.",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_runs(
    arguments: list[str], code: int, message: str, engine: Path, tmp_path: Path
) -> None:
    cli = Cli(tmp_path / "build")
    done = cli.run(RECIPE, *SETTINGS, "--engine", str(engine), *arguments, check=False)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("\n") == 1
    assert not cli.build.exists()


def test_the_script_alone_goes_to_stdout(laptop: Cli) -> None:
    text = plan(laptop, "--script", "-").stdout
    assert text.startswith("#!/usr/bin/env bash\n")
    both = plan(laptop, "--script", "-", "--json", check=False)
    assert both.returncode == 2
    assert "both print to stdout" in both.stdout
    cpu = plan(laptop, "--set", "compile.target=openvino", "--script", "-", check=False)
    assert (cpu.returncode, cpu.stdout) == (3, "")
    assert "no build script for an engine of the CPU" in cpu.stderr
    nowhere = plan(laptop, "--script", "/nowhere/script", check=False)
    assert nowhere.returncode == 2
    assert "/nowhere/script: the folder of this file does not exist" in nowhere.stderr

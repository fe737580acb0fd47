"""The build through the double of ``trtllm-build``: in place, in a container, and failing."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import CompileError, MissingDependencyError, UnsupportedError
from pipeline.progress import Silent
from pipeline.store.digests import digest_of, file_digest
from pipeline.targets.tensorrt.build.build import build_engine
from pipeline.targets.tensorrt.build.checks import check_machine
from pipeline.targets.tensorrt.build.command import Build
from pipeline.targets.tensorrt.environment import InstalledGpu, Machine, engine_tools
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.process import run_logged
from tests.doubles.trtllm_build.machine import pretend
from tests.unit.tensorrt.build_support import checkpoint_config, recipe, write_headers

DOCKER = ("trtllm-build", "nvidia-smi", "docker")
IMAGE = "nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3"


class Recorder(Silent):
    """Keeps notes and how much of each task was reported."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: dict[str, list[float]] = {}

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def task(self, description: str, total: float) -> Any:
        counts = self.done[description] = [total, 0.0]

        class Counter:
            def advance(self, amount: float = 1.0) -> None:
                counts[1] += amount

        yield Counter()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def output(store: Path) -> Path:
    path = store / "tmp" / "compile-key"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_headers(tmp_path / "checkpoint", checkpoint_config("int8_sq"))


def test_an_engine_is_built_in_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path, store: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="89")
    progress = Recorder()
    facts = build_engine(checkpoint, recipe("int8_sq"), output, progress)
    written = ["build.log", "config.json", "engine.json", "rank0.engine"]
    assert sorted(path.name for path in output.iterdir()) == written
    assert "not a TensorRT engine" in (output / "rank0.engine").read_text()
    assert facts["engine_bytes"] == (output / "rank0.engine").stat().st_size
    assert {key: facts[key] for key in ("target", "quant_algo", "world_size", "gpu", "sm")} == {
        "target": "tensorrt",
        "quant_algo": "W8A8_SQ_PER_CHANNEL",
        "world_size": 1,
        "gpu": "NVIDIA L40S",
        "sm": 89,
    }
    assert facts["kv_cache_reuse"]
    assert facts["differences"] == []
    assert json.loads(json.dumps(facts)) == facts
    assert progress.done == {"building 1 engine": [1, pytest.approx(1.0)]}
    log = (output / "build.log").read_text()
    assert log.startswith("$ ")
    assert "Total time of building all engines" in log


def test_the_manifest_says_what_the_engine_is_bound_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="90")
    build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    manifest = json.loads((output / "engine.json").read_text())
    names = ("config.json", "rank0.safetensors")
    digest = digest_of({name: file_digest(checkpoint / name) for name in names})
    flags = manifest.pop("flags")
    assert manifest == {
        "schema": 1,
        "target": "tensorrt",
        "gpu": {"name": "NVIDIA H100 80GB HBM3", "sm": 90, "memory_mib": 81559},
        "driver": "580.65.06",
        "tensorrt_llm": "1.2.1",
        "tensorrt": "10.14.1.48",
        "cuda": manifest["cuda"],
        "container": None,
        "checkpoint": digest,
        "world_size": 1,
        "key": engine_tools(),
    }
    said = (output / "build.log").read_text().splitlines()[0]
    assert f" {' '.join(flags)} " in said


def test_only_the_log_says_where_an_engine_was_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path, store: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="90")
    for _ in range(2):  # the second build starts from the first one's timing cache
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    files = {path.name: path.read_text() for path in output.iterdir()}
    assert [name for name, text in files.items() if str(tmp_path) in text] == ["build.log"]
    build = json.loads(files["config.json"])["build_config"]
    assert build["input_timing_cache"] == "previous.cache"
    assert build["output_timing_cache"] == "model.cache"


def test_gpus_are_counted_as_nvidia_smi_counts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert "[I] CUDA_DEVICE_ORDER=PCI_BUS_ID" in (output / "build.log").read_text()


def test_the_timing_cache_lives_in_the_store_by_gpu_and_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path, store: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="89")
    build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    cache = store / "timing" / "nvidia-l40s-sm89-tensorrt-10.14.1.48.cache"
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    assert "--input_timing_cache" not in (output / "build.log").read_text()
    cache.write_text("of an earlier build\n")
    second = store / "tmp" / "second"
    second.mkdir()
    build_engine(checkpoint, recipe("int8_sq"), second, Silent())
    assert "Read 20 bytes of timing cache from previous.cache" in (second / "build.log").read_text()
    assert not list(second.glob("*.cache"))


def test_an_evaluation_engine_gathers_logits_and_reuses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine")
    facts = build_engine(checkpoint, recipe("int8_sq"), output, Silent(), longest_window=200)
    build = json.loads((output / "config.json").read_text())["build_config"]
    assert build["gather_context_logits"] is True
    assert (build["max_batch_size"], build["max_seq_len"]) == (1, 201)
    assert (build["max_num_tokens"], build["opt_num_tokens"]) == (200, 1)
    assert facts["kv_cache_reuse"] is False
    assert facts["differences"] == []


def test_without_tensorrt_llm_the_pinned_container_builds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", programs=DOCKER, tensorrt_llm=None)
    build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    manifest = json.loads((output / "engine.json").read_text())
    assert manifest["container"] == {"image": IMAGE, "digest": f"sha256:{'0' * 64}"}
    assert (manifest["tensorrt"], manifest["cuda"]) == ("10.14.1.48", "13")
    config = json.loads((output / "config.json").read_text())
    assert "not a TensorRT engine" in (output / "rank0.engine").read_text()
    assert config["version"] == "1.2.1"


def test_the_container_command_word_for_word(tmp_path: Path) -> None:
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "engine"
    output.mkdir()
    (output / "previous.cache").touch()
    config = BuildConfig.from_recipe(recipe("int4_awq", tensor_parallel=2))
    build = Build(checkpoint, output, config)
    command = build.in_container(IMAGE, "1000:1001")
    name = build.container_name
    assert name.startswith("trtllm-build-")
    expected = f"""
        docker run --rm --init --name={name} --gpus=all --shm-size=2g --ulimit=memlock=-1
        --ulimit=stack=67108864 --user=1000:1001 --cap-drop=ALL --security-opt=no-new-privileges
        --env=HOME=/tmp --env=USER=trtllm --env=CUDA_VISIBLE_DEVICES
        --env=CUDA_DEVICE_ORDER=PCI_BUS_ID
        --mount=type=bind,source={checkpoint},target=/checkpoint,readonly
        --mount=type=bind,source={output},target=/engine --workdir=/engine {IMAGE}
        trtllm-build --checkpoint_dir /checkpoint --output_dir /engine
        --max_batch_size 8 --max_input_len 512 --max_seq_len 1024 --max_num_tokens 2048
        --max_beam_width 1 --kv_cache_type paged --opt_num_tokens 8 --tokens_per_block 32
        --gpt_attention_plugin auto --gemm_plugin auto --context_fmha enable
        --remove_input_padding enable --use_paged_context_fmha enable
        --use_fp8_context_fmha disable --multiple_profiles disable --reduce_fusion disable
        --workers 2 --input_timing_cache previous.cache --output_timing_cache model.cache
        --log_level info
    """
    assert command == expected.split()


def test_without_a_gpu_the_command_that_writes_the_script_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", programs=(), tensorrt_llm=None)
    with pytest.raises(UnsupportedError, match="nvidia-smi is not installed") as caught:
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert caught.value.exit_code == 3
    said = str(caught.value)
    assert "`trtllm-pipeline plan RECIPE --script build-engine.sh`" in said
    assert "run --engine" in said
    # A paragraph to read: the long docker command is in the script.
    assert "docker run" not in said
    assert len(said) < 500


def test_dockers_daemon_is_asked_before_a_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    machine = {"programs": ("nvidia-smi", "docker"), "tensorrt_llm": None, "docker": "no-daemon"}
    pretend(monkeypatch, tmp_path / "machine", **machine, sm="89")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="Is the docker daemon running") as caught:
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert caught.value.exit_code == 3
    assert "systemctl start docker" in str(caught.value.fix)
    assert not list(output.iterdir())


def test_tensorrt_llm_of_another_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    """As inside the container: its own Python has TensorRT-LLM, this one's environment has not."""
    machine = tmp_path / "machine"
    pretend(monkeypatch, machine, programs=("trtllm-build", "nvidia-smi"), tensorrt_llm=None)
    with pytest.raises(MissingDependencyError, match="not for the Python of this") as caught:
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert str(machine / "bin/trtllm-build") in str(caught.value.why)
    assert "scripts/install python3 .venv" in str(caught.value.fix)


def test_a_gpu_without_tensorrt_llm_and_docker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", programs=("nvidia-smi",), tensorrt_llm=None)
    with pytest.raises(MissingDependencyError, match="nor Docker is installed") as caught:
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert "plan RECIPE --script build-engine.sh` writes a script" in str(caught.value)


@pytest.mark.parametrize("version", ["1.3.0rc22", "1.1.0"])
def test_another_tensorrt_llm_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path, version: str
) -> None:
    pretend(monkeypatch, tmp_path / "machine", tensorrt_llm=version)
    with pytest.raises(UnsupportedError, match=f"TensorRT-LLM {version} ") as caught:
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert IMAGE in str(caught.value)


def test_mixed_gpus_are_refused() -> None:
    gpus = (InstalledGpu(0, "GPU-a", "NVIDIA L4", 89, 1), InstalledGpu(1, "GPU-b", "A100", 80, 1))
    with pytest.raises(UnsupportedError, match=r"NVIDIA L4 \(SM 89\), A100 \(SM 80\)"):
        check_machine(Machine(gpus, "580.1"), 2, recipe())


def test_a_recipe_for_another_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="89")
    with pytest.raises(UnsupportedError, match=r"recipe is for H200 \(SM 90\).*L40S \(SM 89\)"):
        build_engine(checkpoint, recipe("int8_sq", gpu="H200"), output, Silent())


def test_a_recipe_for_another_gpu_of_the_same_kind_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="90")
    progress = Recorder()
    build_engine(checkpoint, recipe("int8_sq", gpu="H200"), output, progress)
    (said,) = [note for note in progress.notes if "the recipe is for" in note]
    assert "for H200 (138.2 GiB), this machine has NVIDIA H100 80GB HBM3 (79.6 GiB)" in said
    right = Recorder()
    build_engine(checkpoint, recipe("int8_sq", gpu="H100-80GB"), output, right)
    assert not [note for note in right.notes if "the recipe is for" in note]


def test_this_gpu_is_held_against_the_checkpoint_before_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="100")
    with pytest.raises(UnsupportedError, match="B200"):
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert not (output / "build.log").exists()


REPLAYS = {
    "gpu-memory": ("memory is too small", "Lower compile.max_batch_size"),
    "torch-memory": ("memory is too small", "Lower compile.max_batch_size"),
    "no-implementation": ("no kernel for a layer", "Lower compile.max_batch_size"),
    "no-tactic": ("No GEMM kernel fits", "quantize.group_size 128, or 64 where plan takes it"),
    "worker-killed": ("out-of-memory killer", "compile.tensorrt.workers: 1"),
    "killed": ("out-of-memory killer", "compile.tensorrt.workers: 1"),
    "disk-full": ("disk is full", "--build-dir"),
    "old-driver": ("driver is older", "branch 580 or later; data-center GPUs may use CUDA forward"),
    "plugin-sm": ("no kernel for the format", "SM 89"),
    "version": ("built with another TensorRT", IMAGE),
    "timing-cache": ("timing cache belongs to another", "timing folder"),
    "docker-gpu": ("cannot hand the GPU", "container toolkit"),
    "docker-daemon": ("daemon cannot be reached", "Start it"),
}


@pytest.mark.parametrize("failure", REPLAYS)
def test_a_known_failure_names_cause_and_remedy(
    failure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", fail=failure)
    why, fix = REPLAYS[failure]
    with pytest.raises(CompileError, match="trtllm-build failed") as caught:
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert why in str(caught.value.why)
    assert fix in str(caught.value.fix)
    # The output directory goes with the failed run; the log does not.
    kept = tmp_path / "store" / "timing" / "failed-build.log"
    assert caught.value.where == str(kept)
    assert "TensorRT LLM version: 1.2.1" in kept.read_text()


def test_a_checkpoint_without_a_tensor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path
) -> None:
    config = checkpoint_config("int8_sq")
    checkpoint = write_headers(tmp_path / "checkpoint", config)
    rank = checkpoint / "rank0.safetensors"
    rank.write_bytes(rank.read_bytes().replace(b"mlp.proj.prequant", b"mlp.proj.prequaNt"))
    pretend(monkeypatch, tmp_path / "machine")
    progress = Recorder()
    with pytest.raises(CompileError, match="lacks tensors") as caught:
        build_engine(checkpoint, recipe("int8_sq"), output, progress)
    assert "mlp.proj.prequant_scaling_factor" in str(caught.value)


def test_a_checkpoint_for_other_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path
) -> None:
    checkpoint = write_headers(tmp_path / "checkpoint", checkpoint_config("int8_sq"))
    changed = checkpoint_config("int8_sq", intermediate_size=2048)
    (checkpoint / "config.json").write_text(json.dumps(changed))
    pretend(monkeypatch, tmp_path / "machine")
    with pytest.raises(CompileError, match="has another shape") as caught:
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())
    assert "(1024" in str(caught.value)


def test_an_override_that_nobody_foresaw_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    sabotage = "plugin_config.use_paged_context_fmha=false"
    pretend(monkeypatch, tmp_path / "machine", sabotage=sabotage)
    progress = Recorder()
    with pytest.raises(CompileError, match="use_paged_context_fmha is false, not true"):
        build_engine(checkpoint, recipe("int8_sq"), output, progress)
    kept = tmp_path / "store" / "timing" / "failed-build.log"
    assert progress.notes[-1] == f"the log of this build is kept in {kept}"


def test_a_difference_that_no_client_notices_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sabotage="plugin_config.use_fused_mlp=false")
    progress = Recorder()
    facts = build_engine(checkpoint, recipe("int8_sq"), output, progress)
    assert facts["differences"] == ["plugin_config.use_fused_mlp is false, not true"]
    assert "the engine's plugin_config.use_fused_mlp is false, not true" in progress.notes


def test_a_missing_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path) -> None:
    checkpoint = write_headers(tmp_path / "checkpoint", checkpoint_config("float16", tp=2))
    pretend(monkeypatch, tmp_path / "machine", sabotage="skip-rank", gpus="2")
    with pytest.raises(CompileError, match=r"rank1\.engine is missing"):
        build_engine(checkpoint, recipe(tensor_parallel=2), output, Silent())


def test_an_engine_of_another_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, output: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", version="1.2.0")
    with pytest.raises(CompileError, match=r"version is 1\.2\.0, not 1\.2\.1"):
        build_engine(checkpoint, recipe("int8_sq"), output, Silent())


def test_an_interrupted_build_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["sh", "-c", "echo $$; sleep 600 & sleep 600"]
    pids = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run_logged(command, tmp_path / "log", interrupt)
    _await_end_of_group(pids[0])


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo $$; sleep 600 & sleep 600"]
    ending = run_logged(command, tmp_path / "log", lambda _line: None, timeout_s=2)
    assert ending.timed_out
    assert ending.returncode == -signal.SIGTERM
    _await_end_of_group(int(ending.tail[0]))


def test_a_command_that_ends_in_time_is_not_called_late(tmp_path: Path) -> None:
    ending = run_logged(["sh", "-c", "pwd; exit 3"], tmp_path / "log", print,
                        directory=tmp_path, timeout_s=60)  # fmt: skip
    assert (ending.timed_out, ending.returncode) == (False, 3)
    assert ending.tail == (str(tmp_path),)


def _await_end_of_group(group: int) -> None:
    """A process closes its files, which is what is waited for, a moment before it is gone."""
    deadline = time.monotonic() + 60
    while (alive := _alive_in_group(group)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive == []


def _alive_in_group(group: int) -> list[str]:
    """Commands of a process group; those that ended but were not yet reaped do not count."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found

"""The two scripts that run on an engine, with stand-ins for TensorRT-LLM."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from pipeline.errors import MissingDependencyError, StageError
from pipeline.targets.tensorrt.trial import run_script, script_perplexity, script_smoke
from tests.doubles.trtllm_build.machine import pretend
from tests.unit.tensorrt import fake_tensorrt_llm
from tests.unit.tensorrt.fake_tensorrt_llm import MAX_SEQ_LEN, VOCABULARY

ENDS = {"end_id": 0, "pad_id": 0}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The configuration of an engine that gathers context logits."""
    directory = tmp_path / "engine"
    directory.mkdir()
    build = {"max_seq_len": MAX_SEQ_LEN, "max_num_tokens": 12, "gather_context_logits": True}
    config = {
        "version": "1.2.1",
        "pretrained_config": {"vocab_size": VOCABULARY, "mapping": {"world_size": 1}},
        "build_config": build,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("script", [script_smoke, script_perplexity])
def test_a_script_needs_nothing_of_this_package(script: Any) -> None:
    tree = ast.parse(Path(script.__file__).read_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"__future__", "json", "math", "sys", "time", "pathlib", "typing", "torch"}
    assert names <= allowed | {"tensorrt_llm", "tensorrt_llm.runtime"}


def test_smoke_generates_greedily(
    monkeypatch: pytest.MonkeyPatch, engine: Path, tmp_path: Path
) -> None:
    runner = fake_tensorrt_llm.install(monkeypatch)
    request = {"engine": str(engine), "prompts": [[1, 2], [5]], "max_new_tokens": 3, **ENDS}
    asked, answered = tmp_path / "request.json", tmp_path / "result.json"
    asked.write_text(json.dumps(request))
    assert script_smoke.main([str(asked), str(answered)]) == 0
    result = json.loads(answered.read_text())
    # 3x + 1 mod 10 from 2 is 7, 2, 7; from 5 it is 6, 9, 8.
    assert result["new_tokens"] == [[7, 2, 7], [6, 9, 8]]
    assert result["problems"] == []
    assert runner.opened["kv_cache_enable_block_reuse"] is False
    assert runner.opened["max_input_len"] == 2


@pytest.mark.parametrize(
    ("garbage", "problem"),
    [(11, "token 11, outside the vocabulary of 10"), (3, "two different greedy answers")],
)
def test_smoke_names_what_is_wrong(
    garbage: int, problem: str, monkeypatch: pytest.MonkeyPatch, engine: Path
) -> None:
    fake_tensorrt_llm.install(monkeypatch, garbage=garbage)
    request = {"engine": str(engine), "prompts": [[1, 2]], "max_new_tokens": 3, **ENDS}
    result = script_smoke.run(request)
    assert result is not None
    assert problem in " ".join(result["problems"])


def test_smoke_refuses_prompts_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, engine: Path
) -> None:
    fake_tensorrt_llm.install(monkeypatch)
    request = {"engine": str(engine), "prompts": [[1] * 14], "max_new_tokens": 3, **ENDS}
    with pytest.raises(ValueError, match="do not fit the engine's max_seq_len 16"):
        script_smoke.run(request)


@pytest.mark.parametrize("script", [script_smoke, script_perplexity])
def test_other_ranks_write_nothing(
    script: Any, monkeypatch: pytest.MonkeyPatch, engine: Path
) -> None:
    runner = fake_tensorrt_llm.install(monkeypatch, rank=1)
    rows = [[1, 2, 3]]
    request = {"engine": str(engine), "prompts": rows, "windows": rows, "max_new_tokens": 2, **ENDS}
    assert script.run(request) is None
    assert runner.calls > 0


def test_perplexity_by_hand(monkeypatch: pytest.MonkeyPatch, engine: Path) -> None:
    fake_tensorrt_llm.install(monkeypatch)
    # 1 -> 4 -> 3 -> 0 is what the model prefers; the last step of the second window is not.
    request = {"engine": str(engine), "windows": [[1, 4, 3, 0], [1, 4, 5]], **ENDS}
    result = script_perplexity.run(request)
    assert result is not None
    total = math.exp(2.0) + 9 * math.exp(0.5)
    likely, unlikely = math.log(total) - 2.0, math.log(total) - 0.5
    assert [window["tokens"] for window in result["by_window"]] == [3, 2]
    assert result["by_window"][0]["nll"] == pytest.approx(3 * likely, rel=1e-5)
    assert result["by_window"][1]["nll"] == pytest.approx(likely + unlikely, rel=1e-5)
    single = [loss for window in result["by_window"] for loss in window["losses"]]
    assert single == pytest.approx([*[likely] * 4, unlikely], rel=1e-5)
    assert result["tokens"] == 5
    assert result["perplexity"] == pytest.approx(math.exp((4 * likely + unlikely) / 5), rel=1e-5)


def test_reused_blocks_are_noticed(monkeypatch: pytest.MonkeyPatch, engine: Path) -> None:
    fake_tensorrt_llm.install(monkeypatch, reused=2)
    with pytest.raises(ValueError, match="window 0 got positions without logits"):
        script_perplexity.run({"engine": str(engine), "windows": [[1, 4, 3, 0]], **ENDS})


def test_missing_logits_are_noticed(monkeypatch: pytest.MonkeyPatch, engine: Path) -> None:
    runner = fake_tensorrt_llm.install(monkeypatch)
    whole = runner.generate

    def short(self: Any, *arguments: Any, **keywords: Any) -> Any:
        outputs = whole(self, *arguments, **keywords)
        outputs["context_logits"] = [logits[1:] for logits in outputs["context_logits"]]
        return outputs

    monkeypatch.setattr(runner, "generate", short)
    with pytest.raises(ValueError, match=r"window 0 of 4 tokens got logits of shape \(3, 12\)"):
        script_perplexity.run({"engine": str(engine), "windows": [[1, 4, 3, 0]], **ENDS})


@pytest.mark.parametrize(
    ("changes", "longest", "message"),
    [
        ({"gather_context_logits": False}, 4, "without --gather_context_logits"),
        ({}, 16, "does not fit max_seq_len 16"),
        ({}, 13, "does not fit max_num_tokens 12"),
    ],
)
def test_an_engine_that_cannot_score(changes: dict[str, Any], longest: int, message: str) -> None:
    build = {"max_seq_len": 16, "max_num_tokens": 12, "gather_context_logits": True}
    with pytest.raises(ValueError, match=message):
        script_perplexity.check_engine(build | changes, longest)


def test_the_script_runs_in_place(
    monkeypatch: pytest.MonkeyPatch, engine: Path, tmp_path: Path
) -> None:
    """As a process of its own, with the stand-ins on its path."""
    pretend(monkeypatch, tmp_path / "machine")
    package = tmp_path / "modules" / "tensorrt_llm"
    package.mkdir(parents=True)
    source = Path(fake_tensorrt_llm.__file__).parents[3]
    (package / "__init__.py").write_text("def mpi_rank():\n    return 0\n")
    (package / "runtime.py").write_text(
        "from tests.unit.tensorrt.fake_tensorrt_llm import FakeRunner as ModelRunnerCpp\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{source}")
    result = run_script.run_smoke(engine, [[1, 2]], tmp_path, max_new_tokens=2, **ENDS)
    assert result["new_tokens"] == [[7, 2]]
    with pytest.raises(StageError, match="script_perplexity failed on the engine") as caught:
        run_script.run_evaluation(engine, [[1] * 13], tmp_path, **ENDS)
    assert "does not fit max_num_tokens 12" in str(caught.value.why)
    assert caught.value.where == str(tmp_path / "failed-script_perplexity.log")
    assert "does not fit" in (tmp_path / "failed-script_perplexity.log").read_text()


def test_two_ranks_run_under_mpirun_in_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", programs=("docker",), tensorrt_llm=None)
    command = run_script.script_command(tmp_path, "smoke.py", tmp_path / "e", 2, "image:1")
    assert command[command.index("image:1") + 1 :] == [
        *("mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "2", "python3"),
        *("/job/smoke.py", "/job/request.json", "/job/result.json"),
    ]
    assert f"--mount=type=bind,source={tmp_path / 'e'},target=/engine,readonly" in command
    assert f"--mount=type=bind,source={tmp_path},target=/job" in command
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(command)
    assert "--env=CUDA_DEVICE_ORDER=PCI_BUS_ID" in command


def test_a_script_that_hangs_ends_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, engine: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine", hang="1")
    (engine / "rank0.engine").write_text("A test double")
    monkeypatch.setattr(run_script, "TIMEOUT_S", 0.1)
    with pytest.raises(StageError, match="did not end on the engine within 0 s") as caught:
        run_script.run_smoke(engine, [[1, 2]], tmp_path, max_new_tokens=2, **ENDS)
    assert "NCCL wait forever" in str(caught.value.why)
    assert "NCCL_DEBUG=INFO" in str(caught.value.fix)
    assert caught.value.where == str(tmp_path / "failed-script_smoke.log")


def test_scripts_count_gpus_as_nvidia_smi_does(
    monkeypatch: pytest.MonkeyPatch, engine: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path / "machine")
    script = tmp_path / "order.py"
    script.write_text(
        "import json, os, sys\n"
        "order = os.environ.get('CUDA_DEVICE_ORDER')\n"
        "json.dump({'order': order}, open(sys.argv[2], 'w'))\n"
    )
    assert run_script.run_script(script, engine, {}, tmp_path) == {"order": "PCI_BUS_ID"}


def test_without_docker_and_tensorrt_llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path / "machine", programs=(), tensorrt_llm=None)
    with pytest.raises(MissingDependencyError, match="nor Docker is installed"):
        run_script.script_command(tmp_path, "smoke.py", tmp_path, 1, "image:1")

"""The repository of the TensorRT target on the real server, without a GPU.

Two things are true of it: its other four models serve when the engine model is the CPU's, and with
the engine model in place the server misses nothing but the C++ backend.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from pipeline.errors import ServerError
from pipeline.models.facts import ModelFacts
from pipeline.progress import Silent
from pipeline.recipe.file import load_recipe
from pipeline.running.runner import run_recipe
from pipeline.serving import check_custody, serve_command
from pipeline.store.build_dir import BuildDir
from pipeline.store.digests import file_digest, files_below
from pipeline.targets.tensorrt.serve.server import link_view
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER
from pipeline.triton.parameters import MODEL_DIGEST
from pipeline.triton.server import TritonServer
from tests.conftest import DEMO_MODEL, NO_GATES, PROJECT
from tests.doubles.trtllm_build.machine import pretend
from tests.unit.tensorrt import test_lora as lora
from trtllm_client import Client

SHARED_MODELS = ("preprocessing", "postprocessing", "tensorrt_llm_bls", "ensemble")


@dataclass(frozen=True)
class Repositories:
    """The same model for the two targets."""

    cpu: Path
    gpu: Path


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Repositories:
    """The demo model through the pipeline twice; a double stands in for ``trtllm-build``."""
    root = tmp_path_factory.mktemp("tensorrt-repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.setenv("HF_HUB_OFFLINE", "1")
        cpu = _build(root, "cpu", "openvino", 1)
        pretend(patch, root / "machine", sm="90", gpus="2")
        gpu = _build(root, "gpu", "tensorrt", 2)
    return Repositories(cpu, gpu)


def _build(root: Path, name: str, target: str, ranks: int) -> Path:
    settings = [f"name={name}", f"compile.target={target}", f"compile.tensor_parallel={ranks}"]
    recipe = load_recipe(PROJECT / "configs" / "demo-float16.yaml", settings)
    recipe = recipe.model_copy(update={"evaluate": None})
    built = run_recipe(recipe, BuildDir(root / "build"), Silent(), until="repository")
    return built.deployed["repository"]


def digests(repository: Path, model: str) -> dict[str, str]:
    folder = repository / model
    return {name: file_digest(folder / name) for name in files_below(folder)}


def test_four_models_are_the_cpus_but_for_the_ticket(repositories: Repositories) -> None:
    """NVIDIA's engine makes no ticket, so that its ensemble hands none on."""
    digest = re.compile(rf'(?<=key: "{MODEL_DIGEST}")\s*value \{{\s*string_value: "\w+"')
    for model in SHARED_MODELS:
        found, cpu = digests(repositories.gpu, model), digests(repositories.cpu, model)
        assert "config.pbtxt" in found
        gpu_text, cpu_text = (
            (place / model / "config.pbtxt").read_text()
            for place in (repositories.gpu, repositories.cpu)
        )
        if model in ("ensemble", "postprocessing"):
            assert "ticket" not in gpu_text.lower()
            lines = iter(cpu_text.splitlines())
            assert all(line in lines for line in gpu_text.splitlines())
            found["config.pbtxt"] = cpu["config.pbtxt"]
        elif MODEL_DIGEST in gpu_text:
            # Checkpoints of one rank and of two are others.
            assert digest.sub("", gpu_text) == digest.sub("", cpu_text) != cpu_text
            found["config.pbtxt"] = cpu["config.pbtxt"]
        assert found == cpu, model


def test_its_engine_model_is_complete_and_launches(repositories: Repositories) -> None:
    check_custody(repositories.gpu)
    engine = repositories.gpu / "tensorrt_llm/1/engine"
    assert {"config.json", "engine.json", "rank0.engine", "rank1.engine"} <= {
        path.name for path in engine.iterdir()
    }
    text = (repositories.gpu / "tensorrt_llm/config.pbtxt").read_text()
    assert 'backend: "tensorrtllm"' in text
    launch = serve_command(repositories.gpu)
    assert launch.image == DEFAULT_CONTAINER.image
    inside = list(launch.command)[list(launch.command).index(DEFAULT_CONTAINER.image) + 1 :]
    assert inside.count("tritonserver") == 2


def test_a_whole_run_in_the_pinned_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantized, measured on an engine, compiled and tried, where only Docker is installed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(PROJECT)
    settings = [
        *("compile.target=tensorrt", "compile.tensor_parallel=2", "evaluate.engine_tokens=200"),
        # The double's engine is another model than the demo.
        NO_GATES,
    ]
    recipe = load_recipe(PROJECT / "configs" / "demo-float16.yaml", settings)
    pretend(
        *(monkeypatch, tmp_path / "machine"),
        programs=("nvidia-smi", "docker"),
        tensorrt_llm=None,
        gpus="2",
    )
    built = run_recipe(recipe, BuildDir(tmp_path / "build"), Silent(), until="repository")
    facts = {
        name: planned.artifact.facts for name, planned in built.stages.items() if planned.artifact
    }
    assert facts["fidelity"]["perplexity"]["value"] > 1
    vocabulary = ModelFacts.from_directory(PROJECT / str(recipe.model.source)).vocab_size
    assert [len(tokens) for tokens in facts["compile"]["smoke"]] == [16, 16, 16]
    assert facts["compile"]["smoke"][0][0] == (3 * (7919 % vocabulary) + 1) % vocabulary
    engine = built.deployed["repository"] / "tensorrt_llm/1/engine"
    files = {"config.json", "engine.json", "rank0.engine", "rank1.engine"}
    assert {path.name for path in engine.iterdir()} == files
    assert not [name for name in files if str(tmp_path) in (engine / name).read_text()]
    manifest = json.loads((engine / "engine.json").read_text())
    assert manifest["container"]["image"] == DEFAULT_CONTAINER.image
    assert list((tmp_path / "build/store/compile").glob("*/build.log"))


@pytest.mark.parametrize(
    "settings",
    [
        ("compile.tensorrt.lookahead={window_size: 2, ngram_size: 4, verification_set_size: 3}",),
        ("compile.tensorrt.lora={max_rank: 4}", "serve.guided_decoding=xgrammar"),
    ],
    ids=["lookahead", "lora and guides"],
)
def test_a_whole_run_with_upstreams_features(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is built, tried and put into a repository that the validator accepts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(PROJECT)
    with_lora = any("lora" in setting for setting in settings)
    if with_lora:
        facts = ModelFacts.from_directory(DEMO_MODEL)
        name = "base_model.model.model.layers.1.self_attn.v_proj.lora_"
        values = facts.num_key_value_heads * facts.head_size
        shapes = {"A": (4, facts.hidden_size), "B": (values, 4)}
        weights = {f"{name}{half}.weight": torch.ones(shape) for half, shape in shapes.items()}
        adapter = lora.write(tmp_path / "adapter", weights, r=4)
        settings = (*settings, f"serve.lora_adapters=[{adapter}]")
    recipe = load_recipe(
        PROJECT / "configs" / "demo-float16.yaml",
        [
            *("compile.target=tensorrt", "compile.gpu=L4", "serve.cuda_graphs=4"),
            *("serve.kv_cache_host_memory=0.5", *settings),
        ],
    )
    recipe = recipe.model_copy(update={"evaluate": None})
    pretend(monkeypatch, tmp_path / "machine", sm="89", gpus="1")
    built = run_recipe(recipe, BuildDir(tmp_path / "build"), Silent(), until="repository")
    repository = built.deployed["repository"]
    config = text_format.Parse(
        (repository / "tensorrt_llm/config.pbtxt").read_text(), proto.ModelConfig()
    )
    found = {name: value.string_value for name, value in config.parameters.items()}
    assert found["cuda_graph_cache_size"] == "4"
    assert found["kv_cache_host_memory_bytes"] == str(2**29)
    engine = json.loads((repository / "tensorrt_llm/1/engine/config.json").read_text())
    if with_lora:
        assert engine["build_config"]["plugin_config"]["lora_plugin"] == "auto"
        assert (repository / "tensorrt_llm/1/lora/1/model.lora_weights.npy").is_file()
        assert (repository / "tensorrt_llm/1/xgrammar_tokenizer_info.json").is_file()
    else:
        # (2, 4, 3): 2 + 4 x 3.
        assert engine["build_config"]["max_draft_len"] == 14
        assert found["decoding_mode"] == "lookahead"
    check_custody(repository)


@pytest.mark.parametrize("linked", [False, True], ids=["as it is", "through a view"])
def test_they_serve_with_the_cpus_engine(
    repositories: Repositories, tmp_path: Path, linked: bool
) -> None:
    hybrid = tmp_path / "hybrid"
    shutil.copytree(repositories.gpu, hybrid, ignore=shutil.ignore_patterns("tensorrt_llm"))
    shutil.copytree(repositories.cpu / "tensorrt_llm", hybrid / "tensorrt_llm")
    served = hybrid
    if linked:
        served = tmp_path / "view"
        served.mkdir()
        link_view(hybrid, served)
    with TritonServer(served, log_file=tmp_path / "triton.log") as server:
        for model in ("tensorrt_llm_bls", "ensemble"):
            with Client(server.grpc_url, model=model) as client:
                answer = client.generate("Once upon a time", max_tokens=8)
            assert answer.text.strip(), model


def test_the_server_misses_the_backend_and_nothing_else(
    repositories: Repositories, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    server = TritonServer(repositories.gpu, log_file=log)
    with pytest.raises(
        ServerError,
        match="Model tensorrt_llm failed to load: unable to find backend library for backend "
        "'tensorrtllm'",
    ):
        server.start()
    text = log.read_text()
    assert set(re.findall(r"failed to load '([^']+)'", text)) == {"tensorrt_llm"}
    assert set(re.findall(r"successfully loaded '([^']+)'", text)) == {
        *("preprocessing", "postprocessing", "tensorrt_llm_bls")
    }
    # The ensemble waits for its step, which is the same complaint; a machine without a GPU also
    # says so.
    complaints = [line for line in text.splitlines() if re.match(r"\S+Z E \d+ ", line)]
    assert complaints
    for line in complaints:
        assert "unable to find backend library for backend 'tensorrtllm'" in line or "Cuda" in line


def test_serve_announces_itself_in_a_file(repositories: Repositories, tmp_path: Path) -> None:
    # What scripts/gpu-acceptance waits for.
    command = [sys.executable, "-m", "pipeline", "serve", str(repositories.cpu), "--json"]
    command += ["--grpc-port=0", "--http-port=0", "--metrics-port=0", f"--log={tmp_path / 'log'}"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        text = ""
        for line in server.stdout:
            text += line
            if line == "}\n":
                break
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert set(json.loads(text)) == {"grpc", "http", "metrics", "ready_seconds"}

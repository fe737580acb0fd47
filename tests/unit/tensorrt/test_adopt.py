"""Engines that were built elsewhere: what is taken in, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CompileError, PipelineError, UnsupportedError, UsageError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.stages.compile import adopting, given_engine
from pipeline.store.artifact import Artifact
from pipeline.store.digests import file_digest
from pipeline.targets import get_target
from pipeline.targets.tensorrt.build.build import build_engine
from tests.doubles.trtllm_build.machine import pretend
from tests.unit.tensorrt.build_support import checkpoint_config, publish_checkpoint, recipe
from tests.unit.tensorrt.test_build import Recorder
from tests.unit.tensorrt.test_carried_script import carry, machine

TWO = recipe("int4_awq", tensor_parallel=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = tmp_path_factory.mktemp("store")
    return publish_checkpoint(store, checkpoint_config("int4_awq", tp=2))


@pytest.fixture(scope="module")
def built(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine by the script, on another machine: this one has no GPU."""
    folder = tmp_path_factory.mktemp("box")
    with pytest.MonkeyPatch.context() as patch:
        machine(patch, folder / "machine", gpus="2", sm="89", container=True)
        done = carry(checkpoint, TWO, folder / "box")
    assert done.returncode == 0, done.stderr
    return folder / "box/engine"


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """A copy of it, to do anything with."""
    return Path(shutil.copytree(built, tmp_path / "engine"))


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path / "laptop", programs=(), tensorrt_llm=None)


def adopt(
    engine: Path, checkpoint: Path, wanted: Recipe, output: Path, progress: Any = None
) -> dict[str, Any]:
    """As the compile stage does."""
    output.mkdir(exist_ok=True)
    given = given_engine(engine, wanted, file_digest)
    target = get_target(wanted.compile.target)
    return target.adopt(given, checkpoint, wanted, output, progress or Silent())


@pytest.mark.usefixtures("laptop")
def test_it_is_what_compile_would_have_written(
    engine: Path,
    checkpoint: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "adopted"
    facts = adopt(engine, checkpoint.path, TWO, output)
    names = {"config.json", "engine.json", "rank0.engine", "rank1.engine", "build.log"}
    assert {path.name for path in output.iterdir()} == names
    assert all(file_digest(output / name) == file_digest(engine / name) for name in names)
    assert facts.pop("adopted") is True
    assert facts.pop("tools") == {
        "gpu": "NVIDIA L40S",
        "sm": "89",
        "driver": "580",
        "cuda": "13",
        "tensorrt-llm": "1.2.1",
        "tensorrt": "10.14.1.48",
    }
    here = tmp_path / "here"
    here.mkdir()
    pretend(monkeypatch, tmp_path / "gpu", gpus="2", sm="89")
    assert facts == build_engine(checkpoint.path, TWO, here, Silent())


@pytest.mark.usefixtures("laptop")
def test_what_the_build_warned_of_is_said_here(
    engine: Path, checkpoint: Artifact, tmp_path: Path
) -> None:
    warning = "Provided but not required tensors: {'transformer.extra.weight'}"
    with (engine / "build.log").open("a") as log:
        log.write(f"[11/23/2026-12:00:00] [TRT-LLM] [W] {warning}\n")
        log.write("Unable to find image 'nvcr.io/nvidia/tritonserver' locally\n")
    progress = Recorder()
    facts = adopt(engine, checkpoint.path, TWO, tmp_path / "adopted", progress)
    assert facts["warnings"] == [warning]
    assert f"trtllm-build: {warning}" in progress.notes
    # The image was fetched there, not here.
    assert not [note for note in progress.notes if "fetching" in note]
    (engine / "build.log").unlink()
    assert adopt(engine, checkpoint.path, TWO, tmp_path / "without")["warnings"] == []


@pytest.mark.usefixtures("laptop")
def test_an_engine_of_a_store_is_taken_too(
    engine: Path, checkpoint: Artifact, tmp_path: Path
) -> None:
    """A whole run on the other machine leaves no SHA256SUMS but its artifact's list."""
    stored = tmp_path / "stored"
    shutil.copytree(engine, stored, ignore=shutil.ignore_patterns("SHA256SUMS"))
    files = {
        path.name: {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in stored.iterdir()
    }
    manifest = {"schema": 1, "digest": "d", "created": "", "seconds": 1, "facts": {}}
    (stored / "artifact.json").write_text(json.dumps({**manifest, "files": files}))
    assert adopt(stored, checkpoint.path, TWO, tmp_path / "adopted")["world_size"] == 2
    with (stored / "rank1.engine").open("a") as file:
        file.write("x")
    with pytest.raises(CompileError, match=r"rank1\.engine is not the file that was built"):
        adopt(stored, checkpoint.path, TWO, tmp_path / "again")


@pytest.mark.usefixtures("laptop")
@pytest.mark.parametrize("name", ["rank1.engine", "config.json", "engine.json", "build.log"])
def test_a_link_out_of_an_engines_folder_is_not_followed(
    name: str, engine: Path, checkpoint: Artifact, tmp_path: Path
) -> None:
    (engine / name).rename(tmp_path / name)
    (engine / name).symlink_to(tmp_path / name)
    with pytest.raises(CompileError, match=f"{name} is a link out of the engine's folder, to"):
        adopt(engine, checkpoint.path, TWO, tmp_path / "adopted")


def _config(engine: Path, section: str, **changes: Any) -> None:
    """Writes ``config.json`` again, with its checksum: as another build would have."""
    path = engine / "config.json"
    config = json.loads(path.read_text())
    target = config
    for key in section.split("."):
        target = target[key]
    target |= changes
    path.write_text(json.dumps(config))
    _sum_again(engine)


def _manifest(engine: Path, **changes: Any) -> None:
    path = engine / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    _sum_again(engine)


def _sum_again(engine: Path) -> None:
    names = [line.split()[1] for line in (engine / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{file_digest(engine / name)}  {name}\n" for name in names]
    (engine / "SHA256SUMS").write_text("".join(lines))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated rank": (
        lambda engine: _truncate(engine / "rank1.engine"),
        r"changed since it was built, or copied in part: rank1\.engine is not the file",
    ),
    "a truncated config.json": (
        lambda engine: _truncate(engine / "config.json"),
        r"no readable config\.json of an engine",
    ),
    "an empty rank": (
        lambda engine: (engine / "rank0.engine").write_bytes(b""),
        r"not complete: rank0\.engine is empty",
    ),
    "a rank that was not copied": (
        lambda engine: (engine / "rank1.engine").unlink(),
        r"not complete: rank1\.engine is missing",
    ),
    "no manifest": (
        lambda engine: (engine / "engine.json").unlink(),
        r"no readable engine\.json",
    ),
    "a manifest without a GPU": (
        lambda engine: _manifest(engine, gpu=None),
        r"engine\.json does not say which GPU",
    ),
    "another list": (
        lambda engine: (engine / "SHA256SUMS").write_text("SHA256 (config.json) = 0\n"),
        "SHA256SUMS is not what sha256sum writes",
    ),
    "an empty list": (
        lambda engine: (engine / "SHA256SUMS").write_text(""),
        "SHA256SUMS is empty",
    ),
    "a mapping that is none": (
        lambda engine: _config(engine, "pretrained_config", mapping=5),
        r"no readable config\.json of an engine.*Its mapping or its plugin_config is no object",
    ),
    "plugins that are none": (
        lambda engine: _config(engine, "build_config", plugin_config=3),
        r"no readable config\.json of an engine.*Its mapping or its plugin_config is no object",
    ),
    "ranks that are no number": (
        lambda engine: _config(engine, "pretrained_config.mapping", world_size="x"),
        r"no readable config\.json of an engine.*Its world_size is no whole number",
    ),
    "ranks without end": (
        lambda engine: _config(engine, "pretrained_config.mapping", world_size=10**12),
        r"not complete: rank2\.engine is missing; .*; rank9\.engine is missing\. config\.json",
    ),
    "a container that is none": (
        lambda engine: _manifest(engine, container="x"),
        r"no readable engine\.json.*Its container is no object with the name of an image",
    ),
    "an image that is no name": (
        lambda engine: _manifest(engine, container={"image": 5}),
        r"no readable engine\.json.*Its container is no object with the name of an image",
    ),
    "another checkpoint": (
        lambda engine: _manifest(engine, checkpoint="0" * 64),
        "built from another checkpoint than this recipe's.*of 000000000000, the recipe's is",
    ),
    "another tp": (
        lambda engine: _config(engine, "pretrained_config.mapping", tp_size=1, pp_size=2),
        "not of this checkpoint: tp_size is 1, not 2; pp_size is 2, not 1",
    ),
    "another dtype": (
        lambda engine: _config(engine, "pretrained_config", dtype="bfloat16"),
        "not of this checkpoint: dtype is bfloat16, not float16",
    ),
    "another model": (
        lambda engine: _config(engine, "pretrained_config", num_hidden_layers=5),
        "not of this checkpoint: num_hidden_layers is 5, not 4",
    ),
    "another quantization": (
        lambda engine: _config(engine, "pretrained_config.quantization", quant_algo="W4A8_AWQ"),
        "not of this checkpoint: quant_algo is W4A8_AWQ, not W4A16_AWQ",
    ),
    "another group size": (
        lambda engine: _config(engine, "pretrained_config.quantization", group_size=64),
        "not of this checkpoint: group_size is 64, not 128",
    ),
    "another KV cache": (
        lambda engine: _config(
            engine, "pretrained_config.quantization", kv_cache_quant_algo="INT8"
        ),
        "not of this checkpoint: kv_cache_quant_algo is INT8, not None",
    ),
    "another length": (
        lambda engine: _config(engine, "build_config", max_seq_len=2048),
        "not the one that was asked for: max_seq_len is 2048, not 1024.*other options",
    ),
    "another attention": (
        lambda engine: _config(
            engine, "build_config.plugin_config", use_paged_context_fmha=False
        ),
        "use_paged_context_fmha is false, not true",
    ),
    "another TensorRT-LLM": (
        lambda engine: (
            _config(engine, "pretrained_config"),
            (engine / "config.json").write_text(
                (engine / "config.json").read_text().replace('"1.2.1"', '"1.1.0"')
            ),
            _sum_again(engine),
        ),
        r"not of this checkpoint: version is 1\.1\.0, not 1\.2\.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.usefixtures("laptop")
def test_a_wrong_engine_is_refused(
    harm: str, engine: Path, checkpoint: Artifact, tmp_path: Path
) -> None:
    spoil, message = HARMS[harm]
    spoil(engine)
    with pytest.raises(CompileError, match=message) as caught:
        adopt(engine, checkpoint.path, TWO, tmp_path / "adopted")
    assert str(engine) in str(caught.value.where)
    # Never the remedy of a build that ran here.
    assert caught.value.fix is not None
    assert "plan RECIPE --script" in caught.value.fix or "Copy the whole folder" in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch_size": 16}, "max_batch_size is 8, not 16"),
        ({"tokens_per_block": 64}, r"tokens_per_block is 32, not 64"),
        ({"options": {"gather_context_logits": True}}, "gather_context_logits is false, not true"),
    ],
)
@pytest.mark.usefixtures("laptop")
def test_a_recipe_that_was_changed_since_wants_another_engine(
    changes: dict[str, Any], message: str, engine: Path, checkpoint: Artifact, tmp_path: Path
) -> None:
    changed = recipe("int4_awq", tensor_parallel=2, **changes)
    with pytest.raises(CompileError, match=message):
        adopt(engine, checkpoint.path, changed, tmp_path / "adopted")


@pytest.mark.usefixtures("laptop")
def test_the_gpu_of_the_recipe_counts(engine: Path, checkpoint: Artifact, tmp_path: Path) -> None:
    for_h200 = recipe("int4_awq", tensor_parallel=2, gpu="H200")
    with pytest.raises(UnsupportedError, match=r"for H200 \(SM 90\), the engine was built on") as c:
        adopt(engine, checkpoint.path, for_h200, tmp_path / "adopted")
    assert "NVIDIA L40S (SM 89)" in str(c.value)


TRIED: dict[str, tuple[dict[str, str], str | None]] = {
    "all": ({"sm": "89", "gpus": "2"}, None),
    "one": ({"sm": "89", "gpus": "1"}, "its 2 rank(s) run on NVIDIA L40S (SM 89) only; here, NVID"),
    "others": ({"sm": "90", "gpus": "2"}, "here, NVIDIA H100 80GB HBM3 (SM 90)"),
    "none": ({"gpus": "0"}, "here, nvidia-smi fails: No devices were found"),
}


@pytest.mark.parametrize("gpus", TRIED)
def test_it_is_tried_where_its_gpus_are(
    gpus: str, engine: Path, checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, said = TRIED[gpus]
    pretend(monkeypatch, tmp_path / "here", **settings)
    progress, output = Recorder(), tmp_path / "work"
    facts = adopt(engine, checkpoint.path, TWO, output, progress)
    if said is None:
        assert [len(tokens) for tokens in facts["smoke"]] == [16, 16, 16]
    else:
        assert "smoke" not in facts
        assert said in progress.notes[-1]


@pytest.mark.usefixtures("laptop")
def test_the_key_depends_on_the_engine_and_not_on_the_machine(engine: Path, tmp_path: Path) -> None:
    def material() -> dict[str, Any]:
        return adopting(given_engine(engine, TWO, file_digest)).material(TWO)

    before = material()
    assert set(before["engine"]) == {
        *("config.json", "engine.json", "rank0.engine", "rank1.engine", "SHA256SUMS")
    }
    assert set(before) == {"engine"}
    with (engine / "rank0.engine").open("a") as file:
        file.write("x")
    after = material()
    assert {
        name for name in before["engine"] if before["engine"][name] != after["engine"][name]
    } == {"rank0.engine"}


def test_a_checkpoint_is_called_one(checkpoint: Artifact) -> None:
    with pytest.raises(CompileError, match="this is a checkpoint, not an engine") as caught:
        given_engine(checkpoint.path, TWO, file_digest)
    assert str(caught.value).startswith(f"{checkpoint.path}: this is a checkpoint")
    assert "plan RECIPE --script" in str(caught.value.fix)
    assert "KeyError" not in str(caught.value)


def test_an_engine_of_the_cpu_is_called_one(checkpoint: Artifact, tmp_path: Path) -> None:
    """Its config.json has the sections of an engine, as the CPU's compile stage writes it."""
    sections: dict[str, Any] = {"pretrained_config": {}, "build_config": {}}
    config = {"version": "0.1.0", "target": "openvino", "runtime": {}, **sections}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompileError, match="this is an engine of the CPU target"):
        given_engine(tmp_path, TWO, file_digest)


def test_a_model_of_the_hub_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(CompileError, match="this is a Hugging Face model, not an engine"):
        given_engine(tmp_path, TWO, file_digest)


def test_a_folder_without_a_config_says_so_plainly(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"no readable config\.json") as caught:
        given_engine(tmp_path, TWO, file_digest)
    assert "Errno" not in str(caught.value)


def test_what_is_no_directory_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        given_engine(tmp_path / "nowhere", TWO, file_digest)


def test_the_cpu_takes_no_engine_and_writes_no_script(checkpoint: Artifact, tmp_path: Path) -> None:
    values = TWO.model_dump(mode="json", by_alias=True)
    values["compile"] |= {"target": "openvino"}
    cpu = Recipe.model_validate(values)
    refusals: list[Callable[[], object]] = [
        lambda: given_engine(tmp_path, cpu, file_digest),
        lambda: get_target("openvino").build_script(checkpoint, cpu),
    ]
    for refusal in refusals:
        with pytest.raises(
            PipelineError, match=r"CPU engines cannot be taken in|engine of the CPU"
        ) as caught:
            refusal()
        assert caught.value.exit_code == 3

"""Layer by layer the same bytes are written as with the whole model in memory."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("modelopt")

import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import CheckpointError, SourceError, StageError
from pipeline.layers import state
from pipeline.layers.walk import Walker
from pipeline.progress import Silent
from pipeline.quantize import by_layer, export, whole
from pipeline.quantize.loading import count_parameters
from pipeline.quantize.walk import Walk
from pipeline.quantize.writing import EMBEDDING
from pipeline.recipe.schema import Recipe
from pipeline.source.safetensors_header import read_header
from pipeline.stages import quantize
from pipeline.stages.base import StageContext
from pipeline.stages.quantize import STAGE
from pipeline.store.artifact import Artifact
from tests.integration.quantize_support import (
    ARCHITECTURES,
    recipe,
    run_stage,
    write_source,
)

Write = Callable[[str], Path]
# Every format, KV cache and option once, with ranks of both kinds, and each architecture.
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Llama", {"format": "int4_awq", "kv_cache": "int8", "group_size": 64, "tp": 2}),
    ("Llama", {"format": "int4_gptq", "kv_cache": "int8", "act_order": True}),
    ("Llama", {"format": "int4_gptq", "pp": 2}),
    ("Llama", {"format": "nf4", "tp": 2}),
    ("Mistral", {"format": "int4_awq", "kv_cache": "fp8", "portable": True}),
    ("Mistral", {"format": "float32", "pp": 2}),
    ("Qwen2", {"format": "int8_sq", "kv_cache": "fp8", "portable": True, "tp": 2}),
    ("Qwen2", {"format": "bfloat16", "tp": 2, "pp": 2}),
    ("Qwen2", {"format": "int8_wo"}),
    ("Qwen3", {"format": "w4a8_awq", "kv_cache": "fp8", "tp": 2, "pp": 2}),
    ("Qwen3", {"format": "fp8", "kv_cache": "fp8", "dtype": "bfloat16"}),
    ("Qwen3", {"format": "float16"}),
)
RANKS: tuple[dict[str, int], ...] = ({}, {"tp": 2}, {"pp": 2}, {"tp": 2, "pp": 2})
ALL: tuple[dict[str, Any], ...] = (
    *({"format": name} for name in ("float16", "bfloat16", "float32", "nf4", "int8_wo")),
    *(
        {"format": name, "kv_cache": kv_cache, **options}
        for kv_cache in (None, "int8", "fp8")
        for name, options in (
            ("int4_awq", {}),
            ("int4_awq", {"group_size": 64}),
            ("int4_awq", {"portable": True}),
            ("int8_sq", {}),
            ("int8_sq", {"portable": True}),
            ("fp8", {}),
            ("w4a8_awq", {}),
            ("int4_gptq", {}),
            ("int4_gptq", {"act_order": True}),
        )
    ),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes the source of an architecture, once."""
    root = tmp_path_factory.mktemp("sources")

    def write(architecture: str) -> Path:
        folder = root / architecture
        return folder if folder.exists() else write_source(architecture, folder)

    return write


def as_whole(asked: Recipe) -> Recipe:
    """The same recipe with the whole model in memory."""
    return asked.model_copy(update={"model": asked.model.model_copy(update={"at_once": "model"})})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def compare(source: Path, changes: dict[str, Any], root: Path) -> None:
    """Writes a checkpoint in both ways and compares what is in the files."""
    asked = recipe(source, **changes)
    facts = run_stage(asked, source, root / "layer")
    assert run_stage(as_whole(asked), source, root / "whole") == facts
    own, whole = files(root / "layer"), files(root / "whole")
    assert own.keys() == whole.keys()
    assert len(own) == 1 + changes.get("tp", 1) * changes.get("pp", 1)
    assert [name for name in own if own[name] != whole[name]] == []


@pytest.mark.parametrize(("architecture", "changes"), CASES)
def test_the_bytes_are_those_of_the_whole_model(
    architecture: str, changes: dict[str, Any], source: Write, tmp_path: Path
) -> None:
    compare(source(architecture), changes, tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("ranks", RANKS, ids=str)
@pytest.mark.parametrize("changes", ALL, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bytes_are_those_of_the_whole_model_in_every_case(
    architecture: str,
    changes: dict[str, Any],
    ranks: dict[str, int],
    source: Write,
    tmp_path: Path,
) -> None:
    compare(source(architecture), changes | ranks, tmp_path)


@pytest.mark.parametrize("name", ["int8_sq", pytest.param("int4_awq", marks=pytest.mark.proof)])
def test_a_search_finds_what_it_finds_with_the_whole_model(
    name: str, source: Write, tmp_path: Path
) -> None:
    values = [64, 128] if name == "int4_awq" else [0.5, 0.8]
    changes = {"search": {"tokens": 100, "candidates": values}, "kv_cache": "int8"}
    compare(source("Llama"), {"format": name} | changes, tmp_path)


def test_states_of_passes_that_round_are_kept_apart(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one set for both passes other bytes are written, so the case above would tell."""
    asked = recipe(source("Llama"), format="int4_awq", kv_cache="int8")
    run_stage(asked, source("Llama"), tmp_path / "apart")
    monkeypatch.setattr(by_layer, "sets_of", lambda _recipe: (0, 0))
    run_stage(asked, source("Llama"), tmp_path / "together")
    assert files(tmp_path / "apart") != files(tmp_path / "together")


def test_a_pass_more_or_less_is_refused(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_layer, "sets_of", lambda _recipe: (0, 0, 0))
    with pytest.raises(StageError, match="2 passes were made over a layer, and not 3"):
        run_stage(recipe(source("Llama"), format="int4_awq"), source("Llama"), tmp_path / "out")


def test_nothing_is_left_behind(source: Write, tmp_path: Path) -> None:
    before = gc.get_freeze_count(), torch.get_num_threads(), torch.get_default_dtype()
    run_stage(recipe(source("Llama"), format="fp8"), source("Llama"), tmp_path / "out")
    assert (gc.get_freeze_count(), torch.get_num_threads(), torch.get_default_dtype()) == before
    assert not [thread for thread in threading.enumerate() if "read-ahead" in thread.name]


class Interrupted:
    """Ends a run when so many layers were begun, and notes which."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[int] = []
        self.at: int | None = None
        original = by_layer.one_layer

        def one_layer(config: Any, index: int, *rest: Any) -> Any:
            if len(self.begun) == self.at:
                raise KeyboardInterrupt
            self.begun.append(index)
            return original(config, index, *rest)

        monkeypatch.setattr(by_layer, "one_layer", one_layer)
        monkeypatch.setattr(state, "INTERVAL_S", 0.0)
        monkeypatch.setattr(state, "WORK_PER_SAVE", 0)


def run_unfinished(asked: Recipe, source: Path, root: Path, name: str) -> Path:
    """Runs the stage with a directory that outlives it, into another output."""
    output, unfinished = root / name, root / "unfinished"
    output.mkdir()
    unfinished.mkdir(exist_ok=True)
    artifact = Artifact("source", "key", "digest", source, {})
    context = StageContext(asked, {"source": artifact}, output, Silent(), unfinished=unfinished)
    STAGE.run(context)
    return output


SEARCH = {"tokens": 100, "candidates": [0.5, 0.8]}
# What is written, after how many layers it is interrupted, and the layers of both runs.
Resumed = tuple[dict[str, Any], int, list[int]]
RESUMED: tuple[Any, ...] = (
    ({"format": "int4_awq", "kv_cache": "int8"}, 1, [0, 1]),
    ({"format": "int8_sq", "kv_cache": "int8", "portable": True, "tp": 2, "pp": 2}, 1, [0, 1]),
    ({"format": "float16", "tp": 2}, 1, [0, 1]),
    # In the first candidate, and in the second, which leaves a pass out.
    pytest.param(
        ({"format": "int8_sq", "kv_cache": "int8", "search": SEARCH}, 1, [0, 1, 0, 1]),
        marks=pytest.mark.proof,
    ),
    ({"format": "int8_sq", "kv_cache": "int8", "search": SEARCH}, 3, [0, 1, 0, 1]),
    (
        {"format": "int4_awq", "kv_cache": "int8", "search": SEARCH | {"candidates": [64, 128]}},
        3,
        [0, 1, 0, 1],
    ),
    *(
        pytest.param((changes | {"kv_cache": "int8"}, 3, [0, 1, 0, 1]), marks=pytest.mark.proof)
        for changes in (
            {"format": "int8_sq", "portable": True, "search": SEARCH},
            {"format": "int4_gptq", "search": SEARCH | {"candidates": [64, 128]}},
        )
    ),
)


@pytest.mark.parametrize("case", RESUMED, ids=str)
def test_a_run_that_ended_early_is_gone_on_with(
    case: Resumed, source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, at, begun = case
    asked = recipe(source("Llama"), **changes)
    run_stage(asked, source("Llama"), tmp_path / "at once")
    seen = Interrupted(monkeypatch)
    seen.at = at
    with pytest.raises(KeyboardInterrupt):
        run_unfinished(asked, source("Llama"), tmp_path, "first")
    assert list((tmp_path / "first").iterdir()) == []
    seen.at = None
    output = run_unfinished(asked, source("Llama"), tmp_path, "second")
    assert seen.begun == begun
    assert files(output) == files(tmp_path / "at once")


def interrupt_scoring(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Ends a run once so many parts were scored; returns the list of those of all runs."""
    original, scored = Walker._pass, list[str]()

    def passed(self: Walker, number: int, hidden: list[torch.Tensor]) -> None:
        if len(scored) == at:
            scored.append("interrupted")
            raise KeyboardInterrupt
        scored.append(f"{self._name} {number}")
        original(self, number, hidden)

    monkeypatch.setattr(Walker, "_pass", passed)
    return scored


SOURCE, CHECKPOINT = (
    [f"{name} {number}" for number in range(3)] for name in ("source", "checkpoint")
)
SEARCHED: dict[str, Any] = {"format": "int8_sq", "kv_cache": "int8", "search": SEARCH}


@pytest.mark.parametrize("at", [1, 4, 10])
def test_a_search_that_ended_while_it_scored_goes_on_there(
    at: int, source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, made = recipe(source("Llama"), **SEARCHED), source("Llama")
    run_stage(asked, made, tmp_path / "at once")
    seen, scored = Interrupted(monkeypatch), interrupt_scoring(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        run_unfinished(asked, made, tmp_path, "first")
    output = run_unfinished(asked, made, tmp_path, "second")
    # Each layer of each candidate is quantized once, and each part computed once.
    assert seen.begun == [0, 1, 0, 1]
    scored.remove("interrupted")
    assert scored == 2 * (SOURCE + CHECKPOINT)
    assert files(output) == files(tmp_path / "at once")
    (best,) = (tmp_path / "unfinished" / "search").glob("candidate-*")
    assert files(best) == files(output)


def test_a_whole_model_is_not_quantized_again_for_a_score(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, made = as_whole(recipe(source("Llama"), **SEARCHED)), source("Llama")
    run_stage(asked, made, tmp_path / "at once")
    written, scored = list[Any](), list[Any]()

    def counted(original: Callable[..., Any], calls: list[Any], at: int) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            calls.append(given)
            if len(calls) == at:
                raise KeyboardInterrupt
            return original(*given, **more)

        return call

    for module, name, calls, at in (
        (whole, "quantize_whole", written, 0),
        (quantize, "_divergence", scored, 2),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name), calls, at))
    with pytest.raises(KeyboardInterrupt):
        run_unfinished(asked, made, tmp_path, "first")
    output = run_unfinished(asked, made, tmp_path, "second")
    assert (len(written), len(scored)) == (2, 3)
    assert files(output) == files(tmp_path / "at once")


@pytest.mark.parametrize("change", ["a byte", "rank file", "config.json", "processor", "record"])
def test_a_trial_that_was_changed_is_not_taken(
    change: str, source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, made = recipe(source("Llama"), **SEARCHED), source("Llama")
    run_stage(asked, made, tmp_path / "at once")
    seen, scored = Interrupted(monkeypatch), interrupt_scoring(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        run_unfinished(asked, made, tmp_path, "first")
    search = tmp_path / "unfinished" / "search"
    rank = search / "candidate-0.5" / "rank0.safetensors"
    if change == "a byte":
        content = bytearray(rank.read_bytes())
        content[-1] ^= 1
        rank.write_bytes(content)
    elif change == "rank file":
        rank.unlink()
    elif change == "config.json":
        (rank.parent / "config.json").unlink()
    elif change == "processor":
        monkeypatch.setattr(state, "processor_name", lambda: "another")
    else:
        (search / "tried.json").write_text("[]")
    output = run_unfinished(asked, made, tmp_path, "second")
    assert seen.begun == [0, 1, 0, 1, 0, 1]
    assert scored[5:] == 2 * (SOURCE + CHECKPOINT)
    assert files(output) == files(tmp_path / "at once")


def test_statistics_that_were_changed_are_collected_anew(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(source("Llama"), **SEARCHED)
    run_stage(asked, source("Llama"), tmp_path / "at once")
    seen = Interrupted(monkeypatch)
    seen.at = 3
    with pytest.raises(KeyboardInterrupt):
        run_unfinished(asked, source("Llama"), tmp_path, "first")
    kept = tmp_path / "unfinished" / "search" / "statistics.state"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    seen.at = None
    output = run_unfinished(asked, source("Llama"), tmp_path, "second")
    # States of a pass that was left out are of no use to a run that makes it.
    assert seen.begun == [0, 1, 0, 0, 1]
    assert files(output) == files(tmp_path / "at once")


@pytest.mark.parametrize("change", ["threads", "rank file", "state", "a layer", "the table"])
def test_what_does_not_fit_is_begun_anew(
    change: str, source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(source("Llama"), format="fp8", pp=2)
    run_stage(asked, source("Llama"), tmp_path / "at once")
    seen = Interrupted(monkeypatch)
    seen.at = 1
    with pytest.raises(KeyboardInterrupt):
        run_unfinished(asked, source("Llama"), tmp_path, "first")
    if change in ("a layer", "the table"):
        within = "transformer.layers.0.attention.qkv.weight" if change == "a layer" else EMBEDDING
        path = tmp_path / "unfinished" / "rank0.safetensors"
        with path.open("r+b") as file:
            file.seek(read_header(path)[within].start)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    elif change == "threads":
        monkeypatch.setattr(state, "processor_name", lambda: "another")
    else:
        name = "rank1.safetensors" if change == "rank file" else "layers.state"
        path = tmp_path / "unfinished" / name
        path.write_bytes(path.read_bytes()[:-1])
    seen.at = None
    output = run_unfinished(asked, source("Llama"), tmp_path, "second")
    assert seen.begun == [0, 0, 1]
    assert files(output) == files(tmp_path / "at once")


def test_own_formats_go_on_too(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.quantize import own

    asked = recipe(source("Llama"), format="nf4", pp=2)
    run_stage(asked, source("Llama"), tmp_path / "at once")
    monkeypatch.setattr(state, "INTERVAL_S", 0.0)
    monkeypatch.setattr(state, "WORK_PER_SAVE", 0)
    rounded, calls = own.rounded, []

    def limited(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return rounded(*given)

    monkeypatch.setattr(own, "rounded", limited)
    with pytest.raises(KeyboardInterrupt):
        run_unfinished(asked, source("Llama"), tmp_path, "first")
    output = run_unfinished(asked, source("Llama"), tmp_path, "second")
    # Of two layers with five linears each the second one's are rounded again.
    assert len(calls) == 10 + 5
    assert files(output) == files(tmp_path / "at once")


def test_what_is_whole_is_not_written_again(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends behind the last layer, as a disk that is full when files are published."""
    asked = recipe(source("Llama"), format="fp8", pp=2)
    seen = Interrupted(monkeypatch)
    output = run_unfinished(asked, source("Llama"), tmp_path, "first")
    assert (output / "rank1.safetensors").stat().st_mode & 0o777 == 0o444
    # Of somebody else, and no part of the checkpoint.
    (tmp_path / "unfinished" / "rank7.safetensors").write_bytes(b"")
    run_unfinished(asked, source("Llama"), tmp_path, "second")
    run_unfinished(as_whole(asked), source("Llama"), tmp_path, "third")
    assert seen.begun == [0, 1]
    made = files(tmp_path / "first")
    assert sorted(made) == ["config.json", "rank0.safetensors", "rank1.safetensors"]
    assert files(tmp_path / "second") == files(tmp_path / "third") == made
    for path in (tmp_path / "unfinished").glob("rank*"):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1])
    # Else no later run could end either.
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors"):
        run_unfinished(asked, source("Llama"), tmp_path, "damaged")
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_a_config_that_was_cut_says_of_nothing_that_it_is_whole(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file system leaves it where the power went before it was written."""
    asked = recipe(source("Llama"), format="fp8")
    seen = Interrupted(monkeypatch)
    run_unfinished(asked, source("Llama"), tmp_path, "first")
    config = tmp_path / "unfinished" / "config.json"
    config.unlink()  # a link, which the output has as well
    config.touch()
    output = run_unfinished(asked, source("Llama"), tmp_path, "second")
    assert files(output) == files(tmp_path / "first")
    assert seen.begun[:3] == [0, 1, 1]


@pytest.mark.parametrize("at_once", [False, True], ids=["by layer", "as a whole"])
def test_what_nobody_can_go_on_with_is_not_kept(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Files of ranks without a state, of a run that ends ahead of its first save."""
    asked = recipe(source("Llama"), format="fp8")
    seen = Interrupted(monkeypatch)
    monkeypatch.setattr(state, "INTERVAL_S", 60.0)
    if at_once:
        asked = as_whole(asked)

        def failed(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(export, "write_config", failed)
    else:
        seen.at = 1
    with pytest.raises(KeyboardInterrupt):
        run_unfinished(asked, source("Llama"), tmp_path, "first")
    assert list((tmp_path / "unfinished").iterdir()) == []


@pytest.mark.parametrize(
    ("where", "work"),
    [
        ("pipeline.quantize.calibrate.modelopt_config", "calibration"),
        ("pipeline.quantize.export._check_label", "the export"),
        ("transformers.AutoConfig.from_pretrained", "the loading of the model"),
    ],
)
def test_memory_that_is_not_there_is_told_wherever_it_runs_out(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, work: str
) -> None:
    asked = recipe(source("Llama"), format="fp8")
    monkeypatch.setattr(where, lambda *_, **__: torch.empty(1 << 50))
    with pytest.raises(StageError, match=rf"memory ran out during {work}\. You tried to allocate"):
        run_stage(asked, source("Llama"), tmp_path / "out")


def test_a_disk_without_room_for_states_ends_nothing(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(source("Llama"), format="fp8")
    run_stage(asked, source("Llama"), tmp_path / "at once")
    Interrupted(monkeypatch)
    told: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda _self, message: told.append(message))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state.State, "save", full)
    output = run_unfinished(asked, source("Llama"), tmp_path, "full")
    assert files(output) == files(tmp_path / "at once")
    words = "warning: how far the checkpoint is written cannot be kept (No space left on device)"
    assert [message.startswith(words) for message in told] == [True]


def test_a_source_that_cannot_be_read_is_no_disk_that_cannot_be_written(
    source: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    asked = recipe(source("Llama"), format="nf4")
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(SourceError, match=r"weights cannot be read\. Input/output error"):
        run_stage(asked, source("Llama"), tmp_path / "out")


# A model that was trained, and a format of each of ModelOpt's algorithms.
@pytest.mark.parametrize(
    ("model", "name"), [("demo_model", "int4_awq"), ("stories_model", "int8_sq")]
)
def test_trained_models_have_the_same_bytes_too(
    model: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(request.getfixturevalue(model), folder)
    text = "Once upon a time there was a tiny girl who liked to play in the park. She was happy."
    (folder / "calibration.txt").write_text("\n\n".join(f"{n}. {text}" for n in range(2)))
    compare(folder, {"format": name, "samples": 2}, tmp_path)


def test_a_walk_hands_each_pass_its_own_states() -> None:
    """By hand: a layer that adds what it is told, in two passes of a set each."""

    class Adding:
        amount = 0.0

        def model(self, inputs_embeds: Any, **_: Any) -> Any:
            class Out:
                last_hidden_state = inputs_embeds + self.amount

            return Out

    layer = Adding()
    walk = Walk([torch.zeros(1, 2, 3)], (0, 1), torch.device("cpu"))
    for amounts in ((1.0, 10.0), (2.0, 20.0)):
        for layer.amount in amounts:
            walk.run(layer, 1.0)
        walk.leave()
    assert [float(one.mean()) for one in walk.states()] == [3.0, 30.0]
    shared = Walk([torch.zeros(1, 2, 3)], (0, 0), torch.device("cpu"))
    for layer.amount in (5.0, 7.0):
        shared.run(layer, 1.0)
    assert [float(one.mean()) for one in shared.states()] == [7.0]
    short = Walk([torch.zeros(1, 2, 3)], (0, 0), torch.device("cpu"))
    short.skip(1.0)
    with pytest.raises(StageError, match="1 passes were made over a layer, and not 2"):
        short.leave()


def test_who_rounds_a_layer_has_the_states_in_front_of_it_alone() -> None:
    """So that there is one set of them at a time, and not another one behind the layer."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def rounding(states: Iterable[torch.Tensor]) -> tuple[str, list[torch.Tensor]]:
        own = list(states)
        alive.extend(map(weakref.ref, own))
        for number in range(len(own)):
            own[number] = own[number] + 1
            assert alive[number]() is None
        return "rounded", own

    walk = Walk([torch.zeros(1, 2, 3), torch.ones(2, 1, 3)], (0,), torch.device("cpu"))
    assert walk.rounded(rounding) == "rounded"
    walk.leave()
    assert [float(one.mean()) for one in walk.states()] == [1.0, 2.0]
    assert walk.tokens == 4
    # A later pass sees them as they were.
    both = Walk([torch.zeros(1, 2, 3)], (0, 0), torch.device("cpu"))
    both.rounded(lambda states: ("", [one + 1 for one in states]))
    assert [float(one.mean()) for one in both.states()] == [0.0]


def test_a_head_that_nobody_reads_does_not_count(tmp_path: Path) -> None:
    """Tools write one beside an embedding that is tied to it, and buffers of old checkpoints."""
    source = write_source("Qwen2", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    assert config["tie_word_embeddings"]
    weights = load_file(source / "model.safetensors")
    elements = sum(weight.numel() for weight in weights.values())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    assert count_parameters(source) == elements

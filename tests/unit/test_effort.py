"""What a run takes of a machine, against sums done by hand, and what is refused before it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import api
from pipeline.effort import planned
from pipeline.effort.disk import Snapshot
from pipeline.effort.example import example_peak
from pipeline.effort.fitting import Change, refusal, smallest, warnings
from pipeline.effort.lines import effort_lines
from pipeline.effort.rates import DeviceRates, Rates
from pipeline.effort.seconds import Seconds
from pipeline.effort.stages import Machine, StageEffort, efforts
from pipeline.effort.work import TextLengths, calibrated, passes, scored, sets, shape_of
from pipeline.errors import SourceError, UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.models.quantized import StoredQuantization
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.running.planner import SERVED, PlannedStage
from pipeline.running.room import effort_left
from pipeline.running.runner import run_recipe
from pipeline.stages import quantize
from pipeline.store.build_dir import BuildDir
from pipeline.targets.machine import may_have_gpu

from ..conftest import PROJECT

GIB = 1 << 30
STAGES = ("source", "quantize", "evaluate", "compile")
# So round that times can be worked out: 1 TFLOP/s, 100 GB/s, a disk of 1 GB/s.
FAST = Rates(
    "2026-01-01",
    DeviceRates("2 CPUs", {"float32": 1e12, "bfloat16": 4e12}, 100e9),
    read=1e9,
    write=0.5e9,
)


def facts_of(name: str) -> ModelFacts:
    text = (PROJECT / "tests" / "data" / f"{name}.json").read_text()
    return ModelFacts.from_config(json.loads(text), name)


def recipe_of(**sections: Any) -> Recipe:
    model: dict[str, Any] = {"source": "org/name", "dtype": "bfloat16", **sections.pop("model", {})}
    calibration = {"text": "none.jsonl", "samples": 32, "sequence_length": 512, "batch_size": 16}
    quantize = {"format": "int4_awq", "calibration": calibration, **sections.pop("quantize", {})}
    evaluate = {"text": "none.jsonl", "tokens": 20000, **sections.pop("evaluate", {})}
    return Recipe.model_validate(
        {"name": "r", "model": model, "quantize": quantize, "evaluate": evaluate, **sections}
    )


SMALL = replace(
    facts_of("llama-3.1-8b"),
    num_hidden_layers=12,
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_size=64,
    vocab_size=32000,
)
"""Few enough parameters to be calibrated in float32."""


def long_texts(_path: str) -> Sequence[int]:
    """Lengths of texts of which each fills a row, however few tokens a tokenizer makes of them."""
    return [20000] * 500


def estimated(
    recipe: Recipe, facts: ModelFacts, rates: Rates | None = None, **options: Any
) -> dict[str, Any]:
    options = {"lengths": long_texts, **options}
    stages = options.pop("stages", STAGES)
    found = efforts(
        recipe, facts, stages, snapshot=Snapshot(None, Path("build")), rates=rates, **options
    )
    return {stage.stage: stage for stage in found}


def test_the_sizes_of_8b_are_those_of_its_tensors() -> None:
    shape = shape_of(recipe_of(), facts_of("llama-3.1-8b"))
    # q and o 4096 x 4096, k and v 1024 x 4096, gate, up and down 14336 x 4096, two norms.
    assert shape.layer == 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 14336 * 4096 + 2 * 4096
    assert shape.largest == 14336 * 4096
    assert shape.parameters == 8_030_261_248
    assert shape.item == 2
    # In float32 up to 2 GiB of it, whatever the recipe's dtype is.
    small = replace(facts_of("llama-3.1-8b"), num_hidden_layers=1, vocab_size=1000)
    assert shape_of(recipe_of(), small).item == 4


def test_texts_are_counted_by_samples_length_and_what_the_file_has(tmp_path: Path) -> None:
    facts = facts_of("llama-3.1-8b")
    assert calibrated(recipe_of(), facts, None).tokens == 32 * 512
    # AWQ takes no more than 32; each text has half a row.
    many = {"calibration": {"text": "x.txt", "samples": 128, "sequence_length": 512}}
    assert calibrated(recipe_of(quantize=many), facts, [256] * 500).tokens == 32 * 256
    fp8 = recipe_of(quantize={"format": "fp8", **many})
    assert calibrated(fp8, facts, [256] * 500).tokens == 128 * 256
    assert calibrated(fp8, facts, [9000, 112]).tokens == 512 + 112
    file = tmp_path / "texts.txt"
    file.write_text("a" * 35 + "\n\n" + "b" * 70)
    assert TextLengths()(str(file)) == (11, 21)
    assert TextLengths()(str(tmp_path / "none.txt")) is None


def test_windows_overlap_by_half_and_short_texts_do_not() -> None:
    facts, recipe = facts_of("llama-3.1-8b"), recipe_of()
    # The first window scores 511 tokens and each later one 256: 1 + 78 windows of 512 and less.
    assert scored(recipe, facts, None, 20000).tokens == 20001 + 77 * 256
    short = scored(recipe, facts, [101] * 1000, 20000)
    assert (short.rows, short.tokens, short.longest) == (200, 200 * 101, 202)
    # 2^26 logits are 523 tokens of 128256: one window of 512.
    assert scored(recipe, facts, None, 20000).batch_tokens == 512


@pytest.mark.parametrize(
    ("section", "count"),
    [
        ({"format": "int4_awq"}, 1),
        ({"format": "int4_awq", "kv_cache": "int8"}, 2),
        ({"format": "int4_awq", "portable": True}, 1),
        ({"format": "int4_awq", "portable": True, "kv_cache": "int8"}, 3),
        ({"format": "int8_sq", "portable": True, "kv_cache": "int8"}, 2),
        ({"format": "fp8", "kv_cache": "fp8"}, 1),
        ({"format": "int4_gptq"}, 1),
        ({"format": "int4_gptq", "kv_cache": "int8"}, 2),
    ],
    ids=str,
)
def test_passes_that_round_have_hidden_states_of_their_own(
    section: dict[str, Any], count: int
) -> None:
    recipe = recipe_of(quantize=section, compile={"target": "tensorrt"})
    assert sets(recipe) == count


def test_passes_are_those_of_the_formats() -> None:
    def count(facts: ModelFacts, **sections: Any) -> float:
        recipe = recipe_of(**sections)
        return passes(recipe, shape_of(recipe, facts))

    large = facts_of("llama-3.1-8b")
    assert count(large) == 12
    # In float32 few rows are searched on between the passes.
    assert count(SMALL) == 2
    assert count(SMALL, model={"at_once": "model"}) == 12
    assert count(large, quantize={"format": "int8_sq"}) == 1
    assert count(large, quantize={"format": "int4_gptq"}) == 5
    assert count(large, quantize={"format": "nf4"}) == 0
    # Nothing is measured again where no range of activations is stored.
    assert count(large, quantize={"portable": True}) == 12
    assert count(large, quantize={"format": "int8_sq", "portable": True}) == 2


def test_memory_does_not_depend_on_depth_unless_the_model_is_whole() -> None:
    facts = facts_of("llama-3.1-8b")
    deep = replace(facts, num_hidden_layers=320)
    for name in ("quantize", "evaluate", "compile"):
        one, ten = (estimated(recipe_of(), each)[name].memory for each in (facts, deep))
        assert one == ten
    whole = estimated(recipe_of(model={"at_once": "model"}), facts)
    # 5.5 and 8.8 bytes for each of 8.03 billion parameters, and what there is beside them.
    assert whole["quantize"].memory.likely == pytest.approx(44.2e9, rel=0.05)
    assert whole["evaluate"].memory.likely == pytest.approx(70.7e9, rel=0.05)


def test_a_model_is_read_for_each_token_of_completions_unless_it_is_whole() -> None:
    layered, whole = (
        estimated(recipe_of(model={"at_once": way}), SMALL, FAST)["evaluate"].seconds
        for way in ("layer", "model")
    )
    # 248 million parameters for the first of 16 tokens, at 1.5 ns, in both models; then 6 of 12
    # layers are in 400 MiB, each of 15.2 million, and of 215 million that are multiplied the others
    # are read again.
    read = 0.248 + 15 * 0.248 * (1 - 6 * 0.0152 / 0.215)
    assert layered.computing - whole.computing == pytest.approx(2 * 1.5 * read, rel=0.02)
    # At 1 GB/s the 2 bytes of the source alone.
    assert layered.disk > 2 * read


def test_completions_take_what_stays_in_memory_for_them() -> None:
    def likely(layers: int) -> int:
        facts = replace(SMALL, num_hidden_layers=layers, vocab_size=1000)
        recipe = recipe_of(evaluate={"tokens": 100, "sequence_length": 100})
        found: int = estimated(recipe, facts)["evaluate"].memory.likely
        return found

    # Of layers of 60.8 MB 6 are in 400 MiB, however many there are, with a head of 4.1 MB; beside
    # them a layer of the other model. One is less than what is there while layers are compared:
    # three of them, and two copies of the largest linear.
    beside, layer, head = 420e6 + 150e6, 60.8256e6, 4 * 1000 * 1024
    assert likely(12) == likely(6) == pytest.approx(beside + 7 * layer + head)
    assert likely(1) == pytest.approx(beside + 3 * layer + 2 * 4 * 1024 * 4096)


@pytest.mark.parametrize(
    ("name", "format_", "rows", "length", "measured"),
    [
        ("llama-3.1-8b", "int4_awq", 8, 240, 2.07e9),
        ("llama-3.1-8b", "fp8", 8, 240, 1.61e9),
        ("llama-3.1-70b", "fp8", 8, 240, 4.73e9),
        ("llama-3.1-70b", "int4_awq", 3, 240, 5.48e9),
    ],
)
def test_quantizing_takes_what_one_layer_of_that_shape_took(
    name: str, format_: str, rows: int, length: int, measured: float
) -> None:
    """Peaks of single layers."""
    facts = facts_of(name)
    calibration = {"text": "x", "samples": rows, "sequence_length": length, "batch_size": 16}
    recipe = recipe_of(quantize={"format": format_, "calibration": calibration})
    found = estimated(recipe, facts)["quantize"].memory
    assert 0.95 * measured < found.likely < 1.25 * measured
    assert found.least < measured


def test_the_disk_of_8b_and_70b() -> None:
    eight = estimated(recipe_of(), facts_of("llama-3.1-8b"))
    # 2 bytes a parameter; 4.125 bits a weight (a scale of 16 bits for 128), two tables in 16 bit.
    assert eight["source"].disk.kept == 2 * 8_030_261_248
    tables = 2 * 128256 * 4096 * 2
    linears = 32 * (2 * 4096**2 + 2 * 1024 * 4096 + 3 * 14336 * 4096)
    assert eight["quantize"].disk.kept == pytest.approx(tables + linears * 4.125 / 8, rel=0.001)
    seventy = recipe_of(quantize={"format": "fp8"})
    found = estimated(seventy, facts_of("llama-3.1-70b"))
    tables = 2 * 128256 * 8192 * 2
    linears = 80 * (2 * 8192**2 + 2 * 1024 * 8192 + 3 * 28672 * 8192)
    assert found["quantize"].disk.kept == pytest.approx(tables + linears, rel=0.001)


def test_only_a_large_model_of_ones_own_is_not_written_again(tmp_path: Path) -> None:
    """What keeps one from that is in test_sharing.py."""
    model = tmp_path / "model"
    model.mkdir()
    own, hub = (Snapshot(directory, tmp_path / "build") for directory in (model, None))
    assert own.disk(5 * GIB).kept == 0
    assert own.disk(GIB // 2).kept == GIB // 2
    assert hub.disk(5 * GIB).kept == 5 * GIB
    assert {one.disk(size).least for one in (own, hub) for size in (GIB // 2, 5 * GIB)} == {0}


def test_the_states_of_all_walks_lie_on_the_disk_until_scoring_ends() -> None:
    recipe = recipe_of(evaluate={"tokens": 100_000})
    found = estimated(recipe, facts_of("llama-3.1-8b"), lengths=lambda _path: None)["evaluate"]
    # 100,001 tokens in windows of 512 by 256: 1 + 389 of them. Both models' states in float32, and
    # one group of 512 MiB that is being written.
    states = (100_001 + 389 * 256) * 4096 * 4
    assert found.disk.scratch == 2 * states + (512 << 20)


def test_a_search_has_two_checkpoints_on_the_disk_and_states_of_one() -> None:
    def written(tokens: int, **model: Any) -> tuple[int, int]:
        search = {"format": "int8_sq", "search": {"tokens": tokens}}
        found = estimated(recipe_of(quantize=search, model=model), facts_of("llama-3.1-8b"))
        return found["quantize"].disk.kept, found["quantize"].disk.scratch

    # 16,384 tokens in bfloat16, and the file that takes its place.
    checkpoint, scratch = written(1000)
    assert scratch == checkpoint + 2 * 16_384 * 4096 * 2
    # Both models' states in float32, and one group of 512 MiB that is being written.
    assert written(100_000)[1] == checkpoint + 2 * 100_000 * 4096 * 4 + (512 << 20)
    assert written(100_000, at_once="model") == (checkpoint, checkpoint)


def test_hours_are_operations_over_rates() -> None:
    facts = facts_of("llama-3.1-8b")
    found = estimated(recipe_of(quantize={"format": "int8_sq"}), facts, FAST)["quantize"].seconds
    # 16384 tokens through 6.98 billion weights at 4 TFLOP/s are 57 s; attention adds 2 x 4096 x 256
    # multiplications a layer and token: 0.55 s. The rest is the start, and packing.
    assert found.computing == pytest.approx(57.2 + 0.55 + 8 + 42, rel=0.02)
    # 16.06 GB are read at 1 GB/s, and 9.1 written at 0.5.
    assert found.disk == pytest.approx(16.06 + 2 * 9.08, rel=0.02)
    awq = estimated(recipe_of(), facts, FAST)["quantize"].seconds.computing
    assert awq > 12 * 57
    slow = replace(FAST, read=None, write=None)
    assert estimated(recipe_of(), facts, slow)["quantize"].seconds.disk is None
    # A GPU that was measured takes the work, unless the recipe wants the processor.
    cuda = replace(FAST, cuda=DeviceRates("GPU", {"float32": 50e12, "bfloat16": 400e12}, 2e12))
    faster = estimated(recipe_of(), facts, cuda)["quantize"].seconds.computing
    assert faster < awq / 5
    here = recipe_of(quantize={"device": "cpu"})
    assert estimated(here, facts, cuda)["quantize"].seconds.computing == awq


def test_a_search_on_few_rows_takes_their_products_and_the_squares_of_the_text() -> None:
    found = estimated(recipe_of(), SMALL, FAST)["quantize"].seconds
    # Two passes: 16,384 tokens through 182.5 million weights at 1 TFLOP/s, and 2 x 1,024 x 256
    # multiplications of attention a layer and token. Eleven products with 11.01 million weights of
    # a layer and 1,024 rows, and with 4.19 million and 4,096 rows. In float64, at half the speed,
    # the squares of three inputs of 1,024 features and one of 4,096. The weights rounded eleven
    # times, with 23 readings and writings in float32 at 100 GB/s. The start, and packing.
    wanted = 2 * (5.98 + 0.21) + 7.51 + 15.7 + 1.85 + 8 + 1.1
    assert found.computing == pytest.approx(wanted, rel=0.01)
    whole = estimated(recipe_of(model={"at_once": "model"}), SMALL, FAST)["quantize"].seconds
    assert whole.computing == pytest.approx(12 * (5.98 + 0.21) + 2 * 1.85 + 8 + 1.1, rel=0.01)


def _judged(
    recipe: Recipe,
    facts: ModelFacts,
    memory: int | None,
    free: int | None = None,
    **options: Any,
) -> tuple[UnsupportedError | None, list[Any]]:
    def estimate(other: Recipe) -> Sequence[StageEffort]:
        return tuple(estimated(other, facts, **options).values())

    machine, found = Machine(memory, free, None), estimate(recipe)
    return (
        refusal(recipe, found, machine, estimate),
        list(warnings(recipe, found, machine, estimate)),
    )


def test_a_machine_of_4_gb_refuses_a_large_batch_and_takes_the_smaller_one() -> None:
    facts = facts_of("llama-3.1-8b")
    large = {"text": "x", "samples": 128, "sequence_length": 4096, "batch_size": 64}
    recipe = recipe_of(quantize={"format": "fp8", "calibration": large}, evaluate={"tokens": 2000})
    error, _ = _judged(recipe, facts, 4 * GIB)
    assert error is not None
    assert error.exit_code == 3
    assert error.what.startswith("quantize does not fit into this machine's memory")
    # 128 x 4096 tokens are 4.3 GB of hidden states by themselves: no batch makes up for them.
    assert error.fix is not None
    assert "quantize.calibration.batch_size to 1 and quantize.calibration.s" in error.fix
    wide = {**large, "samples": 32}
    recipe = recipe_of(quantize={"format": "fp8", "calibration": wide}, evaluate={"tokens": 2000})
    error, _ = _judged(recipe, facts, 4 * GIB)
    assert error is not None
    assert error.fix is not None
    change = Change({"quantize.calibration.batch_size": int(error.fix.split()[3].rstrip(","))})
    assert error.fix.startswith(f"{change.words()}, which takes about ")
    assert _judged(change.applied(recipe), facts, 4 * GIB) == (None, [])
    # The smallest: twice that batch is too large.
    twice = {"quantize.calibration.batch_size": 2 * change.keys["quantize.calibration.batch_size"]}
    assert _judged(Change(twice).applied(recipe), facts, 4 * GIB) != (None, [])


def test_nothing_that_is_guessed_of_texts_is_a_reason_to_refuse() -> None:
    facts = facts_of("llama-3.1-8b")
    large = {"text": "x", "samples": 128, "sequence_length": 4096, "batch_size": 64}
    recipe = recipe_of(quantize={"format": "fp8", "calibration": large}, evaluate={"tokens": 2000})
    # Of a file that is too large to be read, or of short texts, nobody knows that they fill rows.
    for lengths in (lambda _path: None, lambda _path: [100] * 500):
        error, _ = _judged(recipe, facts, 4 * GIB, lengths=lengths)
        assert error is None
    # Nor is anything calibrated of a model that is quantized already.
    taken = replace(facts, quantized=StoredQuantization("awq", "W4A16_AWQ", group=128))
    assert estimated(recipe, taken)["quantize"].memory.least == 0
    texts = calibrated(recipe, facts, [1000] * 200)
    # 998 x 3.5 bytes are 436 tokens of 8 bytes: 128 x 436 are 14 rows of 3986 in one batch.
    assert (texts.sure, texts.sure_batch) == (14 * 3986, 14 * 3986)
    assert calibrated(recipe, facts, [20000] * 200).sure_batch == 64 * 4096
    assert scored(recipe, facts, [1000, 9000], 2000).sure_batch == 436
    assert scored(recipe, facts, None, 2000).sure_batch == 0


def test_what_a_gpu_holds_is_no_reason_to_refuse() -> None:
    facts = facts_of("llama-3.1-8b")
    whole = recipe_of(model={"at_once": "model"})
    assert _judged(whole, facts, 24 * GIB)[0] is not None
    assert _judged(whole, facts, 24 * GIB, gpu=True)[0] is None
    here = recipe_of(model={"at_once": "model"}, quantize={"device": "cpu"})
    assert _judged(here, facts, 24 * GIB, gpu=True)[0] is not None
    cuda = recipe_of(quantize={"device": "cuda"})
    # Hidden states of 32 x 512 tokens are in the machine's memory in any case.
    assert estimated(cuda, facts)["quantize"].memory.least == 300e6 + 32 * 512 * 4096 * 2
    assert estimated(cuda, facts)["evaluate"].memory.least == 300e6


def test_a_gpu_is_looked_for_among_device_files(tmp_path: Path) -> None:
    assert not may_have_gpu(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert may_have_gpu(tmp_path)


def test_what_a_gpu_takes_from_memory_takes_time() -> None:
    facts, recipe = facts_of("llama-3.1-8b"), recipe_of(quantize={"format": "int8_sq"})
    slow, none = (replace(FAST, cuda=replace(FAST.cpu, copies=copies)) for copies in (10e9, None))
    one, other = (estimated(recipe, facts, rates)["quantize"].seconds for rates in (slow, none))
    # 6.98 billion weights of 2 bytes, and 16384 x 4096 states there and back for 32 layers.
    moved = 2 * 6.98e9 + 32 * 2 * 2 * 16384 * 4096
    assert one.computing - other.computing == pytest.approx(moved / 10e9, rel=0.01)


def test_the_example_reads_no_text_of_the_folder_it_runs_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = example_peak(tmp_path)
    for name in ("calibration.jsonl", "heldout.jsonl"):
        (tmp_path / name).write_text('{"text": "short"}\n')
    assert example_peak(tmp_path) == before


def test_a_whole_model_is_refused_and_taken_by_layers() -> None:
    facts = facts_of("llama-3.1-8b")
    recipe = recipe_of(model={"at_once": "model"})
    error, _ = _judged(recipe, facts, 24 * GIB)
    assert error is not None
    assert error.fix is not None
    assert error.fix.startswith("Set model.at_once to layer, which takes about")
    assert _judged(Change({"model.at_once": "layer"}).applied(recipe), facts, 24 * GIB) == (
        None,
        [],
    )


def test_what_may_fit_is_a_warning_and_what_nobody_knows_is_nothing() -> None:
    facts = facts_of("llama-3.1-8b")
    recipe = recipe_of(evaluate={"sequence_length": 2048})
    peak = estimated(recipe, facts)["evaluate"].memory
    error, said = _judged(recipe, facts, peak.likely - 1)
    assert error is None
    (finding,) = said
    assert finding.key == "evaluate.sequence_length"
    assert "Set evaluate.sequence_length to 1024" in finding.remedy
    assert _judged(recipe, facts, None) == (None, [])
    error, _ = _judged(recipe, facts, peak.least - 1)
    assert error is not None


def test_where_no_change_helps_a_machine_is_named() -> None:
    facts = facts_of("llama-3.1-70b")
    recipe = recipe_of(quantize={"format": "bfloat16", "calibration": None})
    error, _ = _judged(recipe, facts, GIB)
    assert error is not None
    assert error.fix is not None
    assert error.fix.startswith("Use a machine with ")
    stage = estimated(recipe, facts)["quantize"]
    assert smallest(recipe, stage, GIB, lambda _other: ()) is None


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-7b"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("batch", [1, 16])
def test_what_is_said_to_fit_does(name: str, share: float, batch: int) -> None:
    """A remedy is of the stage that it is said of, and ends what it is said against."""
    facts = facts_of(name)
    calibration = {"text": "none.jsonl", "samples": 32, "sequence_length": 512}
    recipe = recipe_of(
        quantize={"calibration": calibration | {"batch_size": batch}},
        evaluate={"sequence_length": 1024},
    )
    needs = {stage: one.memory.likely for stage, one in estimated(recipe, facts).items()}
    memory = round(share * max(needs["quantize"], needs["evaluate"]))
    _, said = _judged(recipe, facts, memory)
    assert said or share < 0.9
    for finding in said:
        stage = finding.what.partition(" ")[0]
        if not finding.remedy.startswith("Set "):
            assert finding.remedy.startswith("Use a machine with ")
            continue
        words = finding.remedy.removeprefix("Set ").partition(", which")[0].split(" and ")
        change = Change({key: int(value) for key, value in (word.split(" to ") for word in words)})
        assert ("quantize" in change.first) == (stage == "quantize")
        assert estimated(change.applied(recipe), facts)[stage].memory.likely <= memory
        assert change.keys.get("quantize.calibration.batch_size") != batch


def test_a_full_disk_is_refused_with_what_is_missing() -> None:
    facts = facts_of("llama-3.1-8b")
    error, _ = _judged(recipe_of(), facts, None, 5 * GIB)
    assert error is not None
    # 5.3 GiB of checkpoint.
    assert "has 5.0 GiB free, and the run writes 5.3 GiB at least" in error.what
    assert error.why == "quantize 5.3 GiB"
    assert "Free 318.4 MiB there" in str(error)
    # 15.0 GiB of source, which may be in the Hub's cache; 5.3 of engine, about.
    error, said = _judged(recipe_of(), facts, None, 10 * GIB)
    assert error is None
    assert "up to 30.9 GiB" in said[0].what


def test_work_that_an_earlier_run_left_is_not_written_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts, build = facts_of("llama-3.1-8b"), BuildDir(tmp_path)
    recipe = recipe_of(model={"source": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    lines = [PlannedStage(quantize.STAGE, "run", key="k")]
    monkeypatch.setattr(planned, "free", lambda _build: 5 * GIB)
    assert effort_left(recipe, facts, build, lines).refusal
    left = build.store.unfinished.path("quantize", "k")
    left.mkdir(parents=True)
    with (left / "rank0.safetensors").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 400 << 20)
    effort = effort_left(recipe, facts, build, lines)
    assert effort.refusal is None
    checkpoint = estimated(recipe, facts)["quantize"].disk
    assert effort.stages[0].disk.kept == pytest.approx(checkpoint.kept - (400 << 20), abs=1 << 20)
    # What is more than the checkpoint are hidden states, of those that are kept beside it.
    more = checkpoint.without(checkpoint.kept + 1000)
    assert (more.kept, more.least, more.scratch) == (0, 0, checkpoint.scratch - 1000)


def test_plan_prints_a_row_for_each_stage_and_fits_80_columns() -> None:
    facts = facts_of("llama-3.1-70b")
    found = tuple(estimated(recipe_of(), facts, FAST).values())
    lines = list(effort_lines(found, Machine(24 * GIB, 80 * GIB, FAST)))
    assert lines[0] == (
        "about what it takes on this machine (2 CPUs, 24.0 GiB of memory, 80.0 GiB of disk):"
    )
    assert [line.split()[0] for line in lines[2:]] == [*STAGES, "in"]
    assert {len(line) for line in lines[1:]} == {50}
    assert list(effort_lines((), Machine(None, None, None))) == []
    unknown = [replace(stage, seconds=None) for stage in found]
    assert "doctor --measure" in list(effort_lines(unknown, Machine(None, None, None)))[-1]
    assert Seconds(2.0, None).all == 2.0


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model of 8B's sizes without weights, on a machine with 3 GiB of memory."""
    monkeypatch.setattr(planned, "whole_memory", lambda: 3 * GIB)
    model = tmp_path / "model"
    model.mkdir()
    config = (PROJECT / "tests" / "data" / "llama-3.1-8b.json").read_text()
    (model / "config.json").write_text(config)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "%s"}\n' % ("word " * 4000) * 64)
    return tmp_path


def _on(folder: Path, batch: int) -> Recipe:
    text = str(folder / "text.jsonl")
    calibration = {"text": text, "samples": 32, "sequence_length": 2048, "batch_size": batch}
    return Recipe.model_validate(
        {
            "name": "r",
            "model": {"source": str(folder / "model"), "dtype": "bfloat16"},
            "quantize": {"format": "int8_sq", "calibration": calibration},
            "evaluate": None,
            "compile": {"max_seq_len": 512, "max_batch_size": 1, "max_input_len": 384},
        }
    )


def test_run_refuses_before_any_work(small_machine: Path) -> None:
    build = small_machine / "build"
    with pytest.raises(UnsupportedError, match=r"quantize does not fit .*batch_size to \d+"):
        api.run(_on(small_machine, 32), build)
    assert not build.exists()
    # Nothing of it stands in the way of the source alone.
    with pytest.raises(SourceError, match=r"no \.?safetensors|safetensors"):
        api.run(_on(small_machine, 32), build, until="source")


def test_what_is_no_command_of_its_own_refuses_too(small_machine: Path) -> None:
    recipe, build = _on(small_machine, 32), BuildDir(small_machine / "build")
    with pytest.raises(UnsupportedError, match="quantize does not fit"):
        run_recipe(recipe, build, Silent(), past_checks=True, without=SERVED)
    assert not build.root.exists()


def test_plan_says_it_and_ends_with_3(small_machine: Path) -> None:
    found = api.plan(_on(small_machine, 32), small_machine / "build")
    assert found.exit_code == 3
    assert isinstance(found.obstacle, UnsupportedError)
    assert found.effort is not None
    told = json.loads(json.dumps(found.effort.as_dict()))
    assert [row["stage"] for row in told["stages"]] == ["source", "quantize", "compile"]
    assert told["stages"][1]["memory"]["least"] > 3 * GIB
    assert told["machine"]["memory"] == 3 * GIB
    fitting = api.plan(_on(small_machine, 1), small_machine / "build")
    assert fitting.exit_code == 0

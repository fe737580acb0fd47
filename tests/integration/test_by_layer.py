"""Evaluation layer by layer writes the bytes of evaluation with both models in memory."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from pipeline.errors import StageError
from pipeline.evaluation import lengths, scoring
from pipeline.evaluation.lengths import new_tokens
from pipeline.evaluation.scoring import TokenScores, compare, scorer_of
from pipeline.evaluation.windows import Window
from pipeline.layers import blocks, parts, state, walk
from pipeline.layers.parts import HeadInBlocks
from pipeline.layers.walk import Walker
from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import layer_parameters
from pipeline.progress import Progress, Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import by_layer, load_reference
from pipeline.reference.activations import ActivationWatch
from pipeline.reference.by_layer import checkpoint_by_layer, source_by_layer
from pipeline.reference.source import load_source
from pipeline.stages.base import StageContext
from pipeline.stages.compared import open_pair
from pipeline.stages.evaluate import RESULT_NAME, STAGE
from pipeline.stages.scored import MOVED_SCALES
from pipeline.store.artifact import Artifact
from tests import foreign_folders as foreign
from tests.conftest import DEMO_MODEL, PROJECT, SHARED_MODELS
from tests.integration.quantize_support import (
    ARCHITECTURES,
    FORMATS,
    VOCAB,
    calibration_words,
    matrix_recipe,
    recipe,
    run_stage,
    write_source,
)
from tests.unit.checkpoint.drawn import drawn_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions of a few tokens."""
    monkeypatch.setattr(lengths, "NEW_TOKENS", 4)


@pytest.fixture(params=["kept", "read again", "in blocks"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether so small a model stays in memory, and is multiplied some rows at a time."""
    if request.param != "kept":
        monkeypatch.setattr(by_layer, "KEPT_BYTES", 0)
        # One layer of a few, while completions are written.
        monkeypatch.setattr(by_layer, "OFTEN_BYTES", 3 << 20)
    if request.param == "in blocks":
        monkeypatch.setattr(by_layer, "OFTEN_BYTES", 0)
        monkeypatch.setattr(blocks, "BLOCK_WEIGHTS", 128 * 256)


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def evaluated(
    settings: Recipe,
    source: Path,
    checkpoint: Path,
    output: Path,
    at_once: str,
    *,
    unfinished: Path | None = None,
    facts: dict[str, Any] | None = None,
    progress: Progress | None = None,
    **evaluate: Any,
) -> bytes:
    """What the stage writes."""
    text = source / "heldout.txt"
    text.write_text(calibration_words())
    data = settings.model_dump(by_alias=True)
    data["model"]["at_once"] = at_once
    data["evaluate"] = {"tokens": 300, "sequence_length": 20, "text": str(text)} | evaluate
    inputs = {
        "source": Artifact("source", "key", "digest", source, {}),
        "quantize": Artifact("quantize", "key", "digest", checkpoint, facts or {}),
    }
    output.mkdir()
    own = Recipe.model_validate(data)
    STAGE.run(StageContext(own, inputs, output, progress or Silent(), unfinished=unfinished))
    return (output / RESULT_NAME).read_bytes()


def assert_same(settings: Recipe, source: Path, folder: Path, **options: Any) -> bytes:
    run_stage(settings, source, folder / "checkpoint")
    whole, layered = (
        evaluated(settings, source, folder / "checkpoint", folder / name, name, **options)
        for name in ("model", "layer")
    )
    assert whole == layered
    return layered


@pytest.mark.usefixtures("_short")
def test_ranks_a_kv_cache_and_rounded_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source("Qwen2", tmp_path / "source")
    # Several batches, so that the order of what is seen counts.
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 100)
    settings = matrix_recipe(source, "int8_sq", 2, 2)
    written = assert_same(settings, source, tmp_path, dtype="model")
    assert json.loads(written)["activations"]["rounded"]
    monkeypatch.setattr(by_layer, "KEPT_BYTES", 0)
    monkeypatch.setattr(by_layer, "OFTEN_BYTES", 0)
    again = evaluated(
        settings, source, tmp_path / "checkpoint", tmp_path / "again", "layer", dtype="model"
    )
    assert again == written


def assert_same_of_trained(model: Path, format_: str, folder: Path, **evaluate: Any) -> bytes:
    """Of a copy of a model, on texts that it was not trained on."""
    source = folder / "source"
    shutil.copytree(model, source)
    text = str(PROJECT / "examples" / "tiny_llama" / "data" / "heldout.jsonl")
    return assert_same(recipe(source, format=format_), source, folder, text=text, **evaluate)


@pytest.mark.usefixtures("_short")
def test_the_demo_has_the_figures_of_the_whole_model(tmp_path: Path) -> None:
    written = assert_same_of_trained(DEMO_MODEL, "int8_wo", tmp_path, tokens=80)
    # 2,048 words: one that knows nothing has as large a perplexity.
    assert json.loads(written)["perplexity"]["value"] < 100


@pytest.mark.proof
@pytest.mark.parametrize("name", ["int4_awq", "int8_sq"])
@pytest.mark.skipif(
    not (SHARED_MODELS / "stories260K-h128").is_dir(), reason="the shared model is not here"
)
def test_a_trained_model_has_the_figures_of_the_whole_model(name: str, tmp_path: Path) -> None:
    model = SHARED_MODELS / "stories260K-h128"
    assert_same_of_trained(model, name, tmp_path, tokens=2000, sequence_length=128)


def test_no_file_stays_open_and_a_full_device_is_explained(tmp_path: Path) -> None:
    source = write_source("Llama", tmp_path / "source")
    checkpoint = drawn_checkpoint(tmp_path / "checkpoint", "NO_QUANT", tp=2)
    context = StageContext(recipe(source, format="float16"), {}, tmp_path, Silent())

    def used() -> int:
        with open_pair(context, source, checkpoint, unfinished=None) as pair:
            for model in (pair.source, pair.written):
                list(model.logits([torch.tensor([[1, 2, 3]])]))
            return len(list(Path("/proc/self/fd").iterdir()))

    used()  # what is imported may open files of its own
    gc.collect()
    gc.disable()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert used() == before + 3, "a shard and two ranks"
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        gc.enable()
    with (
        pytest.raises(
            StageError, match=r"ran out during the measurement.*tried.* set quantize\.device"
        ),
        open_pair(context, source, checkpoint, unfinished=None),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory: tried to allocate 2 GiB")
    with (
        pytest.raises(StageError, match=r"ran out during the measurement\. You tried to allocate"),
        open_pair(context, source, checkpoint, unfinished=None),
    ):
        torch.empty(1 << 50)


def test_what_is_remembered_of_a_shape_counts_with_its_rotary_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_source("Llama", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    hidden = torch.zeros(1, 100, config["hidden_size"])
    with closing(source_by_layer(folder, CPU)) as source, torch.inference_mode():
        source.part(1).run(hidden)
        (found,) = source._beside.values()
        leaves = pytree.tree_leaves(found)
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        # Cosines and sines of each position, for each feature of a head.
        assert size >= 2 * 4 * 100 * config["hidden_size"] // config["num_attention_heads"]
        for room, kept in ((size - 1, 0), (size, 1)):
            source._beside.clear()
            monkeypatch.setattr(by_layer, "SHAPE_BYTES", room)
            source.part(1).run(hidden)
            assert len(source._beside) == kept


def test_pages_of_a_head_and_an_embedding_are_let_go_of(tmp_path: Path) -> None:
    checkpoint = drawn_checkpoint(tmp_path / "checkpoint", "NO_QUANT", vocab_size=4096)
    parts = checkpoint_by_layer(checkpoint, CPU)

    def resident() -> int:
        """KiB of the mapped file."""
        lines = iter(Path("/proc/self/smaps").read_text("utf-8").splitlines())
        next(line for line in lines if line.endswith(f"{checkpoint}/rank0.safetensors"))
        return int(next(line for line in lines if line.startswith("Rss:")).split()[1])

    found = []
    for number, given in ((0, torch.arange(4096)[None]), (3, torch.randn(1, 2, 256))):
        parts.part(number).run(given)
        found.append(resident())
    assert max(found) < 256, "KiB; each of them has 2048"


@pytest.mark.usefixtures("_short")
def test_a_killed_run_goes_on_at_its_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended again and again, and what is measured on the way is not lost."""
    source = write_source("Llama", tmp_path / "source")
    settings = recipe(source, format="float16")
    run_stage(settings, source, tmp_path / "checkpoint")
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 100)
    expected = evaluated(settings, source, tmp_path / "checkpoint", tmp_path / "once", "layer")
    monkeypatch.setattr(state, "INTERVAL_S", 0.0)
    monkeypatch.setattr(state, "WORK_PER_SAVE", 0)
    passes, ends = [0], itertools.count(1)
    own: Any = Walker._pass

    def ended(self: Walker, number: int, hidden: list[torch.Tensor]) -> None:
        passes[0] += 1
        if passes[0] % 9 == 0:
            raise KeyboardInterrupt
        own(self, number, hidden)

    monkeypatch.setattr(Walker, "_pass", ended)
    monkeypatch.setattr(walk, "REPORTED_TOKENS", 0)
    unfinished, found, told = tmp_path / "unfinished", None, Notes()
    unfinished.mkdir()
    while found is None:
        try:
            output = tmp_path / f"run{next(ends)}"
            found = evaluated(
                settings,
                source,
                tmp_path / "checkpoint",
                output,
                "layer",
                unfinished=unfinished,
                progress=told,
            )
        except KeyboardInterrupt:
            assert passes[0] < 100, "nothing was kept"
    assert found == expected
    assert "computing the source: an earlier run ended after layer 2 of 2" in told.notes
    assert next(ends) > 3


@pytest.mark.usefixtures("_short")
def test_texts_that_are_longer_than_the_model_are_cut_and_that_is_told(tmp_path: Path) -> None:
    source, told = write_source("Llama", tmp_path / "source"), Notes()
    run_stage(recipe(source, format="float16"), source, tmp_path / "checkpoint")
    evaluated(
        recipe(source, format="float16"),
        source,
        tmp_path / "checkpoint",
        tmp_path / "evaluated",
        "layer",
        progress=told,
        sequence_length=600,
    )
    assert "windows are of 256 tokens, not 600: the model has no more positions" in told.notes


@pytest.mark.parametrize("which", ["source", "checkpoint"])
def test_weights_are_multiplied_while_they_are_read_for_walk_after_walk(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are those of a whole model of transformers, asked in the same context."""
    folder = source = write_source("Qwen2", tmp_path / "source")
    monkeypatch.setattr(by_layer, "KEPT_BYTES", 0)
    # One layer, and not another one.
    layer = 4 * layer_parameters(ModelFacts.from_directory(source))
    monkeypatch.setattr(by_layer, "OFTEN_BYTES", layer)
    monkeypatch.setattr(blocks, "BLOCK_WEIGHTS", 128 * 256)
    by_parts: Any
    load: Any
    by_parts, load = source_by_layer, load_source
    if which == "checkpoint":
        by_parts, load, folder = checkpoint_by_layer, load_reference, tmp_path / "checkpoint"
        run_stage(recipe(source, format="int4_awq"), source, folder)
    whole = scorer_of(load(folder), CPU)
    texts = [torch.randint(0, VOCAB, (2, length)) for length in (5, 6, 1, 7)]
    with closing(by_parts(folder, CPU)) as opened:
        walker = Walker(opened, which)
        with scoring.often(walker):
            found = [next(walker.logits([text])) for text in texts]
            kept, part, last = (opened.part(n) for n in (1, 2, opened.layers + 1))
            linears: Any = [
                kept.modules["model.layers.0.mlp.down_proj"],
                part.modules["model.layers.1.mlp.down_proj"],
                last.modules["lm_head"],
            ]
            assert [linear.weight.is_meta for linear in linears] == [False, True, True]
            assert opened.part(1) is kept
            watch = ActivationWatch("float16")
            with torch.inference_mode(), watch.watching(last):
                watch.begin(0)
                last.run(torch.ones(1, 2, 256))
            ((_, seen),) = watch.seen()
            assert [name for name, *_ in seen] == ["model.norm", "lm_head"]
        with pytest.raises(RuntimeError, match="outside of InBlocks"):
            part.run(torch.zeros(1, 2, 256))
        assert opened.part(1) is not kept
        assert opened.part(1) is not opened.part(1)
        behind = next(walker.logits([texts[0]]))
    with scoring.often(whole):
        expected = list(map(whole, texts))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(behind, whole(texts[0]))


def test_texts_that_are_too_many_go_in_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source("Qwen3", tmp_path / "source")
    model = load_source(source)
    batches = [torch.randint(0, VOCAB, (2, length)) for length in (30, 20, 20, 7, 1)]
    expected = list(map(scorer_of(model, CPU), batches))
    monkeypatch.setattr(walk, "HIDDEN_BYTES", 80 * 256 * 4)
    walker, walks = Walker(source_by_layer(source, CPU), "source"), []
    own: Any = walker._behind_layers
    monkeypatch.setattr(
        walker, "_behind_layers", lambda group: walks.append(len(group)) or own(group)
    )
    found = list(walker.logits(batches))
    assert walks == [1, 2, 2]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_first_of_equal_activations_is_that_of_a_whole_model() -> None:
    """Layer by layer the second batch's is seen first; in a whole model it comes last."""

    class FirstRMSNorm(torch.nn.Identity):
        """Gives what it gets."""

    class SecondRMSNorm(torch.nn.Identity):
        """Gives what it gets."""

    first, second = FirstRMSNorm(), SecondRMSNorm()
    watch = ActivationWatch("float16")
    loud, calm = torch.tensor([[9.0]]), torch.tensor([[1.0]])
    # What each module sees of both batches.
    for module, seen in (("first", (calm, loud)), ("second", (loud, calm))):
        norm = first if module == "first" else second
        part = parts.Part(0, {module: norm}, norm)
        with watch.watching(part):
            for batch, values in enumerate(seen):
                watch.begin(batch)
                part.run(values)
    again = ActivationWatch("float16")
    again.restore(json.loads(json.dumps(watch.seen())))
    for one in (watch, again):
        one.end(0)
        one.end(1)
        assert (one.found().largest, one.found().where) == (9.0, "second")


@pytest.mark.parametrize("rows", [2, 3, 50])
def test_scores_do_not_depend_on_how_many_are_compared_at_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    tables = [torch.randn(VOCAB, VOCAB, generator=generator) * 3 for _ in range(2)]
    one, other = (lambda ids, table=table: table[ids] for table in tables)
    windows = [Window(n, list(range(n, n + 2 + 7 * n)), 1 + n // 2) for n in range(8)]

    def scores() -> TokenScores:
        return TokenScores.joined(compare(one, other, windows, VOCAB))

    expected = scores()
    monkeypatch.setattr(scoring, "PIECE_LOGITS", rows * VOCAB)
    found = scores()
    for a, b in zip(expected._arrays(), found._arrays(), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(1, [1]), (2, [2]), (3, [3]), (4, [2, 2]), (5, [2, 3]), (6, [2, 2, 2])]
)
def test_no_token_is_compared_alone(tokens: int, sizes: Sequence[int]) -> None:
    assert scoring.piece_sizes(tokens, scoring.PIECE_LOGITS) == sizes


def test_a_head_in_blocks_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(2048, 128, generator=torch.Generator().manual_seed(3))
    asked: list[int] = []

    def rows(some: slice) -> torch.Tensor:
        asked.append(some.stop - some.start)
        return weight[some]

    monkeypatch.setattr(parts, "HEAD_BYTES", 700 * 128 * 4)
    head = HeadInBlocks(rows, 2048, 128)
    for shape in ((1, 1), (2, 5), (3, 40)):
        hidden = torch.randn(*shape, 128)
        assert torch.equal(head(hidden), torch.nn.functional.linear(hidden, weight))
    # One vector is multiplied by the whole.
    assert asked == [2048, 704, 704, 640, 704, 704, 640]


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [(3_700_000, 32), (125_000_000, 32), (250_000_000, 16), (8_000_000_000, 8)],
)
def test_large_models_write_fewer_tokens(parameters: int, tokens: int) -> None:
    assert new_tokens(parameters) == tokens


@pytest.mark.proof
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.usefixtures("kept")
def test_every_format_and_architecture(
    architecture: str, name: str, tp: int, pp: int, tmp_path: Path
) -> None:
    source = write_source(architecture, tmp_path / "source")
    assert_same(matrix_recipe(source, name, tp, pp), source, tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.usefixtures("kept")
def test_activations_that_are_rounded(dtype: str, tmp_path: Path) -> None:
    source = write_source("Llama", tmp_path / "source")
    assert_same(recipe(source, format="int4_awq", dtype=dtype), source, tmp_path, dtype="model")


@pytest.mark.proof
@pytest.mark.parametrize(
    "make",
    [
        *(foreign.gptq, foreign.awq, foreign.compressed_int4, foreign.compressed_in_order),
        *(foreign.compressed_int8, foreign.nf4, foreign.llm_int8),
    ],
)
@pytest.mark.usefixtures("kept")
def test_a_source_that_is_quantized_already(make: Any, tmp_path: Path) -> None:
    made = make(tmp_path / "source").path
    batches = [torch.randint(0, foreign.VOCAB, (2, length)) for length in (30, 7)]
    expected = list(map(scorer_of(load_source(made), CPU), batches))
    found = list(Walker(source_by_layer(made, CPU), "source").logits(batches))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.proof
@pytest.mark.usefixtures("kept")
def test_a_portable_checkpoint(tmp_path: Path) -> None:
    source = write_source("Llama", tmp_path / "source")
    settings = recipe(source, format="int4_awq", portable=True)
    run_stage(settings, source, tmp_path / "checkpoint")
    whole, layered = (
        evaluated(
            settings,
            source,
            tmp_path / "checkpoint",
            tmp_path / name,
            name,
            facts={MOVED_SCALES: True},
        )
        for name in ("model", "layer")
    )
    assert whole == layered
    reference: Any = load_reference(tmp_path / "checkpoint")
    norm = reference.model.layers[0].input_layernorm.weight
    own: Any = checkpoint_by_layer(tmp_path / "checkpoint", CPU)
    assert torch.equal(own.part(1).modules["model.layers.0.input_layernorm"].weight, norm)

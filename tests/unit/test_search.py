"""What a search tries, on which text, and how it chooses."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError, StageError, UnsupportedError, UsageError
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.preflight.candidates import candidates
from pipeline.preflight.model_checks import check_model
from pipeline.progress import Silent
from pipeline.quantize import search
from pipeline.quantize.search import (
    Found,
    Unfinished,
    _Tried,
    choose,
    held_out,
    scored_windows,
    with_value,
)
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.stages import quantize
from tests.unit.test_formats import LLAMA2_7B


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(
        "schema: 1\nname: t\nmodel: {source: m}\n"
        "quantize:\n  format: int8_sq\n  calibration: {text: c.txt}\n  search: {}\n"
    )
    return load_recipe(path, overrides)


def facts(folder: Path, **changes: Any) -> ModelFacts:
    (folder / "config.json").write_text(json.dumps(LLAMA2_7B | changes))
    return ModelFacts.from_directory(folder)


class Words:
    """A tokenizer of words, with a token in front."""

    def encode(self, text: str, /, *, add_special_tokens: bool | str = "auto") -> list[int]:
        assert add_special_tokens == "auto"
        return [0, *range(1, len(text.split()) + 1)]


def test_the_default_alpha_is_that_of_tensorrt_llms_examples(tmp_path: Path) -> None:
    plain = recipe(tmp_path, "quantize.search=null")
    assert plain.quantize.smoothquant_alpha == 0.5
    assert plain.quantize.search is None


def test_alphas_are_swept_as_documented(tmp_path: Path) -> None:
    model = facts(tmp_path)
    assert candidates(recipe(tmp_path), model) == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    some = recipe(tmp_path, "quantize.search.candidates=[0.9, 0, 0.25]")
    assert candidates(some, model) == (0.0, 0.25, 0.9)


@pytest.mark.parametrize(
    ("intermediate_size", "tp", "expected"),
    # 11008 is 86 x 128 and 172 x 64, 10944 is 171 x 64.
    [(11008, 1, (64, 128)), (11008, 4, (64,)), (10944, 1, (64,)), (10912, 1, ())],
)
def test_group_sizes_are_those_that_the_shapes_allow(
    intermediate_size: int, tp: int, expected: tuple[int, ...], tmp_path: Path
) -> None:
    model = facts(tmp_path, intermediate_size=intermediate_size)
    awq = ["quantize.format=int4_awq", f"compile.tensor_parallel={tp}", "compile.target=tensorrt"]
    found = recipe(tmp_path, *awq)
    assert candidates(found, model) == expected
    assert all(isinstance(size, int) for size in candidates(found, model))
    if expected:
        # Also where quantize.group_size, which is not read, would not fit.
        check_model(found, tmp_path)
    else:
        with pytest.raises(
            UnsupportedError,
            match=r"\(quantize\.search\): out_features 10912 of mlp\.fc is not a multiple of 64.*"
            r"Set quantize\.format to int8_sq, fp8 or float16 and leave quantize\.search out\.",
        ):
            check_model(found, tmp_path)


def test_a_group_size_that_does_not_fit_is_refused_where_it_is_named(tmp_path: Path) -> None:
    facts(tmp_path, intermediate_size=10944)
    awq = ["quantize.format=int4_awq", "quantize.search.candidates=[128, 64]"]
    with pytest.raises(
        UnsupportedError,
        match=r"\(quantize\.search\.candidates\): out_features 10944 of mlp\.fc is not a multiple "
        r"of 128\..*Leave 128 out of it",
    ):
        check_model(recipe(tmp_path, *awq), tmp_path)


@pytest.mark.parametrize("name", [row.name for row in FORMATS.values() if not row.searched])
def test_a_format_with_nothing_to_search_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=f"Format {name} has nothing to search; search chooses smoothquant_alpha of int8_sq, "
        "group_size of int4_awq or int4_gptq. Remove quantize.search",
    ):
        recipe(tmp_path, f"quantize.format={name}")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("int8_sq", "[0.5, 1.5]", "has 1.5, but smoothquant_alpha of int8_sq is a number from 0"),
        ("int4_awq", "[64, 96]", "has 96, but group_size of int4_awq is 64 or 128"),
        ("int8_sq", "[0.5, 0.5]", "names a value twice"),
        ("int8_sq", "[]", "at least 1 item"),
        ("int8_sq", "[-0.5]", "greater than or equal to 0"),
    ],
)
def test_candidates_that_the_key_cannot_have_are_refused(
    name: str, given: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=expected):
        recipe(tmp_path, f"quantize.format={name}", f"quantize.search.candidates={given}")


def test_the_key_has_the_search_instead_of_what_it_chooses(tmp_path: Path) -> None:
    def section(*settings: str) -> dict[str, Any]:
        return quantize.section(recipe(tmp_path, *settings))

    found = section()
    assert "smoothquant_alpha" not in found
    assert found == section("quantize.smoothquant_alpha=0.9")
    assert found == section("quantize.search.candidates=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5]")
    others = [
        section("quantize.search.tokens=100"),
        section("quantize.search.candidates=[0.5]"),
        section("quantize.search=null"),
        section("quantize.format=int4_awq"),
    ]
    assert found not in others
    assert "group_size" not in others[-1]
    chosen = with_value(recipe(tmp_path), 0.7)
    by_hand = recipe(tmp_path, "quantize.search=null", "quantize.smoothquant_alpha=0.7")
    assert quantize.section(chosen) == quantize.section(by_hand)


def test_what_is_calibrated_on_is_not_scored() -> None:
    texts = ["a", "b", "c", "a", "d", "e", "f", "g"]
    found = held_out(texts, ["a", "d"], seed=1)
    assert sorted(found) == ["b", "c", "e", "f", "g"]
    assert found == held_out(texts, ["a", "d"], seed=1)
    assert len({tuple(held_out(texts, [], seed)) for seed in range(5)}) > 1


def test_the_beginning_of_each_text_is_scored_up_to_the_budget(tmp_path: Path) -> None:
    texts = ["one two three four five six", "", "one two", "one two three"]
    # The first token of each window is context alone: 4 + 2 + 1 predictions.
    windows = scored_windows(texts, Words(), 5, 7, tmp_path)
    assert windows == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1]]


def test_too_little_text_names_the_file_and_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"stories\.txt: the file has 5 tokens that calibration does not use, and "
        r"quantize\.search\.tokens asks for 6\..*lower quantize\.calibration\.samples",
    ):
        scored_windows(["one two three", "one two"], Words(), 9, 6, tmp_path / "stories.txt")


def test_the_smallest_divergence_is_kept_whole_and_alone(tmp_path: Path) -> None:
    divergences = {0.5: 0.3, 0.6: math.nan, 0.7: 0.1, 0.8: 0.1, 0.9: math.inf}

    def write(value: float, folder: Path) -> None:
        assert not any(folder.iterdir())
        (folder / "config.json").write_text(f'{{"value": {value}}}')
        (folder / "rank0.safetensors").write_text(str(value))

    def score(folder: Path) -> float:
        return divergences[json.loads((folder / "config.json").read_text())["value"]]

    def run(*values: float) -> Found:
        output = tmp_path / str(len(values))
        output.mkdir()
        return choose(
            "smoothquant_alpha",
            values,
            write=write,
            score=score,
            output=output,
            progress=Silent(),
            tokens=9,
        )

    assert run(*divergences).as_dict() == {
        "parameter": "smoothquant_alpha",
        "chosen": 0.7,
        "curve": [
            {"value": 0.5, "kl_divergence": 0.3},
            {"value": 0.6, "kl_divergence": None},
            {"value": 0.7, "kl_divergence": 0.1},
            {"value": 0.8, "kl_divergence": 0.1},
            {"value": 0.9, "kl_divergence": None},
        ],
        "tokens": 9,
    }
    found = {path.name: path.read_text() for path in (tmp_path / "5").iterdir()}
    assert found == {"config.json": '{"value": 0.7}', "rank0.safetensors": "0.7"}
    with pytest.raises(StageError, match=r"no candidate of quantize\.search gives finite numbers"):
        run(0.6, 0.9)


DIVERGENCES = {0.5: 0.3, 0.6: 0.1, 0.7: math.nan, 0.8: 0.2, 0.9: 0.05}


def chosen(
    output: Path,
    kept: Unfinished,
    write: Callable[[float, Path], None],
    score: Callable[[Path], float],
) -> Found:
    """Searches through all of ``DIVERGENCES``."""
    output.mkdir(parents=True)
    return choose(
        "smoothquant_alpha",
        tuple(DIVERGENCES),
        write=write,
        score=score,
        output=output,
        progress=Silent(),
        tokens=9,
        unfinished=kept,
    )


@pytest.mark.parametrize("end", range(5))
@pytest.mark.parametrize("where", ["write", "score"])
def test_what_was_tried_is_not_tried_again(end: int, where: str, tmp_path: Path) -> None:
    tried, scored, ends = list[float](), list[float](), [end]

    def interrupt(at: str) -> None:
        if at == where and len(tried) - 1 in ends:
            ends.clear()
            raise KeyboardInterrupt

    def write(value: float, folder: Path) -> None:
        tried.append(value)
        (folder / "config.json").write_text(f'{{"value": {value}}}')
        interrupt("write")

    def score(folder: Path) -> float:
        scored.append(json.loads((folder / "config.json").read_text())["value"])
        (folder / "part").touch()
        interrupt("score")
        return DIVERGENCES[json.loads((folder / "config.json").read_text())["value"]]

    def run(name: str, machine: str = "a") -> Found:
        kept = Unfinished(tmp_path / "kept", {"machine": machine})
        return chosen(tmp_path / name, kept, write, score)

    with pytest.raises(KeyboardInterrupt):
        run("first")
    found = run("second")
    values = list(DIVERGENCES)
    # What was written is not written again, where it was not scored either.
    again = values[: end + 1] + values[end:]
    assert (tried, scored) == ((again, values) if where == "write" else (values, again))
    assert found.chosen == 0.9
    assert [point for _, point in found.curve] == [0.3, 0.1, None, 0.2, 0.05]
    # What ends behind the choice, as a disk that is full does, leaves the best one for the next.
    assert run("third") == found
    assert len(tried) + len(scored) == 11
    for name in ("second", "third"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["config.json"]
        assert (tmp_path / name / "config.json").read_text() == '{"value": 0.9}'


def test_what_another_machine_tried_is_tried_again(tmp_path: Path) -> None:
    def add(value: float) -> _Tried:
        tried = _Tried(tmp_path, {"machine": "a"})
        assert not tried.begin(value)
        (tried.folder_of(value) / "config.json").write_text('{"a": 1}')
        tried.wrote(value)
        tried.add(value, 0.3)
        return tried

    best = add(0.5).folder_of(0.5)
    assert _Tried(tmp_path, {"machine": "a"}).curve == {0.5: 0.3}
    assert _Tried(tmp_path, {"machine": "b"}).curve == {}
    assert not best.exists()
    for change in (lambda file: file.unlink(), lambda file: file.write_text("{}")):
        add(0.5)
        change(best / "config.json")
        assert _Tried(tmp_path, {"machine": "a"}).curve == {}


def test_a_search_that_has_tried_nothing_leaves_nothing(tmp_path: Path) -> None:
    kept = Unfinished(tmp_path / "kept", {})

    def failing(_value: float, folder: Path) -> None:
        assert folder.is_dir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen(tmp_path / "first", kept, failing, lambda _folder: 0.1)
    assert not kept.folder.exists()

    def begun(_value: float, folder: Path) -> None:
        (folder / "layers.state").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen(tmp_path / "second", kept, begun, lambda _folder: 0.1)
    assert (kept.folder / "candidate-0.5" / "layers.state").is_file()


def test_what_takes_the_place_of_a_changed_trial_is_gone_on_with(tmp_path: Path) -> None:
    def begin() -> _Tried:
        tried = _Tried(tmp_path, {})
        assert not tried.begin(0.5)
        return tried

    tried = begin()
    config = tried.folder_of(0.5) / "config.json"
    config.touch()
    tried.wrote(0.5)
    config.write_text("{}")
    begin()
    assert not config.exists()
    (part := config.with_name("part")).touch()
    begin()
    assert part.exists()


class Disk:
    """Ends a run before or behind the change of the disk that has a number, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.before = 0, -1, True
        for module, name in (
            (search, "write_atomically"),
            (search.shutil, "rmtree"),
            (search, "strip"),
            (search, "forget"),
            (search, "hand_over"),
        ):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, change: Any) -> Any:
        def changed(*given: Any, **more: Any) -> None:
            self.count += 1
            if self.count == self.at and self.before:
                raise KeyboardInterrupt
            change(*given, **more)
            if self.count == self.at:
                raise KeyboardInterrupt

        return changed


def test_a_search_that_ends_at_any_change_of_the_disk_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, scored, most = list[float](), list[float](), [0]

    def write(value: float, folder: Path) -> None:
        if not (folder / "config.json").exists():
            written.append(value)
            (folder / "rank0.safetensors").write_text(str(value))
            (folder / "config.json").write_text("{}")
        (folder / "layers.state").touch()

    def score(folder: Path) -> float:
        assert sorted(path.name for path in folder.iterdir()) == FILES
        scored.append(value := float((folder / "rank0.safetensors").read_text()))
        folders = [path for path in folder.parent.iterdir() if path.is_dir()]
        most.append(len(folders))
        return DIVERGENCES[value]

    def run(root: Path, name: str) -> Found:
        output = root / name
        found = chosen(output, Unfinished(root / "kept", {}), write, score)
        assert sorted(path.name for path in output.iterdir()) == FILES
        assert (output / "rank0.safetensors").read_text() == "0.9"
        return found

    disk = Disk(monkeypatch)
    wanted, changes = run(tmp_path / "whole", "output"), disk.count
    assert changes > 20
    for at, before in itertools.product(range(1, changes + 1), (True, False)):
        written.clear()
        scored.clear()
        disk.count, disk.at, disk.before = 0, at, before
        root = tmp_path / f"{at} {before}"
        with pytest.raises(KeyboardInterrupt):
            run(root, "first")
        disk.at = -1
        assert run(root, "second") == wanted
        assert written == list(DIVERGENCES)
        # A score is lost where the run ends before it is written down.
        assert [*dict.fromkeys(scored)] == list(DIVERGENCES)
        assert len(scored) <= len(DIVERGENCES) + 1
    assert max(most) == 2


FILES = ["config.json", "rank0.safetensors"]

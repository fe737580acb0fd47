"""Large models are linked into the store: whatever is written into them later is found."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError, StoreError
from pipeline.progress import Silent
from pipeline.recipe.file import load_recipe
from pipeline.running import planner, runner
from pipeline.running.planner import build_plan
from pipeline.running.runner import RunResult, run_recipe
from pipeline.source.snapshot import file_marks
from pipeline.stages import source
from pipeline.stages.base import Stage, StageContext
from pipeline.store import digests, files
from pipeline.store.build_dir import BuildDir
from pipeline.store.files import take
from pipeline.store.lock import read_lock
from pipeline.store.retention import prune

from .test_source import model

__all__ = ["model"]
WEIGHTS = "model.safetensors"


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, message: str) -> None:
        self.texts.append(message)


class House:
    """The source stage itself, and two stages that read the model's weights."""

    def __init__(self, tmp_path: Path, model: Path) -> None:
        self.calls: list[str] = []
        self.during: dict[str, Callable[[StageContext], None]] = {}
        self.build, self.weights = BuildDir(tmp_path / "build"), model / WEIGHTS
        self.path = tmp_path / "recipe.yaml"
        self.path.write_text(
            f"schema: 1\nname: t\nmodel: {{source: '{model}'}}\nquantize: {{format: float16}}\n"
        )
        self.notes = Notes()

    def stages(self) -> tuple[Stage, ...]:
        own = replace(source.STAGE, check=lambda _recipe, _artifact: None)
        return own, self._reader("quantize", "source"), self._reader("compile", "source")

    def _reader(self, name: str, *inputs: str) -> Stage:
        def work(context: StageContext) -> dict[str, Any]:
            self.calls.append(name)
            self.during.get(name, lambda _context: None)(context)
            weights = (context.inputs["source"].path / WEIGHTS).read_bytes()
            (context.output / "out").write_bytes(weights)
            return {}

        return Stage(name, 1, name, inputs, work, lambda _recipe: {})

    def run(self, **options: Any) -> RunResult:
        self.notes = Notes()
        recipe, build = load_recipe(self.path), options.pop("build", self.build)
        return run_recipe(recipe, build, self.notes, **options)

    def snapshot(self) -> Path:
        return self.run(until="source").stages["source"].artifact.path  # type: ignore[union-attr]

    def reasons(self) -> list[str]:
        recipe = load_recipe(self.path)
        lock = read_lock(self.build.outputs(recipe) / "lock.json")
        return [planned.reason for planned in build_plan(recipe, self.build.store, lock)]

    def write(self, *, keep_times: bool = False, byte: bytes = b"\x01") -> None:
        """Writes into the file in its place, as a training run does that saves again."""
        before = self.weights.stat()
        with self.weights.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(byte)
        if keep_times:
            os.utime(self.weights, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def house(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path, model)
    monkeypatch.setattr(planner, "STAGES", house.stages())
    monkeypatch.setattr(runner, "check_local_model", lambda _recipe: None)
    monkeypatch.setattr(source, "WORTH_TELLING", 1000)
    monkeypatch.setattr(source, "LINKED_FROM", 1000)
    # As on most file systems, also where this one could share blocks.
    monkeypatch.setattr(files, "cloned", lambda _source, _target: False)
    return house


def test_the_large_files_of_a_large_model_are_linked_and_left_alone(house: House) -> None:
    house.weights.chmod(0o640)
    taken = house.snapshot()
    assert (taken / WEIGHTS).samefile(house.weights)
    assert house.weights.stat().st_mode & 0o777 == 0o640
    config = taken / "config.json"
    assert config.stat().st_nlink == 1
    assert config.stat().st_mode & 0o777 == 0o444
    assert "the store has links to them" in house.notes.texts[-1]


def test_a_model_below_the_limit_is_copied(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "WORTH_TELLING", 1 << 20)
    taken = house.snapshot()
    assert not (taken / WEIGHTS).samefile(house.weights)
    house.write()
    assert (taken / WEIGHTS).read_bytes() != house.weights.read_bytes()
    assert house.notes.texts == []


def test_its_own_links_do_not_make_a_model_another_one(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.run()
    assert house.calls == ["quantize", "compile"]
    assert house.reasons() == ["", "", ""]
    read: list[Path] = []
    monkeypatch.setattr(digests, "file_digest", lambda path: read.append(path) or "0")
    assert {one.status for one in house.run().stages.values()} == {"cached"}
    assert read == []  # also for its digest it was read once, in the run that linked it
    monkeypatch.undo()


def test_a_run_that_is_killed_has_not_read_the_model_for_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a later stage is killed by, what it leaves is what is there when it begins."""
    read: list[str] = []

    def begun(context: StageContext) -> None:
        taken = context.inputs["source"].path
        with monkeypatch.context() as patched:
            patched.setattr(digests, "file_digest", lambda path: read.append(path.name) or "0")
            # As the next process does.
            assert house.build.store.get("source", taken.name)[0] is not None

    house.during = {"quantize": begun, "compile": begun}
    house.run()
    assert house.calls == ["quantize", "compile"]
    assert read == []


def test_two_stores_may_have_links_to_one_model(house: House, tmp_path: Path) -> None:
    house.run()
    other = BuildDir(tmp_path / "other")
    house.run(build=other)
    assert house.weights.stat().st_nlink == 3
    house.calls.clear()
    for build in (house.build, other):
        assert {one.status for one in house.run(build=build).stages.values()} == {"cached"}
    prune(other, keep=False, dry_run=False)
    assert house.weights.stat().st_nlink == 2
    assert {one.status for one in house.run().stages.values()} == {"cached"}
    assert house.calls == []


@pytest.mark.parametrize("keep_times", [False, True])
def test_what_is_written_into_a_model_later_is_found_before_a_stage_reads_it(
    house: House, keep_times: bool
) -> None:
    first = house.run()
    before = house.weights.read_bytes()
    house.write(keep_times=keep_times)
    (damage,) = house.build.store.verify()
    assert damage.problems == (
        f"{WEIGHTS} was changed: its SHA-256 differs, and it is linked to the model's own file",
    )
    reason = house.reasons()[0]
    # A program that sets the times back does not set back the change time.
    assert ("was changed" if keep_times else "the model's files were touched") in reason
    again = house.run()
    for name in ("quantize", "compile"):
        made, old = again.stages[name].artifact, first.stages[name].artifact
        assert made is not None
        assert old is not None
        assert (made.path / "out").read_bytes() == house.weights.read_bytes()
        # What was made of the model as it was is still that.
        assert (old.path / "out").read_bytes() == before


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_stage_during_which_a_model_is_written_to_is_not_published(
    house: House, keep_times: bool
) -> None:
    house.during["quantize"] = lambda _context: house.write(keep_times=keep_times)
    with pytest.raises(StoreError, match=r"written to during the run: model\.safetensors was ch"):
        house.run()
    assert not (house.build.store.root / "quantize").exists()
    house.during.clear()
    assert house.run().stages["quantize"].status == "run"
    assert house.reasons() == ["", "", ""]


def test_a_model_that_was_written_to_between_two_stages_is_not_read(house: House) -> None:
    told = []

    def on_stage(planned: planner.PlannedStage, _seconds: float) -> None:
        told.append(planned.stage.name)
        if planned.stage.name == "quantize":
            house.write(keep_times=True)

    with pytest.raises(StoreError, match="written to during the run"):
        house.run(on_stage=on_stage)
    assert told == ["source", "quantize"]
    assert house.calls == ["quantize"]


def test_a_link_that_somebody_makes_meanwhile_is_no_write(house: House, tmp_path: Path) -> None:
    house.during["quantize"] = lambda _context: (tmp_path / "linked").hardlink_to(house.weights)
    house.run()
    assert house.calls == ["quantize", "compile"]


@pytest.mark.parametrize("keep_times", [False, True])
def test_work_on_a_model_that_was_other_meanwhile_is_not_gone_on_with(
    house: House, keep_times: bool
) -> None:
    """The key is the same again, but what was left is of two models."""

    def leave(context: StageContext) -> None:
        assert context.unfinished
        house.write(keep_times=keep_times)
        (context.unfinished / "state").write_text("of two models")
        house.write(byte=b"\x00", keep_times=keep_times)
        raise KeyboardInterrupt

    house.during["quantize"] = leave
    with pytest.raises(KeyboardInterrupt):
        house.run()
    left: list[str] = []

    def look(context: StageContext) -> None:
        assert context.unfinished
        left.extend(path.name for path in context.unfinished.iterdir())

    house.during["quantize"] = look
    house.run()
    assert left == []
    assert any("begins anew" in text and "touched meanwhile" in text for text in house.notes.texts)


@pytest.mark.parametrize("made", [True, False])
def test_work_on_a_model_that_was_linked_meanwhile_is_gone_on_with(
    house: House, tmp_path: Path, made: bool
) -> None:
    link = tmp_path / "linked"

    def leave(context: StageContext) -> None:
        assert context.unfinished
        (context.unfinished / "state").write_text("half")
        raise KeyboardInterrupt

    house.run(until="source")
    if not made:
        link.hardlink_to(house.weights)
    house.during["quantize"] = leave
    with pytest.raises(KeyboardInterrupt):
        house.run()
    if made:
        link.hardlink_to(house.weights)
    else:
        link.unlink()
    found: list[str] = []

    def look(context: StageContext) -> None:
        assert context.unfinished
        found.extend(path.name for path in context.unfinished.iterdir())

    house.during["quantize"] = look
    house.run()
    assert found == ["state"]


def test_links_are_looked_through_only_where_the_store_makes_them(house: House) -> None:
    """Nobody else looks at the change time of a file that the store has no link to."""
    folder = house.weights.parent
    (folder.parent / "linked").hardlink_to(house.weights)
    before = {limit: file_marks(folder, linked_from=limit) for limit in (1000, math.inf)}
    assert before[math.inf] == file_marks(folder)
    house.write(keep_times=True)
    assert file_marks(folder) != before[math.inf]
    assert file_marks(folder, linked_from=1000) == before[1000]


def test_a_model_that_is_written_to_while_it_is_taken_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(one: Path, target: Path, *arguments: Any, **how: Any) -> files.Taken:
        if one.name == "tokenizer.json":
            house.write()
        return take(one, target, *arguments, **how)

    monkeypatch.setattr(source, "take", slowly)
    for limit in (1000, 1 << 20):  # linked, and copied
        monkeypatch.setattr(source, "WORTH_TELLING", limit)
        with pytest.raises(SourceError, match=r"model\.safetensors: the model was written to whi"):
            house.run()
    assert not list(house.build.store.root.glob("source/*"))


def test_a_model_on_another_file_system_is_copied_and_that_is_said(
    house: House, tmp_path: Path
) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system here")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        for path in house.weights.parent.iterdir():
            (Path(folder) / path.name).write_bytes(path.read_bytes())
        house.path.write_text(house.path.read_text().replace(str(house.weights.parent), folder))
        taken = house.snapshot()
        assert (taken / WEIGHTS).stat().st_nlink == 1
        assert "takes" in house.notes.texts[-1]
        assert "of its own" in house.notes.texts[-1]

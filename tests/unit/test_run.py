"""The runner: what is cached, what runs again and why, and what a failure leaves behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import (
    MissingDependencyError,
    QualityGateError,
    RecipeError,
    StageError,
    StoreError,
    UnsupportedError,
)
from pipeline.progress import Lines, Silent
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.running import planner, runner
from pipeline.running.planner import build_plan
from pipeline.running.runner import RunResult, run_recipe
from pipeline.stages.base import Deployment, Journal, Stage, StageContext
from pipeline.store.artifact import Artifact, Damage
from pipeline.store.build_dir import BuildDir
from pipeline.store.journal import read as read_journal
from pipeline.store.lock import read_lock
from pipeline.store.retention import prune
from pipeline.store.store import Store


class House:
    """Three small stages that count how often they run."""

    def __init__(self, tmp_path: Path) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.gate: Callable[[Artifact], None] = lambda _artifact: None
        self.build = BuildDir(tmp_path / "build")
        self.path = tmp_path / "recipe.yaml"
        self.path.write_text(
            "schema: 1\nname: t\nmodel: {source: m}\nquantize: {format: float16}\n"
        )

    def stages(self) -> tuple[Stage, ...]:
        return (
            self._stage("source", (), lambda recipe: recipe.section("model")),
            self._stage("quantize", ("source",), lambda recipe: recipe.section("quantize")),
            self._stage("compile", ("quantize",), lambda recipe: recipe.section("compile")),
        )

    def _stage(
        self, name: str, inputs: tuple[str, ...], section: Callable[[Recipe], dict[str, Any]]
    ) -> Stage:
        def work(context: StageContext) -> dict[str, Any]:
            self.calls.append(name)
            (context.output / "partial").write_text("x")
            if name in self.fail:
                raise self.fail[name]
            text = repr(section(context.recipe)) if name != "quantize" else "constant"
            (context.output / "out").write_text(text)
            return {"name": name}

        check = (lambda _recipe, artifact: self.gate(artifact)) if name == "quantize" else None
        return Stage(
            name=name,
            version=1,
            title=name,
            inputs=inputs,
            run=work,
            section=section,
            **({"check": check} if check else {}),
        )

    def run(self, *overrides: str, **options: Any) -> RunResult:
        recipe = load_recipe(self.path, overrides)
        return run_recipe(recipe, self.build, Silent(), **options)

    def reasons(self, *overrides: str) -> dict[str, str]:
        recipe = load_recipe(self.path, overrides)
        lock = read_lock(self.build.outputs(recipe) / "lock.json")
        return {
            planned.stage.name: planned.reason
            for planned in build_plan(recipe, self.build.store, lock)
        }


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path)
    monkeypatch.setattr(planner, "STAGES", house.stages())
    monkeypatch.setattr(runner, "check_local_model", lambda _recipe: None)
    return house


def test_a_second_run_does_nothing(house: House) -> None:
    first = house.run()
    assert house.calls == ["source", "quantize", "compile"]
    second = house.run()
    assert house.calls == ["source", "quantize", "compile"]
    assert {planned.status for planned in second.stages.values()} == {"cached"}
    assert [planned.key for planned in second.stages.values()] == [
        planned.key for planned in first.stages.values()
    ]


def test_a_forced_stage_is_told_as_one_that_ran(house: House) -> None:
    house.run()
    house.calls.clear()
    told: list[tuple[str, str, str]] = []
    again = house.run(
        force=frozenset({"quantize"}),
        on_stage=lambda planned, _seconds: told.append(
            (planned.stage.name, planned.status, planned.reason)
        ),
    )
    assert house.calls == ["quantize"]
    assert told == [
        ("source", "cached", ""),
        ("quantize", "run", "forced"),
        ("compile", "cached", ""),
    ]
    assert again.stages["quantize"].status == "run"


def test_a_changed_key_runs_its_stage_and_equal_bytes_stop_there(house: House) -> None:
    house.run()
    house.calls.clear()
    # This quantize stage writes the same bytes whatever its section, so compile stays cached.
    result = house.run("quantize.smoothquant_alpha=0.75")
    assert house.calls == ["quantize"]
    assert result.stages["compile"].status == "cached"


def test_the_plan_says_why(house: House) -> None:
    assert house.reasons()["source"] == "never ran"
    assert house.reasons()["compile"] == "needs quantize"
    house.run()
    assert set(house.reasons().values()) == {""}
    assert house.reasons("compile.max_batch_size=8")["compile"] == (
        "compile.max_batch_size changed from 32 to 8"
    )
    artifact = house.run().stages["compile"].artifact
    assert artifact is not None
    (artifact.path / "out").unlink()
    assert "damaged: out is missing" in house.reasons()["compile"]


def test_the_plan_says_first_what_the_recipe_changed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.run()
    changed = tuple(
        replace(
            stage, material=lambda _recipe: {"files": {"a": [1], "b": [2]}, "tools": {"tool": "2"}}
        )
        for stage in house.stages()
    )
    monkeypatch.setattr(planner, "STAGES", changed)
    reasons = house.reasons("model.revision=x")
    assert reasons["source"] == (
        'model.revision changed from null to "x"; the model\'s files were touched; '
        "tool is 2 now and was not there"
    )
    reasons = house.reasons("model.source=y", "model.revision=x")
    assert reasons["source"].endswith("; and 1 more")


def test_texts_are_read_before_anything_is_done(house: House) -> None:
    text = 'evaluate={text: "nowhere.txt"}'
    with pytest.raises(RecipeError, match=r"nowhere\.txt: there is no such text file"):
        house.run(text)
    assert house.calls == []


def test_missing_packages_of_later_stages_stop_the_first_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, *others, last = house.stages()
    needy = replace(last, needs=lambda _recipe: [("no_such_package.part", "cpu")])
    monkeypatch.setattr(planner, "STAGES", (source, *others, needy))
    with pytest.raises(MissingDependencyError, match="no_such_package is not installed"):
        house.run()
    assert house.calls == []
    house.run(until="quantize")
    monkeypatch.setattr(planner, "STAGES", house.stages())
    house.run()
    # What is cached needs no package.
    monkeypatch.setattr(planner, "STAGES", (source, *others, needy))
    house.run()
    assert house.calls == ["source", "quantize", "compile"]


def test_a_failure_keeps_what_was_published(house: House) -> None:
    house.fail["compile"] = StageError("no compiler")
    with pytest.raises(StageError, match="no compiler"):
        house.run()
    house.fail.clear()
    house.calls.clear()
    house.run()
    assert house.calls == ["compile"]
    assert house.build.store.verify() == []


def test_running_out_of_memory_is_a_stage_failure(house: House) -> None:
    house.fail["quantize"] = MemoryError()
    with pytest.raises(StageError, match=r"quantize ran out of memory\. Use a machine"):
        house.run()


def test_what_torch_cannot_have_on_the_cpu_is_one_as_well(house: House) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    house.fail["quantize"] = caught.value
    with pytest.raises(StageError, match=r"ran out of memory\. You tried to allocate \d+ bytes"):
        house.run()
    house.fail["quantize"] = RuntimeError("size mismatch")
    with pytest.raises(RuntimeError, match="size mismatch"):
        house.run()


def test_a_gate_stops_the_run_every_time_and_keeps_the_artifact(house: House) -> None:
    def closed(artifact: Artifact) -> None:
        raise QualityGateError("worse than allowed", where=str(artifact.path))

    house.gate = closed
    for _ in range(2):
        with pytest.raises(QualityGateError, match="worse than allowed") as caught:
            house.run()
        assert caught.value.exit_code == 4
        assert Path(str(caught.value.where)).is_dir()
    # The artifact was made once; the gate is asked on every run.
    assert house.calls == ["source", "quantize"]


def test_a_run_that_stops_early_forgets_nothing(house: House) -> None:
    recipe = house.run().outputs / "lock.json"
    before = read_lock(recipe)
    house.run("quantize.smoothquant_alpha=0.75", until="quantize")
    after = read_lock(recipe)
    assert after["compile"] == before["compile"]
    assert after["quantize"]["key"] != before["quantize"]["key"]


def test_what_a_running_stage_reads_is_in_use(house: House) -> None:
    def pruned(artifact: Artifact) -> None:
        assert prune(house.build, keep=True, dry_run=False).paths == ()
        assert artifact.path.is_dir()

    house.gate = pruned
    house.run()
    assert house.calls == ["source", "quantize", "compile"]


def test_what_a_run_makes_while_every_byte_is_read_is_in_use(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.run()
    verify = Store.verify

    def meanwhile(store: Store) -> list[Damage]:
        found = verify(store)
        house.run("quantize.smoothquant_alpha=0.75")
        return found

    monkeypatch.setattr(Store, "verify", meanwhile)
    gone = prune(house.build, keep=True, dry_run=False).paths
    # The former one's, of which nobody makes use any more; what the run made is there.
    assert [path.parent.name for path in gone] == ["quantize"]
    house.calls.clear()
    house.run("quantize.smoothquant_alpha=0.75")
    assert house.calls == []


def test_what_takes_the_place_of_something_damaged_is_not_removed_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = house.run().stages["quantize"].artifact
    assert artifact
    damaged = artifact.path / "out"
    damaged.chmod(0o600)
    damaged.write_text("other")
    verify = Store.verify

    def meanwhile(store: Store) -> list[Damage]:
        found = verify(store)
        assert [damage.path for damage in found] == [artifact.path]
        house.run()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Store, "verify", meanwhile)
        assert prune(house.build, keep=True, dry_run=False).paths == ()
    assert artifact.path.is_dir()
    damaged.chmod(0o600)
    damaged.write_text("other")
    assert prune(house.build, keep=True, dry_run=False).paths == (artifact.path,)
    assert not artifact.path.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"stages": null}', '{"stages": [1]}', '{"stages": {"source": {}}}']
)
def test_a_damaged_lock_is_no_lock(house: House, content: str) -> None:
    lock = house.run().outputs / "lock.json"
    whole = read_lock(lock)
    lock.write_text(content)
    assert read_lock(lock) == {}
    assert prune(house.build, keep=True, dry_run=True).paths
    house.run()
    assert read_lock(lock) == whole
    assert house.calls == ["source", "quantize", "compile"]


def test_a_cached_run_writes_nothing(house: House) -> None:
    lock = house.run().outputs / "lock.json"
    before = lock.stat()
    house.run()
    assert lock.stat().st_ino == before.st_ino


def test_a_lock_that_cannot_be_written_is_named(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root writes everything, so the refusal of the kernel is played.
    def full(path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pipeline.store.lock.write_atomically", full)
    with pytest.raises(StoreError, match=r"lock\.json: the build directory cannot be written"):
        house.run()


def test_force_runs_a_cached_stage(house: House) -> None:
    house.run()
    house.calls.clear()
    house.run(force=frozenset({"quantize"}))
    assert house.calls == ["quantize"]
    assert house.build.store.verify() == []


def test_until_stops_early(house: House) -> None:
    assert list(house.run(until="quantize").stages) == ["source", "quantize"]


def test_another_recipe_shares_the_store(house: House) -> None:
    house.run()
    house.calls.clear()
    result = house.run("name=other")
    assert house.calls == []
    assert result.outputs.name == "other"


def test_what_cannot_work_is_refused_before_the_model_is_copied(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"schema: 1\nname: t\nmodel: {{source: '{tmp_path}'}}\nquantize: {{format: float16}}\n"
    )
    build = BuildDir(tmp_path / "build")
    with pytest.raises(UnsupportedError, match="GPT2LMHeadModel is not supported"):
        run_recipe(load_recipe(path), build, Silent())
    assert not build.root.exists()


class Ladder(House):
    """The small stages with a place for their results, and a report that is always written."""

    def stages(self) -> tuple[Stage, ...]:
        source, quantize, compiled = super().stages()
        folder = Deployment(folder="repository", after="compile")
        report = self._stage("report", ("source", "quantize", "compile"), lambda _recipe: {})
        journal = Journal("history.jsonl", lambda artifact: {"key": artifact.key})
        return (
            source,
            replace(quantize, deployment=folder),
            compiled,
            replace(report, always=True, deployment=Deployment(files=("out",), journal=journal)),
        )

    def history(self) -> list[str]:
        path = self.build.root / "t" / "history.jsonl"
        return [line["key"] for line in read_journal(path)]


@pytest.fixture
def ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ladder:
    ladder = Ladder(tmp_path)
    monkeypatch.setattr(planner, "STAGES", ladder.stages())
    monkeypatch.setattr(runner, "check_local_model", lambda _recipe: None)
    return ladder


def test_a_run_goes_on_behind_a_closed_gate_and_deploys_nothing_of_it(ladder: Ladder) -> None:
    def refuse(_artifact: Artifact) -> None:
        raise QualityGateError("worse than allowed")

    ladder.gate = refuse
    result = ladder.run(past_checks=True)
    assert ladder.calls == ["source", "quantize", "compile", "report"]
    assert result.failure
    assert (result.failure.stage, result.failure.verdict) == ("quantize", True)
    assert not (result.outputs / "repository").exists()
    assert not list(result.outputs.glob("repository*"))
    # The report is that of the failure, and what lies behind the gate is what a good run makes.
    behind = result.stages["compile"].key
    with pytest.raises(QualityGateError, match="worse than allowed"):
        ladder.run()
    ladder.gate = lambda _artifact: None
    good = ladder.run()
    assert good.failure is None
    assert good.stages["compile"].key == behind
    assert (good.outputs / "repository" / "out").is_file()
    assert ladder.calls.count("compile") == 1


def test_what_was_deployed_stays_where_a_later_run_went_behind_a_gate(ladder: Ladder) -> None:
    ladder.run()

    def refuse(_artifact: Artifact) -> None:
        raise QualityGateError("worse than allowed")

    ladder.gate = refuse
    result = ladder.run("compile.max_batch_size=8", past_checks=True)
    assert [path.name for path in result.outputs.glob("repository*")] == ["repository"]


def test_a_failure_behind_a_gate_ends_the_run_and_the_gate_is_what_is_recorded(
    ladder: Ladder,
) -> None:
    def refuse(_artifact: Artifact) -> None:
        raise QualityGateError("worse than allowed")

    ladder.gate = refuse
    ladder.fail["compile"] = StageError("broken")
    with pytest.raises(StageError, match="broken"):
        ladder.run(past_checks=True)
    assert ladder.calls == ["source", "quantize", "compile", "report"]


def test_a_run_that_made_something_new_is_in_the_history_once(ladder: Ladder) -> None:
    ladder.run()
    ladder.run()
    assert len(ladder.history()) == 1
    ladder.run("compile.max_batch_size=8")
    ladder.run("compile.max_batch_size=8")
    ladder.run("compile.max_batch_size=8", force=frozenset({"report"}))
    assert len(ladder.history()) == len(set(ladder.history())) == 2


def test_a_run_that_is_as_it_was_before_the_last_one_is_in_the_history_again(
    ladder: Ladder,
) -> None:
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ladder.run()
    ladder.run("compile.max_batch_size=8")
    ladder.run()
    first, other, last = ladder.history()
    assert first == last != other
    lines = read_journal(ladder.build.root / "t" / "history.jsonl")
    assert [line["finished"] for line in lines] == sorted(line["finished"] for line in lines)
    assert lines[0]["finished"] >= before


def test_a_damaged_history_does_not_fail_a_run_and_is_told(
    ladder: Ladder, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ladder.build.root / "t" / "history.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text("half a li")
    run_recipe(load_recipe(ladder.path), ladder.build, Lines(sys.stderr))
    assert "history.jsonl:1: this line is not one of a history" in capsys.readouterr().err
    assert place.read_text() == "half a li"

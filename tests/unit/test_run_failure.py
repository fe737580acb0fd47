"""What a run that fails leaves behind: a verdict, and nothing that is taken for a good result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import (
    MissingDependencyError,
    PipelineError,
    QualityGateError,
    RecipeError,
    ServerError,
    StageError,
    UnsupportedError,
    VerificationError,
)
from pipeline.progress import Silent
from pipeline.recipe.file import load_recipe
from pipeline.running import planner, runner
from pipeline.running.runner import RunResult, run_recipe
from pipeline.serving import warning_of
from pipeline.stages.base import Deployment, Stage, StageContext
from pipeline.store.artifact import check_files, read_manifest
from pipeline.store.build_dir import BuildDir

GATE = QualityGateError("worse than allowed", fix="Try another format")
PROOF = VerificationError("2 conformance checks failed")


class Notes(Silent):
    """Keeps what the run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        """Keeps it."""
        self.notes.append(message)


class Shop:
    """Cloth is woven, sewn, tried on and written up, so no stage has a name that the runner knows.

    Attributes:
        fail: What the run of a stage raises, by its name.
        refuse: What the check of a stage raises.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.fail: dict[str, PipelineError] = {}
        self.refuse: dict[str, PipelineError] = {}
        self.cloth = "linen"
        self.notes = Notes()
        self.build = BuildDir(tmp_path / "build")
        self.outputs = self.build.root / "t"
        self.path = tmp_path / "recipe.yaml"
        self.path.write_text(
            "schema: 1\nname: t\nmodel: {source: m}\nquantize: {format: float16}\n"
        )

    def stages(self) -> tuple[Stage, ...]:
        return (
            self._stage("weave"),
            self._stage("sew", "weave", deployment=Deployment(folder="coat", after="try-on")),
            self._stage("try-on", "sew"),
            self._stage(
                "page",
                *("weave", "sew", "try-on"),
                deployment=Deployment(files=("page.json",)),
                always=True,
            ),
        )

    def _stage(
        self,
        name: str,
        *inputs: str,
        deployment: Deployment | None = None,
        always: bool = False,
    ) -> Stage:
        def work(context: StageContext) -> dict[str, str]:
            if name in self.fail:
                raise self.fail[name]
            failure = context.failure.as_dict() if context.failure else None
            content = {"made_of": sorted(context.inputs), "failure": failure, "cloth": self.cloth}
            (context.output / f"{name}.json").write_text(json.dumps(content))
            return {}

        def check(_recipe: object, _artifact: object) -> None:
            if name in self.refuse:
                raise self.refuse[name]

        def material(_recipe: object) -> dict[str, str]:
            return {"cloth": self.cloth}

        return Stage(
            name=name, version=1, title=name, inputs=inputs, run=work, section=lambda _recipe: {},
            material=material, check=check, deployment=deployment, always=always,
        )  # fmt: skip

    def run(self, until: str | None = None) -> RunResult:
        return run_recipe(load_recipe(self.path), self.build, self.notes, until=until)

    def page(self) -> dict[str, object]:
        return dict(json.loads((self.outputs / "page.json").read_text()))

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.outputs.iterdir() if path.is_dir())


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    monkeypatch.setattr(planner, "STAGES", shop.stages())
    monkeypatch.setattr(runner, "check_local_model", lambda _recipe: None)
    yield shop
    assert shop.build.store.verify() == []


def test_a_good_run_deploys_after_the_trial(shop: Shop) -> None:
    result = shop.run()
    assert shop.folders() == ["coat"]
    assert result.deployed == {
        "sew": shop.outputs / "coat",
        "page": shop.outputs / "page.json",
    }
    assert shop.page()["failure"] is None
    assert warning_of(shop.outputs / "coat") is None
    assert all("failure" not in (line.material or {}) for line in result.stages.values())


def test_a_closed_gate_replaces_the_page_of_the_run_before(shop: Shop) -> None:
    shop.run()
    good = (shop.outputs / "coat" / "sew.json").read_text()
    shop.cloth, shop.refuse["sew"] = "wool", GATE
    for _ in range(2):
        with pytest.raises(QualityGateError, match="worse than allowed") as caught:
            shop.run()
        assert caught.value.exit_code == 4
        assert shop.page() == {
            "made_of": ["sew", "weave"],
            "cloth": "wool",
            "failure": {
                "stage": "sew",
                "verdict": True,
                "error": GATE.as_dict(),
                "unreached": ["try-on"],
                "kept": {},
            },
        }
    # What passed earlier is still there; what was refused is not.
    assert shop.folders() == ["coat"]
    assert (shop.outputs / "coat" / "sew.json").read_text() == good
    assert f"page: {shop.outputs / 'page.json'}" in shop.notes.notes
    shop.refuse.clear()
    shop.run()
    assert shop.page()["failure"] is None


@pytest.mark.parametrize(
    ("fail", "refuse"),
    [({}, {"try-on": PROOF}), ({"try-on": ServerError("Triton did not start")}, {})],
)
def test_what_failed_its_trial_is_kept_beside_and_says_so(
    fail: dict[str, PipelineError], refuse: dict[str, PipelineError], shop: Shop
) -> None:
    shop.fail, shop.refuse = dict(fail), dict(refuse)
    error = [*fail.values(), *refuse.values()][0]
    with pytest.raises(ServerError, match=error.what) as caught:
        shop.run()
    assert caught.value.exit_code == 6
    assert shop.folders() == ["coat.failed"]
    kept = shop.outputs / "coat.failed"
    assert check_files(kept, read_manifest(kept), memo=None) == []
    assert warning_of(kept) == f"this repository was not released: try-on failed: {error.what}"
    # Wherever it is moved, and whatever it is called.
    moved = kept.rename(shop.outputs / "coat")
    assert str(warning_of(moved)).endswith(error.what)
    assert shop.page()["failure"]["kept"] == {"sew": "coat.failed"}  # type: ignore[index]
    shop.fail.clear()
    shop.refuse.clear()
    shop.run()
    assert shop.folders() == ["coat"]
    assert warning_of(shop.outputs / "coat") is None


def test_what_was_good_is_withdrawn_when_the_same_now_fails(shop: Shop) -> None:
    shop.run()
    shop.refuse["try-on"] = PROOF
    with pytest.raises(VerificationError, match="2 conformance checks failed"):
        shop.run()
    assert shop.folders() == ["coat.failed"]


def test_what_was_good_stays_when_another_one_fails(shop: Shop) -> None:
    shop.run()
    shop.refuse["try-on"], shop.cloth = PROOF, "wool"
    with pytest.raises(VerificationError, match="2 conformance checks failed"):
        shop.run()
    assert shop.folders() == ["coat", "coat.failed"]
    assert "linen" in (shop.outputs / "coat" / "sew.json").read_text()
    assert "wool" in (shop.outputs / "coat.failed" / "sew.json").read_text()


def test_what_cannot_be_tried_here_is_unverified_not_failed(shop: Shop) -> None:
    shop.fail["try-on"] = UnsupportedError("this machine has no GPU")
    with pytest.raises(UnsupportedError, match="no GPU"):
        shop.run()
    assert shop.folders() == ["coat.unverified"]
    failure = shop.page()["failure"]
    assert isinstance(failure, dict)
    assert not failure["verdict"]
    warning = warning_of(shop.outputs / "coat.unverified")
    assert warning == "this repository was not released: try-on has not passed"


def test_a_run_that_stops_before_the_trial_deploys_nothing_as_good(shop: Shop) -> None:
    result = shop.run(until="sew")
    assert shop.folders() == ["coat.unverified"]
    assert result.deployed == {"sew": shop.outputs / "coat.unverified"}
    shop.run()
    assert shop.folders() == ["coat"]
    # This very coat has passed.
    assert shop.run(until="sew").deployed == {"sew": shop.outputs / "coat"}
    assert shop.folders() == ["coat"]
    shop.cloth = "wool"
    shop.run(until="sew")
    assert shop.folders() == ["coat", "coat.unverified"]


def test_a_stage_that_breaks_down_leaves_a_page_about_it(shop: Shop) -> None:
    shop.run()
    shop.fail["sew"], shop.cloth = StageError("the needle broke"), "wool"
    with pytest.raises(StageError, match="the needle broke"):
        shop.run()
    failure = shop.page()["failure"]
    assert isinstance(failure, dict)
    assert failure["error"]["what"] == "the needle broke"
    assert failure["unreached"] == ["try-on"]
    assert not failure["verdict"]


@pytest.mark.parametrize("refusal", ["first", "texts", "packages"])
def test_a_run_that_is_refused_changes_nothing(
    refusal: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.run()
    before, shop.cloth = shop.page(), "wool"

    def refuse(error: PipelineError) -> Callable[[object], None]:
        def refused(_given: object) -> None:
            raise error

        return refused

    if refusal == "first":
        shop.refuse["weave"] = UnsupportedError("no such cloth")
    elif refusal == "texts":
        monkeypatch.setattr(runner, "check_texts", refuse(RecipeError("no such text")))
    else:
        monkeypatch.setattr(runner, "check_installed", refuse(MissingDependencyError("no loom")))
    with pytest.raises(PipelineError, match=r"no such|no loom"):
        shop.run()
    assert shop.page() == before
    assert shop.folders() == ["coat"]


def test_a_page_that_cannot_be_written_does_not_hide_the_failure(shop: Shop) -> None:
    shop.refuse["try-on"], shop.fail["page"] = PROOF, StageError("no ink")
    with pytest.raises(VerificationError, match="2 conformance checks failed"):
        shop.run()
    assert "warning: the failure could not be recorded: no ink." in shop.notes.notes

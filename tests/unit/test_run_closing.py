"""What the commands say at the end: ``run`` its verdict, ``plan`` what stored numbers close."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.cli import main as command_line
from pipeline.effort.planned import Effort
from pipeline.effort.stages import Machine
from pipeline.errors import PipelineError, StageError, VerificationError
from pipeline.recipe.schema import Recipe
from pipeline.running import planner, runner
from pipeline.stages.base import Deployment, Stage, StageContext
from pipeline.store.artifact import Artifact
from pipeline.verdict.checks import check_checkpoint, gates_of
from pipeline.verdict.closing import closing_lines
from pipeline.verdict.decision import decide

from .verdict.samples import CONFORMANCE, estimate, evaluation, report, task

NO_EFFORT = Effort(Machine(None, None, None), (), (), None)

RECIPE = """\
schema: 1
name: t
model: {source: examples/tiny_llama/model}
quantize: {format: float16}
evaluate: {text: examples/tiny_llama/data/heldout.jsonl}
"""
WORSE = {"perplexity_increase": estimate(0.05, 0.04, 0.06)}
WRONG = {"passed": 24, "failed": 1, "skipped": 0}


class Works:
    """Three stages around the real gates: what was measured, what is served, the page.

    Attributes:
        measured: What the first stage says that it measured.
        wrong: Whether the server answers wrongly.
        broken: Whether the second stage breaks down.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Written in float16, as the source is.
        self.measured: dict[str, Any] = evaluation(signal_to_noise=[])
        self.wrong = self.broken = False
        (folder / "recipe.yaml").write_text(RECIPE)

    def stages(self) -> tuple[Stage, ...]:
        # ``plan`` asks for the one whose artifact engines are compiled from.
        written = Stage("quantize", 1, "write", (), lambda _context: {}, lambda _recipe: {})
        measure = Stage(
            "evaluate", 1, "measure", ("quantize",),
            lambda _context: self.measured, lambda _recipe: {}, check=check_checkpoint,
            material=lambda _recipe: {"measured": self.measured},
        )  # fmt: skip
        serve = Stage(
            "repository", 1, "serve", ("evaluate",), self._serve, lambda _recipe: {},
            check=self._check, material=lambda _recipe: {"wrong": self.wrong},
            deployment=Deployment(folder="repository"),
        )  # fmt: skip
        page = Stage(
            "report", 1, "write up", ("evaluate", "repository"), self._page,
            lambda recipe: recipe.model_dump(mode="json"), always=True,
            deployment=Deployment(files=("report.json", "report.html")),
        )  # fmt: skip
        return (written, measure, serve, page)

    def _serve(self, _context: StageContext) -> dict[str, Any]:
        if self.broken:
            raise StageError("the needle broke")
        return WRONG if self.wrong else {}

    def _check(self, _recipe: Recipe, artifact: Artifact) -> None:
        if artifact.facts:
            raise VerificationError("1 conformance check failed")

    def _page(self, context: StageContext) -> dict[str, Any]:
        gates = gates_of(context.recipe, context.inputs["evaluate"].facts)
        served = "repository" in context.inputs
        decision = decide(gates, CONFORMANCE if served else None, context.failure)
        verdict = {
            "verdict": decision.verdict,
            "headline": decision.headline,
            "status": decision.status,
        }
        found = report(
            verdict=verdict,
            gates=[gate.as_dict() for gate in gates],
            quality=dict(context.inputs["evaluate"].facts),
            conformance=CONFORMANCE if served else None,
        )
        (context.output / "report.json").write_text(json.dumps(found))
        (context.output / "report.html").write_text("<p>")
        return {}

    def call(self, command: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
        """The exit code of one command line on the recipe."""
        monkeypatch.setattr(planner, "STAGES", self.stages())
        words = [command, str(self.folder / "recipe.yaml")]
        words += ["--build-dir", str(self.folder / "build"), *arguments]
        monkeypatch.setattr(sys, "argv", ["trtllm-pipeline", *words])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code


@pytest.fixture
def works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Works:
    monkeypatch.setattr(runner, "check_local_model", lambda _recipe: None)
    monkeypatch.setattr(command_line, "guard_streams", lambda: None)
    monkeypatch.setattr(command_line, "discard_unwritten", lambda: None)
    return Works(tmp_path)


CALL = pytest.MonkeyPatch


def test_a_run_ends_with_its_verdict_also_when_nothing_was_done(
    works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    ends = []
    for status in ("done", "cached"):
        assert works.call("run", monkeypatch=monkeypatch) == 0
        out = capsys.readouterr().out
        stages, _, end = out.partition("\n\n")
        assert [line.split()[1] for line in stages.splitlines()] == [status] * 4
        ends.append(end)
    assert ends[0] == ends[1]
    outputs = works.folder / "build" / "t"
    assert ends[0].splitlines() == [
        "verdict:     Ships. Perplexity +0.01 % [-0.09 %, +0.11 %] of at most 2 %, 25 of 25 checks",
        "size:        2.60 MiB, 2.7x smaller than 16 bit (7.00 MiB)",
        (
            "quality:     perplexity +0.01 % [-0.09 %, +0.11 %] of at most 2 %, "
            "agreement 96.70 % [96.30 %, 97.10 %] of at least 95 %"
        ),
        "conformance: 25 passed, 1 skipped",
        "speed:       2,156 [2,050, 2,260] tokens/s at 8 streams",
        "time:        41.2 s of work in 2 stages",
        f"report:      {outputs / 'report.html'}",
        f"next:        trtllm-pipeline serve {outputs / 'repository'}",
    ]


@pytest.mark.parametrize("times", ["first", "cached"])
def test_a_closed_gate_is_in_the_last_lines_before_the_error(
    times: str, works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    assert works.call("run", monkeypatch=monkeypatch) == 0
    works.measured = evaluation(signal_to_noise=[], **WORSE)
    if times == "cached":
        assert works.call("run", monkeypatch=monkeypatch) == 4
    capsys.readouterr()
    assert works.call("run", monkeypatch=monkeypatch) == 4
    shown = capsys.readouterr()
    end = shown.out.partition("\n\n")[2].splitlines()
    assert end[0] == (
        "verdict:     Does not ship. Perplexity +5.00 % [+4.00 %, +6.00 %] of at most 2 %"
    )
    assert "of at most 2 % REGRESSION" in end[2]
    assert end[3] == "conformance: not reached"
    assert end[-2].startswith("report:")
    outputs = works.folder / "build" / "t"
    assert end[-1] == f"repository:  {outputs / 'repository'} is that of an earlier run"
    assert shown.err.count("error: ") == 1
    assert "the checkpoint is worse than the recipe allows" in shown.err


def test_a_server_that_answers_wrongly(
    works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    works.wrong = True
    assert works.call("run", monkeypatch=monkeypatch) == 6
    shown = capsys.readouterr()
    assert "verdict:     Does not ship. repository: 1 conformance check failed" in shown.out
    assert "next:" not in shown.out
    assert "repository: " not in shown.out.partition("report:")[2]


def test_a_run_that_broke_down_and_one_that_was_refused(
    works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    works.broken = True
    assert works.call("run", monkeypatch=monkeypatch) == 5
    assert "verdict:     Not finished. repository: the needle broke" in capsys.readouterr().out
    # The page of the run before says nothing about this one.
    missing = "evaluate.text=no.txt"
    assert works.call("run", "--set", missing, monkeypatch=monkeypatch) == 2
    assert "verdict:" not in capsys.readouterr().out
    assert works.call("run", "--set", missing, "--json", monkeypatch=monkeypatch) == 2
    assert "verdict" not in json.loads(capsys.readouterr().out)


def test_verdict_and_gates_in_json(
    works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    assert works.call("run", "--json", monkeypatch=monkeypatch) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["verdict"] == "ACCEPT"
    assert done["headline"].startswith("Ships.")
    assert {gate["verdict"] for gate in done["gates"]} == {"ACCEPT"}
    works.measured = evaluation(signal_to_noise=[], **WORSE)
    assert works.call("run", "--json", monkeypatch=monkeypatch) == 4
    failed = json.loads(capsys.readouterr().out)
    assert failed["error"] == "QualityGateError"
    assert failed["verdict"] == "REGRESSION"
    assert failed["gates"][0] == {
        "name": "perplexity_increase",
        "subject": "checkpoint",
        "measured": 0.05,
        "low": 0.04,
        "high": 0.06,
        "limit": 0.02,
        "verdict": "REGRESSION",
        "evidence": "perplexity +5.00 % [+4.00 %, +6.00 %] of at most 2 %",
        "more_tokens": None,
    }


def test_a_terminal_gets_colour_and_a_file_none(
    works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    works.measured = evaluation(signal_to_noise=[], **WORSE)
    assert works.call("run", monkeypatch=monkeypatch) == 4
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _self: True)
    assert works.call("run", monkeypatch=monkeypatch) == 4
    shown = capsys.readouterr().out
    assert "\x1b[1;31mverdict:" in shown
    # What is there to be copied is whole, however long it is.
    assert f"{works.folder / 'build' / 't' / 'report.html'}\n" in shown


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_breaks_no_line_of_the_last_ones(
    columns: int, works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    works.measured = evaluation(**WORSE)
    assert works.call("run", monkeypatch=monkeypatch) == 4
    told = capsys.readouterr().out.partition("\nverdict:")[2]
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _self: True)
    assert works.call("run", monkeypatch=monkeypatch) == 4
    lines = ("verdict:" + capsys.readouterr().out.partition("\nverdict:")[2]).splitlines()
    broken = [line for line in lines if not line.startswith(("report:", "next:"))]
    assert max(map(len, broken)) <= columns
    # What goes on stands below where it began, and nothing is lost or torn apart.
    assert {line[:13].strip() for line in broken} <= {
        *("", "verdict:", "size:", "quality:", "conformance:", "speed:", "time:")
    }
    assert " ".join(" ".join(lines).split()) == " ".join(f"verdict:{told}".split())
    assert all(line.count("[") == line.count("]") for line in lines)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_plan_tells_a_gate_that_stored_numbers_close(
    as_json: bool, works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    monkeypatch.setattr("pipeline.api.check_local_model", lambda _recipe: None)
    monkeypatch.setattr("pipeline.api.check_model", lambda _recipe, _path: None)
    monkeypatch.setattr("pipeline.api.check_hub_model", lambda _recipe: None)
    monkeypatch.setattr("pipeline.api.remarks", lambda *_given: ())
    monkeypatch.setattr("pipeline.api.explain_engine", lambda *_given: None)
    monkeypatch.setattr("pipeline.api._roofline", lambda *_given: None)
    monkeypatch.setattr("pipeline.api.effort_left", lambda *_given: NO_EFFORT)
    options = ("--json",) if as_json else ()

    def planned(*more: str) -> tuple[int, Any]:
        code = works.call("plan", *options, *more, monkeypatch=monkeypatch)
        out = capsys.readouterr().out
        return code, json.loads(out) if as_json else out

    code, nothing = planned()
    assert code == 0
    assert works.call("run", monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    code, good = planned()
    assert code == 0
    # The numbers stay, the recipe asks for more.
    code, closed = planned("--set", "evaluate.gates.top1_agreement=0.99")
    assert code == 4
    if as_json:
        assert (nothing["verdict"], nothing["gates"], nothing["refusal"]) == (None, [], None)
        assert (good["verdict"], good["refusal"]) == ("ACCEPT", None)
        assert closed["verdict"] == "REGRESSION"
        assert closed["refusal"]["exit_code"] == 4
        assert "gates" not in closed["refusal"]
        assert [gate["verdict"] for gate in closed["gates"]][:2] == ["ACCEPT", "REGRESSION"]
    else:
        assert "gates:" not in nothing
        assert "  ACCEPT  perplexity +0.01 %" in good
        assert "  REGRESSION  agreement 96.70 % [96.30 %, 97.10 %] of at least 99 %" in closed
        assert "\nREGRESSION: a run would stop at stored numbers: --set evaluate.gates" in closed
    assert works.call(
        "run", "--set", "evaluate.gates.top1_agreement=0.99", monkeypatch=monkeypatch
    ) == (4)
    capsys.readouterr()
    works.wrong = True
    assert works.call("run", monkeypatch=monkeypatch) == 6
    capsys.readouterr()
    code, wrong = planned()
    assert code == 6
    assert (wrong["verdict"] if as_json else wrong).count("FAILED") == 1
    # A text that is missing stops a run before any gate does.
    code, _ = planned("--set", "evaluate.text=no.txt")
    assert code == 2


def test_every_error_of_a_run_can_carry_what_was_found() -> None:
    error = PipelineError("it broke")
    error.found = {**error.found, "verdict": "UNFINISHED"}
    assert error.as_dict()["verdict"] == "UNFINISHED"


def test_the_last_lines_have_the_accuracy_of_every_task() -> None:
    tasks = [task(), task(name="mmlu", rows=1140, accuracy=estimate(None), source_accuracy=0.25)]
    lines = closing_lines(report(quality=evaluation(tasks=tasks)))
    assert (
        "tasks:       hellaswag 60.0 [53.0, 67.0] % of 200 (source 61.0 %), "
        "mmlu - % of 1,140 (source 25.0 %)"
    ) in lines
    assert not any(line.startswith("tasks:") for line in closing_lines(report()))


def test_a_quiet_run_prints_its_verdict_alone(
    works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    assert works.call("run", "--quiet", monkeypatch=monkeypatch) == 0
    told = capsys.readouterr()
    (line,) = told.out.splitlines()
    assert line.startswith("verdict:     Ships. Perplexity +0.01 %")
    assert told.err == ""
    works.measured = evaluation(signal_to_noise=[], **WORSE)
    assert works.call("run", "--quiet", monkeypatch=monkeypatch) == 4
    told = capsys.readouterr()
    assert told.out.startswith("verdict:")
    assert len(told.out.splitlines()) == 1
    assert told.err.startswith("error: ")
    assert len(told.err.splitlines()) == 1


def test_a_failed_run_has_its_stages_as_json(
    works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: CALL
) -> None:
    works.broken = True
    assert works.call("run", "--json", monkeypatch=monkeypatch) == 5
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == "the needle broke"
    assert [stage["stage"] for stage in found["stages"]] == ["quantize", "evaluate", "report"]
    assert found["outputs"] == str(works.folder / "build" / "t")


def test_a_run_leaves_junit_of_its_checks_or_why_there_were_none(
    works: Works, monkeypatch: CALL
) -> None:
    file = works.folder / "checks.xml"
    words = ("run", "--junit", str(file))
    works.measured = evaluation(signal_to_noise=[], **WORSE)
    assert works.call(*words, monkeypatch=monkeypatch) == 4
    (case,) = ElementTree.parse(file).getroot().iter("testcase")
    (failure,) = case.iter("failure")
    assert case.get("name") == "run"
    assert "the checkpoint is worse than the recipe allows" in str(failure.get("message"))
    # The stage with the checks leaves its own file, which is taken as it is, also when they failed.
    monkeypatch.setattr(Works, "_serve", _with_checks)
    works.measured, works.wrong = evaluation(signal_to_noise=[]), True
    assert works.call(*words, monkeypatch=monkeypatch) == 6
    assert file.read_text() == "<the checks/>"


def _with_checks(works: Works, context: StageContext) -> dict[str, Any]:
    (context.output / "verify.xml").write_text("<the checks/>")
    return WRONG if works.wrong else {}

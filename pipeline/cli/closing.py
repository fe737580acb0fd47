"""How a run's verdict reaches whoever started it: its last lines, and its JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.running.planner import PlannedStage

PAGE, DATA, REPOSITORY = "report.html", "report.json", "repository"


class Closing:
    """Remembers the report of a run while its stages go by.

    Attributes:
        report: ``report.json`` of this run; None where it was not reached.
    """

    def __init__(self) -> None:
        self.report: dict[str, Any] | None = None

    def look(self, planned: PlannedStage) -> None:
        """Takes the report out of a stage that was brought up to date, if it is that one."""
        if planned.artifact is None or planned.stage.deployment is None:
            return
        if DATA in planned.stage.deployment.files:
            text = (planned.artifact.path / DATA).read_text(encoding="utf-8")
            self.report = json.loads(text)

    def values(self) -> dict[str, Any]:
        """Returns verdict and gates for ``--json``; nothing where there is no report."""
        if self.report is None:
            return {}
        verdict = self.report["verdict"]
        return {
            "verdict": verdict["verdict"],
            "headline": verdict["headline"],
            "gates": self.report["gates"],
        }

    def _earlier(self, repository: Path) -> Path | None:
        """What an earlier run deployed and this one did not replace; None where there is none."""
        assert self.report is not None
        served = self.report.get("conformance")
        replaced = served and not served["failed"]
        failed = self.report["verdict"]["status"] != "passed"
        return repository if failed and not replaced and repository.is_dir() else None

    def print(
        self,
        outputs: Path,
        repository: Path | None = None,
        *,
        export: Path | None = None,
        steps: Sequence[str] = (),
        verdict_alone: bool = False,
    ) -> bool:
        """Prints the last lines to stdout, in colour on a terminal.

        Args:
            outputs: The recipe's output folder, where the report was put.
            repository: What may be served; None where there is nothing.
            export: What another program runs; None where there is nothing.
            steps: How it is run, as lines of shell.
            verdict_alone: Prints the first line only.

        Returns:
            Whether there was a report to print.
        """
        from pipeline.verdict.closing import closing_lines

        if self.report is None:
            return False
        if self.report["verdict"]["status"] != "passed":
            repository, steps = None, ()
        lines = closing_lines(
            self.report,
            page=outputs / PAGE,
            repository=repository,
            earlier=self._earlier(outputs / REPOSITORY),
            export=export,
            steps=steps,
        )
        if verdict_alone:
            lines = lines[:1]
        else:
            print()
        if sys.stdout.isatty():
            _print_on_terminal(lines, self.report["verdict"])
        else:
            print("\n".join(lines), flush=True)
        return True


def _print_on_terminal(lines: list[str], verdict: Mapping[str, Any]) -> None:
    """In colour, and broken between words below where the texts begin."""
    from rich.console import Console
    from rich.text import Text

    from pipeline.cli.console import fitted
    from pipeline.tables import COLOURS
    from pipeline.verdict.closing import LABEL, WHOLE
    from pipeline.verdict.decision import TONES

    console = Console(highlight=False)
    for index, line in enumerate(lines):
        name = line[:LABEL].partition(":")[0].strip()
        # A path or a command is left to the terminal, so that it can be copied whole.
        parts = [line] if name in WHOLE else fitted([line], sys.stdout, LABEL)
        shown = Text("\n".join(parts))
        shown.stylize("bold", 0, len(name) + 1)
        if not index:
            shown = Text(shown.plain, style=f"bold {COLOURS[TONES[verdict['verdict']]]}")
        console.print(shown, soft_wrap=True)

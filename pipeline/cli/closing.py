"""How a run's verdict reaches whoever started it: its last lines, and its JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.running.planner import PlannedStage

PAGE, DATA, REPOSITORY = "report.html", "report.json", "repository"
_COLOURS = {"passed": "green", "unfinished": "yellow", "failed": "red"}


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

    def print(self, outputs: Path, repository: Path | None = None) -> bool:
        """Prints the last lines to stdout, in colour on a terminal.

        Args:
            outputs: The recipe's output folder, where the report was put.
            repository: What may be served; None where there is nothing.

        Returns:
            Whether there was a report to print.
        """
        from pipeline.verdict.closing import closing_lines

        if self.report is None:
            return False
        if self.report["verdict"]["status"] != "passed":
            repository = None
        lines = closing_lines(
            self.report,
            page=outputs / PAGE,
            repository=repository,
            earlier=self._earlier(outputs / REPOSITORY),
        )
        print()
        if sys.stdout.isatty():
            _print_in_colour(lines, self.report["verdict"])
        else:
            print("\n".join(lines), flush=True)
        return True


def _print_in_colour(lines: list[str], verdict: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from pipeline.cli.console import fitted
    from pipeline.verdict.closing import LABEL, NEXT

    console = Console(highlight=False)
    first, *others = lines
    for part in fitted([first], sys.stdout, LABEL):
        console.print(Text(part, style=f"bold {_COLOURS[verdict['status']]}"), soft_wrap=True)
    for line in others:
        # A command is left to the terminal, so that it can be copied whole.
        copied = line.startswith(NEXT)
        begin, *rest = [line] if copied else fitted([line], sys.stdout, LABEL)
        name, _, text = begin.partition(":")
        console.print(Text.assemble((f"{name}:", "bold"), text), soft_wrap=True)
        for part in rest:
            console.print(Text(part), soft_wrap=True)

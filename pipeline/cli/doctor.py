"""The command ``doctor``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import BuildDirOption, Output
from pipeline.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from pipeline.cli.diagnosis import Examination
    from pipeline.effort.rates import Rates
    from pipeline.targets.base import Diagnosis

OK, MISSING, NOTE = "ok", "missing", "note"
_INDENT = " " * (len(MISSING) + 2)


def doctor(
    *,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="T",
            help="Look at one compile target; the exit code is 3 where its whole chain cannot run.",
        ),
    ] = None,
    build_dir: BuildDirOption = Path("build"),
    port: Annotated[
        list[int] | None,
        typer.Option(
            "--port",
            min=1,
            max=65535,
            help="A port that has to be free, instead of looking at 8000 to 8002; repeatable.",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Also measure processor, GPU and disk for some seconds; plan then says times.",
        ),
    ] = False,
    output: Output,
) -> None:
    """Check this machine: what is installed, what can run, and what is missing."""
    from pipeline.cli.console import fitted, print_json
    from pipeline.cli.diagnosis import diagnose

    found = diagnose(target, build_dir, port or ())
    measured = _measured(build_dir) if measure else None
    if output.json:
        print_json({**found.as_dict(), **({"measured": measured.as_dict()} if measured else {})})
    else:
        _print(found)
        if measured:
            from pipeline.effort.lines import measured_lines

            print()
            for part in fitted(measured_lines(measured, build_dir), sys.stdout, 4):
                _line(part, "", 0)
    if not found.ok:
        raise typer.Exit(UnsupportedError.exit_code)


def _measured(build_dir: Path) -> Rates:
    """Measures this machine and keeps the rates where ``plan`` finds them."""
    from pipeline.effort.measure import measure
    from pipeline.effort.rates import NAME, remember
    from pipeline.store.build_dir import BuildDir

    folder = BuildDir(build_dir).store.root
    rates = measure(folder)
    try:
        remember(folder, rates)
    except OSError as error:
        raise UsageError(
            "the rates cannot be kept",
            where=str(folder / NAME),
            why=error.strerror,
            fix="Correct the permissions, or name another --build-dir",
        ) from error
    return rates


def _print(found: Examination) -> None:
    from pipeline.cli.console import fitted
    from pipeline.tables import COLOURS

    styles = {OK: COLOURS["good"], MISSING: COLOURS["bad"], NOTE: COLOURS["open"]}
    names = [finding.name for findings in found.groups.values() for finding in findings]
    width = max(map(len, names)) + 2
    for group, findings in found.groups.items():
        _line(group, "bold", len(group))
        for finding in findings:
            status = _status(finding)
            line = f"{status:<{len(_INDENT)}}{finding.name:<{width}}{finding.value}"
            for index, part in enumerate(fitted([line], sys.stdout, len(_INDENT) + width)):
                _line(part, "" if index else styles[status], len(status))
            if not finding.ok:
                for part in fitted([f"{_INDENT}{finding.advice.rstrip('.')}."], sys.stdout, 0):
                    _line(part, "", 0)
        print()
    for part in fitted(_summary(found), sys.stdout):
        _line(part, "", 0)


def _summary(found: Examination) -> Iterator[str]:
    if lacking := found.lacking(None):
        yield f"this tool cannot run here, for lack of: {', '.join(lacking)}"
    for name in found.targets:
        lacking = found.lacking(name)
        yield f"target {name}: " + (
            f"cannot run here, for lack of: {', '.join(lacking)}" if lacking else "ready"
        )


def _status(finding: Diagnosis) -> str:
    if finding.ok:
        return OK
    return MISSING if finding.needed else NOTE


def _line(text: str, style: str, upto: int) -> None:
    """Prints a line whose beginning has a style where it is a terminal that shows it."""
    if not style or not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.text import Text

    shown = Text(text)
    shown.stylize(style, 0, upto)
    Console().print(shown, soft_wrap=True, highlight=False)

"""The command ``plan``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import (
    BuildDirOption,
    DirectoryOption,
    Output,
    PriceOption,
    RecipeArgument,
    SetOption,
    UtilizationOption,
    new_file,
)
from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from pipeline.api import Plan
    from pipeline.verdict.gate import GateResult

STDOUT = Path("-")
EXECUTABLE = 0o755


def plan(
    *,
    recipe: RecipeArgument,
    overrides: SetOption = None,
    directory: DirectoryOption = None,
    build_dir: BuildDirOption = Path("build"),
    price: PriceOption = None,
    utilization: UtilizationOption = None,
    script: Annotated[
        Path | None,
        typer.Option(
            "--script",
            metavar="FILE",
            help="Write a script that builds the engine on another machine; - prints it alone.",
        ),
    ] = None,
    output: Output,
) -> None:
    """Show what a run would do, and why, without doing it.

    The exit code is 0 where a run could go on, 2 where a text is missing,
    3 where this machine is too small, and that of the gate or check at
    which stored results would stop it.
    """
    from dataclasses import asdict

    from pipeline import api
    from pipeline.cli.console import open_recipe, print_json
    from pipeline.cli.stage_lines import stage_dict, stage_line
    from pipeline.economics import bounds
    from pipeline.effort.lines import effort_lines
    from pipeline.targets.findings import finding_lines

    costs = {"price_per_hour": price, "utilization": utilization}
    said = [f"cost.{key}={value}" for key, value in costs.items() if value is not None]
    loaded = open_recipe(recipe, [*(overrides or ()), *said], directory, quiet=output.quiet)
    if script == STDOUT:
        if output.json:
            raise UsageError(
                "--script - and --json both print to stdout", fix="Give --script a file"
            )
        print(api.build_script(loaded, build_dir), end="")
        return
    if script and new_file(script):
        _write(script, api.build_script(loaded, build_dir))
    found = api.plan(loaded, build_dir)
    end_ids, engine, obstacle = found.end_ids, found.engine, found.obstacle
    if output.json:
        print_json(
            {
                "recipe": loaded.name,
                "stages": [stage_dict(planned) for planned in found.stages],
                "end_ids": end_ids.as_dict() if end_ids else None,
                "findings": [asdict(finding) for finding in found.findings],
                "engine": dict(engine.values) if engine else None,
                "effort": found.effort.as_dict() if found.effort else None,
                "obstacle": obstacle.as_dict() if obstacle else None,
                "roofline": found.roofline.as_dict() if found.roofline else None,
                "checkpoint": str(found.checkpoint) if found.checkpoint else None,
                "gates": [gate.as_dict() for gate in found.gates],
                "verdict": found.verdict,
                "refusal": _plain(found.refusal),
                **({"script": str(script)} if script else {}),
            }
        )
        _exit(found.exit_code)
        return
    if output.quiet:
        _print_fitted(_stops(found))
        _exit(found.exit_code)
        return
    lines = [stage_line(planned, verbose=output.verbose) for planned in found.stages]
    if found.effort and (said := list(effort_lines(found.effort.stages, found.effort.machine))):
        lines += ["", *said]
    named = end_ids.lines() if end_ids else ["end ids: read when the model is fetched"]
    lines += ["", *named, *finding_lines(found.findings)]
    if engine:
        lines += ["", *engine.lines]
    if found.roofline:
        lines += ["", *bounds.lines(found.roofline, loaded.cost)]
    if found.gates:
        lines += ["", *_gate_lines(found.gates)]
    for line in _stops(found):
        lines += ["", line]
    _print_fitted(lines)
    if script and found.checkpoint:
        print(f"\nscript: {script}\ncheckpoint: {found.checkpoint}")
        print("\n".join(_next_steps(script, found.checkpoint)))
    _exit(found.exit_code)


def _stops(found: Plan) -> list[str]:
    """What would stop a run, a line each."""
    lines = []
    if found.obstacle:
        lines.append(f"this run would fail: {found.obstacle}")
    if found.refusal:
        lines.append(f"{found.verdict}: a run would stop at stored numbers: {found.refusal}")
    return lines


def _print_fitted(lines: Sequence[str]) -> None:
    from pipeline.cli.console import fitted

    if lines:
        print("\n".join(fitted(lines, sys.stdout)))


def _exit(code: int) -> None:
    if code:
        raise typer.Exit(code)


def _gate_lines(gates: Sequence[GateResult]) -> list[str]:
    """One line for each gate that stored numbers were held against."""
    width = max(len(gate.verdict) for gate in gates)
    return ["gates:", *(f"  {gate.verdict:<{width}}  {gate.evidence}" for gate in gates)]


def _plain(error: PipelineError | None) -> dict[str, Any] | None:
    """An error without what it found, which is beside it."""
    if error is None:
        return None
    return {name: value for name, value in error.as_dict().items() if name not in error.found}


def _next_steps(script: Path, checkpoint: Path) -> list[str]:
    """What brings script and checkpoint to the machine that builds, as lines to copy."""
    there = shlex.join(["bash", script.name, "checkpoint", "engine"])
    return [
        "next, BOX being the machine with the GPU and checkpoint a new folder there:",
        f"  {shlex.join(['scp', '-r', str(checkpoint), 'BOX:checkpoint'])}",
        f"  {shlex.join(['scp', str(script), 'BOX:'])}",
        f"  ssh BOX {shlex.quote(there)}",
    ]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
        path.chmod(EXECUTABLE)
    except OSError as error:
        raise UsageError(
            "the script cannot be written",
            where=str(path),
            why=error.strerror,
            fix="Name another file, or correct the permissions",
        ) from error

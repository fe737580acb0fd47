"""The command ``doctor``."""

from __future__ import annotations

from pipeline.cli.options import Output


def doctor(output: Output) -> None:
    """Say what is installed here, what can run, and what to do about the rest."""
    from dataclasses import asdict

    from pipeline.cli.console import print_json
    from pipeline.cli.diagnosis import diagnose

    findings = diagnose()
    if output.json:
        print_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        mark = "ok " if finding.ok else "-- "
        advice = "" if finding.ok else f"  {finding.advice}"
        print(f"{mark} {finding.name:<16} {finding.value:<14}{advice}".rstrip())

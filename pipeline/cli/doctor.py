"""The command ``doctor``."""

from __future__ import annotations

from pipeline.cli.options import Output


def doctor(output: Output) -> None:
    """Check this machine: what is installed, what can run, and what is missing."""
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

"""Runs the phases and prints a table; exit code 1 where something is not as it should be."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pipeline.tables import print_table
from scripts.ray_proof.application import Application, beyond_loopback
from scripts.ray_proof.cluster import cluster, free_port
from scripts.ray_proof.phases import Phase, Run

PROXIES = {"python": "0", "haproxy": "1"}
ALL = ("steady", "scale", "kill", "update")


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="ray-proof", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("build/tiny-llama-int4-awq"))
    parser.add_argument("--proxy", choices=(*PROXIES, "both"), default="both")
    parser.add_argument("--phases", default=",".join(ALL), help="of steady,scale,kill,update,alone")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("build/ray-proof.json"))
    asked = parser.parse_args()
    # So that nothing is left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = asked.phases.split(",")
    report = {}
    for proxy in PROXIES if asked.proxy == "both" else (asked.proxy,):
        with tempfile.TemporaryDirectory(prefix="ray-proof-") as place:
            phases, ports = run(asked, proxy, wanted, Path(place))
        show(proxy, phases, ports)
        report[proxy] = {"phases": [asdict(phase) for phase in phases], "open ports": ports}
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text(json.dumps(report, indent=1) + "\n")
    wrong = [
        f"{proxy}: {phase['name']}: {text}"
        for proxy, part in report.items()
        for phase in part["phases"]
        for text in phase["wrong"]
    ]
    print("\n".join(wrong) if wrong else "all is as it should be")
    return bool(wrong)


def run(
    asked: argparse.Namespace, proxy: str, wanted: list[str], place: Path
) -> tuple[list[Phase], list[str]]:
    """Runs the phases behind one kind of proxy; returns them, and what listens beyond loopback."""
    repository, other = asked.repository.resolve(), place / "other" / asked.repository.name
    shutil.copytree(repository, other, symlinks=True)
    written = place / "manifests"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pipeline",
            "manifests",
            str(repository),
            "--kind=ray",
            f"--output={written}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    phases = []
    with cluster({"RAY_SERVE_ENABLE_HA_PROXY": PROXIES[proxy]}) as nodes:
        application = Application(nodes, written / "serve.yaml")
        runs = Run(
            application,
            repository,
            other,
            port=free_port(),
            model="proof",
            streams=asked.streams,
            max_tokens=asked.max_tokens,
        )
        try:
            for phase in chosen(runs, wanted):
                print(f"{phase.name}: done", file=sys.stderr)
                phases.append(phase)
            ports = beyond_loopback(nodes)
        finally:
            # Before the cluster ends: Ray ends a process whose cluster is gone.
            application.close()
    return phases, ports


def chosen(runs: Run, wanted: list[str]) -> Iterator[Phase]:
    """Yields the phases that are wanted, as they are done."""
    yield runs.undisturbed()
    if "steady" in wanted:
        yield runs.steady()
    if "scale" in wanted:
        yield runs.scale()
    if "kill" in wanted:
        yield runs.kill()
    if "update" in wanted:
        yield runs.update(2)
    if "alone" in wanted:
        yield runs.update(1)
        yield runs.update(1, surge=100)


def show(proxy: str, phases: list[Phase], ports: list[str]) -> None:
    """Prints what was seen."""
    print_table(
        (
            "phase",
            "requests",
            "tokens/s",
            "errors",
            "other text",
            "stall s",
            "silence s",
            "replicas",
        ),
        [
            (
                phase.name,
                phase.saw.requests,
                f"{phase.saw.tokens_per_second:,.0f}",
                phase.saw.errors,
                phase.saw.different,
                f"{phase.saw.stall_s:.2f}",
                f"{phase.saw.silence_s:.2f}",
                f"{phase.fewest} to {phase.most}",
            )
            for phase in phases
        ],
        title=f"{asked_streams(phases)} streams behind the proxy {proxy}",
        right=(2, 5, 6),
    )
    for phase in phases:
        for name, value in phase.notes.items():
            print(f"{phase.name}: {name}: {value}")
    print(f"listens beyond loopback: {', '.join(ports) or 'nothing'}")


def asked_streams(phases: list[Phase]) -> int:
    """The streams of a full load."""
    return max(phase.streams for phase in phases)


if __name__ == "__main__":
    sys.exit(main())

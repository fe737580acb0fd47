"""What is done to the application while clients stream from it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from scripts.ray_proof.application import REPLICAS, Application, Counts
from scripts.ray_proof.costs import per_token_us, processor_seconds
from scripts.ray_proof.traffic import Summary, Traffic, summarize

PROMPTS = tuple(
    f"Once there was a {kind} named {name}"
    for kind, name in (
        *(("girl", "Zoë"), ("boy", "Jack"), ("cat", "Shadow"), ("hen", "Molly")),
        *(("king", "Otto"), ("singer", "Ada"), ("dog", "Rex"), ("farmer", "Hugh")),
    )
)
STEADY_S, SETTLED_S = 15.0, 4.0
LONG_S = 3.0
"""A stall of which it is told when it was."""
FEW = 2
"""Streams that one replica is enough for."""


@dataclass
class Phase:
    """One phase and what was seen.

    Attributes:
        name: What was done.
        streams: How many there were.
        saw: What the clients saw.
        fewest: Replicas that ran at the least.
        most: And at the most.
        notes: What else was measured.
        wrong: What must not be; empty where all is as it should be.
    """

    name: str
    streams: int
    saw: Summary
    fewest: int
    most: int
    notes: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Run:
    """The phases, one after the other, on one application.

    Args:
        application: The application.
        repository: What it serves first.
        other: The same files in another place, which is an update.
        port: Where it answers.
        model: What clients call the model.
        streams: Streams of a full load.
        max_tokens: Tokens of each answer.
    """

    def __init__(
        self,
        application: Application,
        repository: Path,
        other: Path,
        *,
        port: int,
        model: str,
        streams: int,
        max_tokens: int,
    ) -> None:
        self.application, self.places = application, (repository, other)
        self._at = 0
        self.port, self.streams = port, streams
        self._arguments = {
            "model": model,
            "gateways": 2,
            "gateway_cpus": 0.5,
            "replica_cpus": 1.5,
            "min_replicas": 1,
            "max_replicas": 2,
        }
        self.traffic = Traffic(f"http://127.0.0.1:{port}/v1", model, PROMPTS, max_tokens)
        self.expected: dict[str, str] = {}

    def deploy(self, fewest: int, most: int, *, surge: int = 0) -> None:
        """Deploys the repository that it is at, with so many replicas."""
        arguments = {
            **self._arguments,
            "repository": str(self.places[self._at]),
            "surge_percent": surge,
        }
        replicas = {
            "ray_actor_options": {"num_cpus": 1.5},
            "max_surge_percent": surge,
            "autoscaling_config": {
                "min_replicas": fewest,
                "max_replicas": most,
                "target_ongoing_requests": self.streams * 0.4,
                "upscale_delay_s": 3,
                "downscale_delay_s": 8,
                "look_back_period_s": 12,
            },
        }
        gateways = {
            "num_replicas": 2,
            "ray_actor_options": {"num_cpus": 0.5},
            "max_surge_percent": surge,
        }
        self.application.deploy(arguments, {REPLICAS: replicas, "gateway": gateways}, self.port)

    def servers(self) -> list[psutil.Process]:
        """The tritonservers of the cluster."""
        found = []
        for process in self.application.cluster.named("tritonserver"):
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("tritonserver"):
                    found.append(process)
        return found

    def actors(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        return self.application.cluster.named(f":{REPLICAS}")

    def undisturbed(self) -> Phase:
        """Asks everything once, for the texts that all later ones have to equal."""
        self.deploy(1, 1)
        started = self.application.wait(lambda: self.application.runs(1), "one replica runs")
        with self._phase("undisturbed", 1) as phase:
            self.traffic.run(1)
            while len({one.prompt for one in self.traffic.seen if one.text}) < len(PROMPTS):
                time.sleep(0.2)
                if any(one.error for one in self.traffic.seen):
                    break
            seen = self.traffic.stop()
            self.expected = {one.prompt: one.text for one in seen if not one.error}
            phase.saw = summarize(seen, self.expected)
        phase.notes["start of the application (s)"] = round(started, 1)
        return phase

    def steady(self) -> Phase:
        """Loads one replica fully, and looks where the processor's time goes."""
        with self._phase("full load on one replica", self.streams) as phase:
            self.traffic.run(self.streams)
            time.sleep(SETTLED_S)
            before = processor_seconds(self.application.cluster)
            began, tokens = time.monotonic(), sum(len(one.arrivals) for one in self.traffic.seen)
            time.sleep(STEADY_S)
            after = processor_seconds(self.application.cluster)
            pieces = sum(len(one.arrivals) for one in self.traffic.seen) - tokens
            seconds = time.monotonic() - began
            phase.saw = summarize(self.traffic.stop(), self.expected)
        phase.notes["pieces per second"] = round(pieces / seconds, 1)
        phase.notes["processor per piece (us)"] = {
            kind: round(amount) for kind, amount in per_token_us(before, after, pieces).items()
        }
        return phase

    def scale(self) -> Phase:
        """Loads one replica until there are two, and leaves few streams until there is one."""
        self.deploy(1, 2)
        self.application.wait(lambda: self.application.runs(1), "one replica runs")
        with self._phase("scaling 1 to 2 and back", self.streams) as phase:
            self.traffic.run(self.streams)
            up = self.application.wait(lambda: self.application.runs(2), "two replicas run")
            time.sleep(SETTLED_S)
            self.traffic.change(FEW)
            down = self.application.wait(lambda: self.application.runs(1), "one replica is left")
            time.sleep(SETTLED_S)
            phase.saw = summarize(self.traffic.stop(), self.expected)
        phase.notes |= {"to two (s)": round(up, 1), "back to one (s)": round(down, 1)}
        return phase

    def kill(self) -> Phase:
        """Kills one of two replicas."""
        self.deploy(2, 2)
        self.application.wait(lambda: self.application.runs(2), "two replicas run")
        with self._phase("one of two replicas killed", self.streams) as phase:
            self.traffic.run(self.streams)
            time.sleep(SETTLED_S)
            before, victim = self.servers(), self.actors()[0]
            its = {child.pid for child in victim.children(recursive=True)}
            killed = time.monotonic()
            victim.kill()
            mine = [server for server in before if server.pid in its]
            gone, _ = psutil.wait_procs(mine, timeout=20)
            phase.notes["its server was gone after (s)"] = round(time.monotonic() - killed, 1)
            if not mine or len(gone) < len(mine):
                phase.wrong.append("the server of a killed replica runs on")
            self.application.wait(
                lambda: self.application.runs(2) and victim.pid not in self._pids(),
                "two replicas run again",
            )
            phase.notes["two again after (s)"] = round(time.monotonic() - killed, 1)
            time.sleep(SETTLED_S)
            phase.saw = summarize(self.traffic.stop(), self.expected, since=killed)
        return phase

    def update(self, replicas: int, *, surge: int = 0) -> Phase:
        """Updates all replicas to a repository in another place."""
        self.deploy(replicas, replicas, surge=surge)
        self.application.wait(lambda: self.application.runs(replicas), f"so many run: {replicas}")
        name = f"rolling update, {replicas} replica{'s' * (replicas > 1)}"
        with self._phase(f"{name}, surge {surge} %" if surge else name, self.streams) as phase:
            self.traffic.run(self.streams)
            time.sleep(SETTLED_S)
            before = self._pids() | self._gateways()
            self._at = 1 - self._at
            self.deploy(replicas, replicas, surge=surge)
            began = time.monotonic()
            self.application.wait(
                lambda: (
                    self.application.runs(replicas)
                    and not before & (self._pids() | self._gateways())
                ),
                "all replicas and gateways are new",
            )
            phase.notes["took (s)"] = round(time.monotonic() - began, 1)
            time.sleep(SETTLED_S)
            phase.saw = summarize(self.traffic.stop(), self.expected, since=began)
        return phase

    def _gateways(self) -> set[int]:
        return {process.pid for process in self.application.cluster.named(":gateway")}

    def _pids(self) -> set[int]:
        return {process.pid for process in self.actors()}

    @contextlib.contextmanager
    def _phase(self, name: str, streams: int) -> Iterator[Phase]:
        phase = Phase(name, streams, summarize([], {}), 0, 0)
        with Counts(self.application) as counts:
            yield phase
        phase.fewest, phase.most = counts.fewest, counts.most
        phase.notes["replicas by second"] = [
            (round(at - counts.seen[0][0], 1), states) for at, states in counts.seen
        ]
        if phase.saw.stall_s > LONG_S:
            began = phase.saw.stalled_at - counts.seen[0][0]
            where = (
                f"after {phase.saw.stalled_after} pieces" if phase.saw.stalled_after else "at first"
            )
            phase.notes["longest stall"] = f"{where}, from second {began:.1f} on"
        if phase.saw.errors:
            phase.wrong.append(f"{phase.saw.errors} errors: {'; '.join(phase.saw.reasons)[:500]}")
        if phase.saw.different:
            phase.wrong.append(f"{phase.saw.different} texts differ from an undisturbed run")

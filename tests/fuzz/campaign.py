"""Sends many requests at a time, and looks between them whether the server is what it was."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.triton.server import TritonServer
from tests.fuzz.case import Case, to_json
from tests.fuzz.generate import Generator
from tests.fuzz.judge import Finding, find, is_tritons
from tests.fuzz.oracle import VALID, Limits, Oracle, Verdict
from tests.fuzz.schema import read_models
from tests.fuzz.shrink import shrink
from tests.fuzz.wire import Outcome, Wire

CLIENTS = 6
BATCH = 120
SETTLES_S = 60.0
GOLDEN = (
    "Once there was a gentle boy named Jack, and",
    "Once there was a girl named Zoë. She had a",
    "One day, the hen",
)


@dataclass
class Seen:
    """One finding with the requests that showed it."""

    finding: Finding
    case: Case
    verdict: Verdict
    outcome: Outcome
    numbers: list[int] = field(default_factory=list)
    smallest: Case | None = None


@dataclass
class Campaign:
    """What a run found.

    Attributes:
        verdicts: Requests by verdict.
        outcomes: Requests by verdict and what came of them.
        ways: Requests by model and way, and how many right ones of them were answered.
        tritons: Refusals that Triton gives a status of the server's, by text.
        faults: Requests by what was broken on the wire.
        slowest: Seconds of the slowest answer.
        restless: What was wrong with the server itself.
    """

    seed: int
    verdicts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    ways: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    tritons: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    seconds: float = 0.0
    goldens: int = 0
    seen: dict[tuple[str, ...], Seen] = field(default_factory=dict)
    restless: list[str] = field(default_factory=list)

    @property
    def right_answered(self) -> float:
        """The share of right requests that were answered; those given up on do not count."""
        answered = self.outcomes[VALID, "answered"]
        asked = self.verdicts[VALID] - self.outcomes[VALID, "cancelled"]
        return answered / asked if asked else 0.0


class Runner:
    """Runs one campaign on a server.

    Args:
        server: A running one.
        golden: What the first of :data:`GOLDEN` continues with, from elsewhere; None takes what the
            server says before anything else is asked of it.
    """

    def __init__(
        self, server: TritonServer, seed: int, golden: Mapping[str, str] | None = None
    ) -> None:
        self._server = server
        self.models = read_models(server.grpc_url)
        self.oracle = Oracle(
            self.models, _tokenizer(server.repository), read_limits(server.repository)
        )
        self.generator = Generator(self.models, seed, guides=self.oracle.guides)
        self.campaign = Campaign(seed)
        self._golden = dict(golden or {})
        self._processes = self._pids()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._wires: list[Wire] = []

    def run(self, count: int, first: int = 0) -> Campaign:
        """Sends ``count`` requests."""
        started = time.monotonic()
        self._check("before the first request")
        with ThreadPoolExecutor(CLIENTS) as pool:
            for begin in range(first, first + count, BATCH):
                numbers = range(begin, min(begin + BATCH, first + count))
                list(pool.map(self._one, numbers))
                if not self._check(f"after request {numbers[-1]}"):
                    break
        self.campaign.seconds = time.monotonic() - started
        return self.campaign

    def close(self) -> None:
        """Ends the clients' connections."""
        for wire in self._wires:
            wire.close()

    def shrink_all(self, most: int) -> None:
        """Makes the requests of the first findings as small as they can be."""
        for key, seen in list(self.campaign.seen.items())[:most]:
            if seen.finding.kind == "hang":
                continue

            def holds(case: Case, key: tuple[str, ...] = key) -> bool:
                found = self.try_one(case)[2]
                return found is not None and _key(case, found) == key

            seen.smallest = shrink(seen.case, holds)

    def try_one(self, case: Case) -> tuple[Verdict, Outcome, Finding | None]:
        """Sends one request and judges what comes back."""
        verdict = self.oracle.judge(case)
        outcome = self._wire().send(case)
        return verdict, outcome, find(case, verdict, outcome)

    def _wire(self) -> Wire:
        wire: Wire | None = getattr(self._local, "wire", None)
        if wire is None:
            wire = Wire(self._server.grpc_url, self._server.http_port)
            self._local.wire = wire
            with self._lock:
                self._wires.append(wire)
        return wire

    def _one(self, number: int) -> None:
        case = self.generator.case(number)
        verdict, outcome, found = self.try_one(case)
        with self._lock:
            campaign = self.campaign
            campaign.verdicts[verdict.word] += 1
            campaign.outcomes[verdict.word, outcome.kind] += 1
            campaign.ways[case.model, case.way, "all"] += 1
            if verdict.word == VALID and outcome.kind != "cancelled":
                campaign.ways[case.model, case.way, "right"] += 1
                campaign.ways[case.model, case.way, "answered"] += outcome.kind == "answered"
            campaign.faults.update(case.faults)
            campaign.slowest = max(campaign.slowest, outcome.seconds)
            if outcome.kind == "refused":
                campaign.statuses[outcome.status or "in the stream"] += 1
                if outcome.status.startswith(("5", "INTERNAL", "UNKNOWN")) and is_tritons(outcome):
                    campaign.tritons[normalized(outcome.message)[:90]] += 1
            if found is not None:
                key = _key(case, found)
                seen = campaign.seen.setdefault(key, Seen(found, case, verdict, outcome))
                seen.numbers.append(number)

    def _check(self, when: str) -> bool:
        """Whether the server still is what it was: processes, idle when idle, golden texts."""
        wrong = []
        if (now := self._pids()) != self._processes:
            wrong.append(f"the processes changed from {self._processes} to {now}")
        else:
            wrong += self._settle()
            wrong += self._goldens()
        self.campaign.restless += [f"{when}: {what}" for what in wrong]
        return not wrong

    def _pids(self) -> dict[int, str]:
        health = self._server.health()
        return {health.pid or 0: "tritonserver", **health.stubs}

    def _settle(self) -> list[str]:
        """Waits until no request is active; says what still is held."""
        deadline = time.monotonic() + SETTLES_S
        while True:
            held = held_by_engine(self._server.metrics_url)
            if not held or time.monotonic() > deadline:
                return [f"still held after {SETTLES_S:.0f} s: {held}"] if held else []
            time.sleep(0.05)

    def _goldens(self) -> list[str]:
        wrong = []
        for prompt in GOLDEN:
            text = self._golden_text(prompt)
            expected = self._golden.setdefault(prompt, text)
            self.campaign.goldens += 1
            if text != expected:
                wrong.append(f"{prompt!r} goes on with {text!r}, and not with {expected!r}")
        return wrong

    def _golden_text(self, prompt: str) -> str:
        body = json.dumps({"text_input": prompt, "max_tokens": 16}).encode()
        url = f"{self._server.http_url}/v2/models/tensorrt_llm_bls/generate"
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            return str(json.load(answer)["text_output"])


def held_by_engine(metrics_url: str) -> dict[str, float]:
    """What the engine holds for requests, from Triton's metrics; nothing when it is idle."""
    with urllib.request.urlopen(metrics_url, timeout=30) as answer:
        text = answer.read().decode()
    held = {}
    for line in text.splitlines():
        for label in ('request_type="active"', 'request_type="waiting"', 'block_type="used"'):
            if label in line and line.startswith("nv_trt_llm"):
                value = float(line.rsplit(" ", 1)[1])
                if value:
                    held[label] = value
    return held


def read_limits(repository: Path) -> Limits:
    """What the engine was compiled for, from the file that its compiler wrote."""
    config = json.loads((repository / "tensorrt_llm/1/engine/config.json").read_text())
    build = config["build_config"]
    return Limits(
        config["pretrained_config"]["vocab_size"], build["max_input_len"], build["max_seq_len"]
    )


def _tokenizer(repository: Path) -> Tokenizer:
    return Tokenizer.from_file(str(repository / "preprocessing/1/tokenizer/tokenizer.json"))


def normalized(message: str) -> str:
    """A message without what differs from request to request."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]", "*", message)
    text = re.sub(r"\b[0-9a-f]{12}\b|-?\d[\d,.e+]*", "#", text)
    return re.sub(r"input \S+", "input *", text)


def _key(case: Case, found: Finding) -> tuple[str, ...]:
    return (found.kind, case.model, case.way, normalized(found.detail)[:120])


def written(campaign: Campaign, folder: Path) -> list[str]:
    """Writes every finding as JSON and returns a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("finding-*.json"):
        old.unlink()
    lines = []
    for place, seen in enumerate(campaign.seen.values()):
        case = seen.smallest or seen.case
        path = folder / f"finding-{place}.json"
        path.write_text(
            json.dumps(
                {
                    "kind": seen.finding.kind,
                    "detail": seen.finding.detail,
                    "verdict": seen.verdict.word,
                    "why": seen.verdict.why,
                    "seed": campaign.seed,
                    "requests": seen.numbers[:20],
                    "times": len(seen.numbers),
                    "request": json.loads(to_json(case)),
                },
                indent=1,
            )
            + "\n"
        )
        lines.append(
            f"{seen.finding.kind}: {case.model} {case.way}, {len(seen.numbers)} times: "
            f"{seen.finding.detail[:300]}\n    python -m tests.fuzz --replay {path}\n"
            f"    {to_json(case)[:700]}"
        )
    return lines


def table(campaign: Campaign) -> str:
    """The run's numbers."""
    words = ("answered", "refused", "cancelled", "silent", "broken", "hung")
    lines = [f"{'requests':10}" + "".join(f"{word:>11}" for word in ("all", *words))]
    for verdict in ("valid", "invalid", "either"):
        counts = [campaign.outcomes[verdict, word] for word in words]
        numbers = (campaign.verdicts[verdict], *counts)
        lines.append(f"{verdict:10}" + "".join(f"{number:>11,}" for number in numbers))
    lines.append("")
    lines.append(f"{'model':24}{'way':17}{'requests':>10}{'right':>8}{'answered':>10}")
    for model, way, word in sorted(campaign.ways):
        if word == "all":
            counts = [campaign.ways[model, way, one] for one in ("all", "right", "answered")]
            lines.append(f"{model:24}{way:17}{counts[0]:>10,}{counts[1]:>8,}{counts[2]:>10,}")
    lines.append("")
    lines += _reasons("refusals by status", campaign.statuses)
    lines += _reasons("Triton's own, told as the server's fault", campaign.tritons)
    lines.append(
        f"of the right requests {campaign.right_answered:.2%} were answered; slowest "
        f"{campaign.slowest:.1f} s; {campaign.goldens} golden texts asked; seed {campaign.seed}; "
        f"{campaign.seconds:.0f} s"
    )
    return "\n".join(lines)


def _reasons(title: str, counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    return [f"{title}:", *(f"{n:>8,}  {text}" for text, n in counts.most_common(25)), ""]


def failed(campaign: Campaign) -> Sequence[str]:
    """Everything that must not be, as lines."""
    kinds = Counter(seen.finding.kind for seen in campaign.seen.values())
    return [*campaign.restless, *(f"{n} of the kind {kind!r}" for kind, n in kinds.items())]

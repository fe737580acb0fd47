"""Does anything grow while a server serves: memory, processes, threads, shared memory, open files.

    python benchmarks/soak.py --repository build/tiny-llama-int4-awq --minutes 10 --seed 1

Starts ``trtllm-pipeline serve`` on the repository and client processes (soak_client.py) that ask
it a seeded, weighted mix: short and long texts, sampled ones, log probabilities, batches, guides
and scored prompts where they are served, cancelled ones, deadlines, connections that are reset,
wrong ones, scrapes of the metrics, new connections. A client process is killed now and then. Every
few seconds /proc and /dev/shm say what the server's processes hold.

A slope is the median of those between all pairs of readings after the warm-up (Theil and Sen), with
Sen's 95 % interval (Journal of the American Statistical Association 63, 1968), which readings that
follow each other make too narrow: so nothing fails unless all of the interval lies above a bound.
Fails, with exit code 1, on growth, on any wrong answer or error of a right request, and on requests
that are still active at the end. Writes soak.csv, soak.svg and soak.json.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soak_client

SHM = Path("/dev/shm")  # noqa: S108
MIB = 2**20
IDLE_S = 30.0
KILL_EVERY_S = 20.0

# What a series is measured in, and how much of it per minute is growth.
BOUNDS = {
    "rss": ("MiB/min", 2.0),
    "pss": ("MiB/min", 2.0),
    "threads": ("1/min", 0.5),
    "handles": ("1/min", 0.5),
    "processes": ("1/min", 0.1),
    "shm entries": ("1/min", 0.1),
    "shm bytes": ("MiB/min", 0.5),
    "log bytes": ("MiB/min", 1.0),
    "active": ("1/min", 5.0),
}


@dataclass
class Readings:
    """Every series by name (``pss tensorrt_llm``), a value or None for each time.

    Attributes:
        times: Minutes since the load began.
    """

    times: list[float] = field(default_factory=list)
    series: dict[str, list[float | None]] = field(default_factory=dict)

    def add(self, minutes: float, values: dict[str, float]) -> None:
        """Adds what was read at one time."""
        for name in {*self.series, *values}:
            column = self.series.setdefault(name, [None] * len(self.times))
            column.append(values.get(name))
        self.times.append(minutes)


@dataclass(frozen=True)
class Slope:
    """Growth of one series per minute, with its interval."""

    name: str
    value: float
    low: float
    high: float
    first: float
    last: float
    unit: str
    bound: float

    @property
    def grows(self) -> bool:
        """Whether all of the interval lies above the bound."""
        return self.low > self.bound


def main() -> int:
    """Runs the soak and says what grew."""
    arguments = parse()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**31)
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "triton.log"
    log.unlink(missing_ok=True)
    with serving(arguments.repository, log) as (process, urls):
        golden = folder / "golden.json"
        golden.write_text(json.dumps(soak_client.golden_texts(urls["grpc"])), encoding="utf-8")
        offers = offered(arguments.repository)
        print(
            f"{arguments.minutes:g} minutes, {arguments.clients} client processes of "
            f"{arguments.threads} threads, seed {seed}; serves "
            f"{' and '.join(offers) or 'neither guides nor scored prompts'}",
            flush=True,
        )
        readings, counts, wrong = load(
            arguments, process, urls=urls, golden=golden, offers=offers, seed=seed, log=log
        )
        wrong += still_active(urls["metrics"])
    slopes = judge(readings, arguments.warm_up)
    write_csv(folder / "soak.csv", readings)
    (folder / "soak.svg").write_text(plot(readings, arguments.warm_up), encoding="utf-8")
    print(table(slopes))
    print("\nrequests: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.most_common()))
    grown = [slope for slope in slopes if slope.grows]
    failures = [*wrong, *(f"{one.name} grows by {one.value:.2f} {one.unit}" for one in grown)]
    result = {
        "seed": seed,
        "minutes": arguments.minutes,
        "requests": counts,
        "failures": failures,
        "slopes": [vars(slope) for slope in slopes],
    }
    (folder / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written:  {folder}/soak.csv, soak.svg, soak.json, triton.log")
    print("failed:   " + "\n          ".join(failures[:20]) if failures else "nothing grew")
    return 1 if failures else 0


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, required=True, help="what serve takes")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="printed; a new one each time without it")
    parser.add_argument("--clients", type=int, default=3, help="client processes")
    parser.add_argument("--threads", type=int, default=3, help="of each client process")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between readings")
    parser.add_argument(
        "--warm-up", type=float, default=0.3, help="share of the time that is not judged"
    )
    parser.add_argument("--output", type=Path, default=Path("build/soak"))
    return parser.parse_args()


@contextlib.contextmanager
def serving(repository: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """``trtllm-pipeline serve`` on free ports, with its addresses."""
    command = [sys.executable, "-m", "pipeline", "serve", str(repository), "--json"]
    command += ["--log", str(log), "--report-every", "0"]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            # The one object that serve prints, when it is ready.
            text = ""
            while not text.rstrip().endswith("}"):
                line = process.stdout.readline()
                if not line:
                    raise SystemExit("serve ended before it was ready")
                text += line
            said = json.loads(text)
            yield process, {name: said[name] for name in ("grpc", "http", "metrics")}
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def offered(repository: Path) -> list[str]:
    """What some repositories serve and others do not."""
    root = next(path for path in (repository / "repository", repository) if path.is_dir())
    config = (root / "tensorrt_llm" / "config.pbtxt").read_text(encoding="utf-8")
    bls = (root / "tensorrt_llm_bls" / "config.pbtxt").read_text(encoding="utf-8")
    reuse = re.search(r'"enable_kv_cache_reuse"\s*value \{\s*string_value: "false"', config)
    guides = re.search(r'"guided_decoding_backend"\s*value \{\s*string_value: "\w+"', bls)
    return [name for name, there in (("guides", guides), ("scores", reuse)) if there]


def load(
    arguments: argparse.Namespace,
    process: subprocess.Popen[str],
    *,
    urls: dict[str, str],
    golden: Path,
    offers: Sequence[str],
    seed: int,
    log: Path,
) -> tuple[Readings, Counter[str], list[str]]:
    """Runs the clients and reads what the server holds meanwhile."""
    chance = random.Random(seed)
    started = time.time()
    until = started + arguments.minutes * 60
    options = [f"--{name}={url}" for name, url in urls.items()]
    options += [f"--golden={golden}", f"--offers={','.join(offers)}", f"--until={until}"]
    options += [f"--threads={arguments.threads}"]
    readings, counts, wrong = Readings(), Counter[str](), list[str]()
    server = named(process.pid, "tritonserver")
    clients: list[ClientProcess] = []
    born, next_kill = 0, started + KILL_EVERY_S
    try:
        while (now := time.time()) < until:
            while len(clients) < arguments.clients:
                clients.append(
                    ClientProcess([*options, f"--seed={seed}-{born}"], golden.parent, born)
                )
                born += 1
            readings.add((now - started) / 60, read(process.pid, log, urls["metrics"]))
            if now > next_kill:
                # A client that dies in the middle of all that it has asked.
                clients.pop(chance.randrange(len(clients))).end(counts, wrong, kill=True)
                next_kill = now + KILL_EVERY_S
            if process.poll() is not None:
                wrong.append(f"serve ended with {process.returncode}")
                break
            if (now_serving := named(process.pid, "tritonserver")) != server:
                at = f"{readings.times[-1]:.1f} min"
                wrong.append(f"{at}: tritonserver was started again ({server}, {now_serving})")
                server = now_serving
            time.sleep(max(0.0, arguments.every - (time.time() - now)))
    finally:
        for client in clients:
            client.end(counts, wrong, kill=False)
    counts["killed client"] = born - arguments.clients
    return readings, counts, wrong


class ClientProcess:
    """A running soak_client.py; what it prints goes to a file."""

    def __init__(self, options: list[str], folder: Path, number: int) -> None:
        self._out = folder / f"client-{number}.out"
        script = Path(soak_client.__file__)
        with self._out.open("w") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(script), *options], stdout=out, stderr=subprocess.STDOUT
            )

    def end(self, counts: Counter[str], wrong: list[str], *, kill: bool) -> None:
        """Ends it, or waits for its own end, and takes its last words."""
        if kill:
            self._process.kill()
        try:
            self._process.wait(soak_client.PATIENCE_S + 30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            wrong.append("a client did not end: one of its requests hangs")
        lines = [line for line in self._out.read_text().splitlines() if line.endswith("}")]
        # The last line of a client that was killed may be half of one.
        said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        counts.update(said.get("counts", {}))
        wrong += said.get("wrong", [])
        if not kill and self._process.returncode:
            wrong.append(f"a client ended with {self._process.returncode}: {self._out}")
        else:
            self._out.unlink()


def read(pid: int, log: Path, metrics: str) -> dict[str, float]:
    """What the server's processes hold now."""
    values: dict[str, float] = {}
    processes = tree(pid)
    values["processes all"] = len(processes)
    prefixes = set()
    for one in processes:
        try:
            words = Path(f"/proc/{one}/cmdline").read_bytes().decode(errors="replace").split("\0")
            name = called(words)
            prefixes |= set(re.findall(r"trtllm_pipeline_[0-9a-f]+_", " ".join(words)))
            values |= {f"{what} {name}": value for what, value in held(one).items()}
        except (FileNotFoundError, ProcessLookupError):  # noqa: PERF203
            continue  # it has ended meanwhile
    sizes = [
        path.stat().st_size
        for prefix in prefixes
        for path in SHM.glob(f"{prefix}*")
        if path.exists()
    ]
    values |= {"shm entries all": len(sizes), "shm bytes all": sum(sizes) / MIB}
    values["log bytes all"] = log.stat().st_size / MIB if log.exists() else 0.0
    values["active all"] = active(metrics)
    return values


def held(pid: int) -> dict[str, float]:
    """Memory in MiB, threads and open files of one process."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    memory = {
        name.lower(): int(found[1]) / 1024
        for name in ("Rss", "Pss")
        if (found := re.search(rf"^{name}:\s+(\d+) kB", rollup, re.MULTILINE))
    }
    return {
        **memory,
        "threads": len(os.listdir(f"/proc/{pid}/task")),  # noqa: PTH208
        "handles": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
    }


def tree(pid: int) -> list[int]:
    """A process and all that it started, as far as they live."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        try:
            tasks = os.listdir(f"/proc/{one}/task")  # noqa: PTH208
            children = [
                int(child)
                for task in tasks
                for child in Path(f"/proc/{one}/task/{task}/children").read_text().split()
            ]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append(one)
        waiting += children
    return found


def named(pid: int, name: str) -> list[int]:
    """The processes of a tree that are called ``name``."""
    found = []
    for one in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{one}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if called(words) == name:
                found.append(one)
    return found


def called(words: Sequence[str]) -> str:
    """A process's name in the table, from its command line."""
    for word in words:
        if model := re.search(r"/repository/([^/]+)/\d+/model\.py$", word):
            return model[1]
    text = " ".join(words)
    for name, sign in (
        ("guides", "guide_worker"),
        ("guardian", "guardian.py"),
        ("tritonserver", "bin/tritonserver"),
        ("serve", "-m pipeline serve"),
    ):
        if sign in text:
            return name
    return "other"


def active(metrics: str) -> float:
    """Requests that the engine has, running or waiting."""
    try:
        with urllib.request.urlopen(metrics, timeout=30) as answer:  # noqa: S310
            text = answer.read().decode()
    except OSError:
        return math.nan  # it is being started again, which fails the run by itself
    found = re.search(r'nv_trt_llm_request_metrics\{[^}]*="active"[^}]*\} (\S+)', text)
    return float(found[1]) if found else math.nan


def still_active(metrics: str) -> list[str]:
    """Says how many requests are left when nobody asks any more."""
    deadline = time.monotonic() + IDLE_S
    while (count := active(metrics)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if math.isnan(count):
        return ["the server does not answer at the end"]
    return [f"{count:g} requests still active {IDLE_S:g} s after the last client"] if count else []


def judge(readings: Readings, warm_up: float) -> list[Slope]:
    """The slopes of all series after the warm-up."""
    begin = readings.times[-1] * warm_up
    slopes = []
    for name, column in sorted(readings.series.items()):
        points = [
            (minutes, value)
            for minutes, value in zip(readings.times, column, strict=True)
            if minutes >= begin and value is not None
        ]
        what = next(one for one in BOUNDS if name.startswith(one))
        unit, bound = BOUNDS[what]
        if len(points) < 10 or points[-1][0] < readings.times[-1] * 0.9:
            continue  # a process that came or went
        value, low, high = theil_sen([x for x, _ in points], [y for _, y in points])
        ends = max(1, len(points) // 10)
        first = float(np.median([y for _, y in points[:ends]]))
        last = float(np.median([y for _, y in points[-ends:]]))
        slopes.append(Slope(name, value, low, high, first, last, unit, bound))
    return slopes


def theil_sen(times: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """The median slope between all pairs, and Sen's 95 % interval of it.

    With ties in the values, which only make the interval wider than it needs to be.
    """
    x, y = np.asarray(times), np.asarray(values)
    first, second = np.triu_indices(len(x), 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    count = len(x)
    spread = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, int((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, int((len(slopes) + spread) / 2) + 1)
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])


def table(slopes: Sequence[Slope]) -> str:
    """A line for each series that moved, and for each memory."""
    lines = [
        (
            f"{'after the warm-up':32}{'first':>10}{'last':>10}{'slope':>10}   95 % interval"
            f"{'unit':>12}{'bound':>7}"
        )
    ]
    for one in slopes:
        if one.name.startswith("pss") or one.value or one.first != one.last or one.grows:
            mark = "  GROWS" if one.grows else ""
            lines.append(
                f"{one.name:32}{one.first:>10.1f}{one.last:>10.1f}{one.value:>+10.3f}"
                f"   [{one.low:>+7.2f}, {one.high:>+7.2f}]{one.unit:>9}{one.bound:>7.1f}{mark}"
            )
    level = sum(1 for one in slopes if not one.value and one.first == one.last) - sum(
        1 for one in slopes if one.name.startswith("pss") and not one.value
    )
    return "\n".join([*lines, f"and {level} series that did not move"])


def write_csv(path: Path, readings: Readings) -> None:
    """Every reading, a row for each time."""
    names = sorted(readings.series)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["minutes", *names])
        for place, minutes in enumerate(readings.times):
            values = [readings.series[name][place] for name in names]
            rows.writerow([f"{minutes:.3f}", *("" if v is None else f"{v:.3f}" for v in values)])


def plot(readings: Readings, warm_up: float) -> str:
    """An SVG with a panel for each kind of series."""
    width, height, left, top = 760, 150, 60, 24
    panels = [
        ("pss", "memory, PSS in MiB"),
        ("shm bytes", "shared memory in MiB"),
        ("handles", "open files"),
        ("threads", "threads"),
        ("active", "active requests"),
    ]
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#555")
    end = readings.times[-1] or 1.0
    total = len(panels) * (height + top + 18)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 190}" '
            f'height="{total}" font-family="sans-serif" font-size="11">'
            '<rect width="100%" height="100%" fill="white"/>'
        )
    ]
    for place, (kind, title) in enumerate(panels):
        y0 = place * (height + top + 18) + top
        chosen = {n: c for n, c in readings.series.items() if n.startswith(f"{kind} ")}
        most = max((v for c in chosen.values() for v in c if v is not None), default=1.0) or 1.0
        parts.append(f'<text x="{left}" y="{y0 - 8}" font-weight="bold">{title}</text>')
        parts.append(
            f'<rect x="{left}" y="{y0}" width="{width * warm_up:.0f}" height="{height}" '
            f'fill="#eee"/><rect x="{left}" y="{y0}" width="{width}" height="{height}" '
            'fill="none" stroke="#999"/>'
            f'<text x="{left - 6}" y="{y0 + 9}" text-anchor="end">{most:.0f}</text>'
            f'<text x="{left - 6}" y="{y0 + height}" text-anchor="end">0</text>'
            f'<text x="{left + width}" y="{y0 + height + 13}" text-anchor="end">'
            f"{end:.1f} min</text>"
        )
        for number, (name, column) in enumerate(sorted(chosen.items())):
            points = " ".join(
                f"{left + minutes / end * width:.1f},{y0 + height - value / most * height:.1f}"
                for minutes, value in zip(readings.times, column, strict=True)
                if value is not None
            )
            colour = colours[number % len(colours)]
            label = name.removeprefix(f"{kind} ")
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
            parts.append(
                f'<text x="{left + width + 8}" y="{y0 + 12 + number * 14}" fill="{colour}">'
                f"{label}</text>"
            )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    sys.exit(main())

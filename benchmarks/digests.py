"""Wall time of the SHA-256 of large files: several at a time against one after the other.

    python benchmarks/digests.py
    python benchmarks/digests.py --files 8 --mib 2048 --folder /data

Files of random bytes are written to a temporary folder, which needs as much space, and read once,
so that those that fit into memory come from there and not from the disk. Every round does it both
ways, every other round in the other order. The ratio of a round is that of its two times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.store.digests import digests, file_digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=4, metavar="N")
    parser.add_argument("--mib", type=int, default=512, metavar="N", help="size of each file")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--folder", type=Path, help="where files are written; the default is /tmp")
    given = parser.parse_args()
    ways: dict[str, Callable[[list[Path]], list[str | OSError]]] = {
        "one by one": lambda paths: [file_digest(path) for path in paths],
        "several": digests,
    }
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        paths = [_written(Path(folder) / str(number), given.mib) for number in range(given.files)]
        wanted = ways["one by one"](paths)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(given.rounds):
            for name in reversed(ways) if number % 2 else ways:
                begun = time.perf_counter()
                found = ways[name](paths)
                times[name].append(time.perf_counter() - begun)
                assert found == wanted
    size, cpus = given.files * given.mib / 1024, len(os.sched_getaffinity(0))
    print(f"{given.files} files of {given.mib} MiB, {cpus} processors, {given.rounds} rounds\n")
    print("| way | seconds, median | GiB/s |\n|---|---|---|")
    for name, took in times.items():
        median = statistics.median(took)
        print(f"| {name} | {median:.2f} | {size / median:.2f} |")
    pairs = zip(times["one by one"], times["several"], strict=True)
    ratios = sorted(one / several for one, several in pairs)
    print(f"\n{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def _written(path: Path, mib: int) -> Path:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    return path


if __name__ == "__main__":
    main()

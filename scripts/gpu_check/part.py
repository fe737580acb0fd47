"""Runs one part in this process and writes each case as a line of JSON when it is there.

python -m scripts.gpu_check.part PART --device D --work DIR --results FILE [--formats A,B]
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from scripts.gpu_check.task import Task


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--device", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--formats", default="")
    given = parser.parse_args()
    formats = [name for name in given.formats.split(",") if name]
    module = importlib.import_module(f"scripts.gpu_check.{given.part}")
    with given.results.open("w", encoding="utf-8", buffering=1) as file:
        for found in module.cases(Task(given.device, given.work, formats)):
            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

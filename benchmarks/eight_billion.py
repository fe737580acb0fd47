"""A model of the shape of Llama-3.1-8B on the machine at hand: from weights to a served completion.

    python benchmarks/eight_billion.py --folder build --json build/eight-billion.json
    python benchmarks/eight_billion.py --size 0.01      # the same steps in a minute

Writes random weights (``by_size/model.py``; 16 GB of bfloat16 for ``8``), quantizes them with INT4
AWQ, evaluates what was written, compiles it for the CPU and lets ``generate`` serve it; removes all
of it afterwards. Every step is a command of its own. Of each the table has the ``ru_maxrss`` of its
largest process, and twice a second the proportional set size of all its processes together, with
the part that is no file's, servers apart. Ends with 1 where anything but the server took more than
``--limit``. On two cores with nothing beside it, estimated from smaller models: an hour.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from by_size.measured import GB, Ran, end_in_order
from by_size.model import SHAPES
from by_size.stages import Job, Setting

PROMPT = "Once there was a gentle boy named Jack, and he lived by the sea."
# Of disk: the model, which the store links, the checkpoint, the engine and what is saved.
DISK_BYTES_PER_PARAMETER = 4.0
STEPS = ("source", "quantize", "evaluate", "compile", "repository", "generate")
HEAD = (
    "| step | s | processor s | peak GB | own | anonymous | server | its anonymous |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|"
)


def main() -> int:
    arguments = parse()
    end_in_order()
    shape = SHAPES[arguments.size]
    with place_for(arguments) as place:
        folder = Path(place)
        free, needs = shutil.disk_usage(folder).free, DISK_BYTES_PER_PARAMETER * shape.parameters
        if free < needs and not (folder / "model").exists():
            raise SystemExit(f"{folder}: {needs / GB:.0f} GB are needed, {free / GB:.0f} are free")
        began = time.monotonic()
        setting = Setting(
            arguments.samples, arguments.length, arguments.tokens, batch=arguments.samples
        )
        job = Job(folder, shape, "int4_awq", setting)
        print(
            f"{shape.parameters:,} parameters in {shape.layers} layers, written in "
            f"{time.monotonic() - began:.0f} s; {arguments.samples} texts of {arguments.length} "
            f"tokens to calibrate on, {arguments.tokens} scored\n"
        )
        print(HEAD, flush=True)
        peak = 0
        found: dict[str, Any] = {}
        for step in arguments.steps:
            ran = take(job, step)
            peak = max(peak, ran.outside.own, 0 if ran.servers.own else ran.peak)
            print(line(step, ran), flush=True)
            found[step] = ran.as_dict()
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if "generate" in arguments.steps:
            print(f"\ncompletion: {json.dumps(job.said('generate'))}")
    print(f"\nat most {peak / GB:.2f} GB outside the server, {arguments.limit:g} are allowed")
    return int(peak > arguments.limit * GB)


def place_for(arguments: argparse.Namespace) -> AbstractContextManager[str]:
    """A folder for all of it, which stays where that was asked for."""
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        return nullcontext(str(arguments.keep))
    return tempfile.TemporaryDirectory(dir=arguments.folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="An hour on two cores with nothing beside it, estimated from smaller models.",
    )
    parser.add_argument("--size", choices=SHAPES, default="8", help="billions of parameters")
    parser.add_argument("--samples", type=int, default=4, help="texts of calibration")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text, or a window")
    parser.add_argument("--tokens", type=int, default=2000, help="that are scored")
    parser.add_argument("--limit", type=float, default=10.0, help="GB outside the server")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, metavar="STEP")
    parser.add_argument("--folder", type=Path, help="where all of it is for a while")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave all of it there, and go on with what is"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args()


def take(job: Job, step: str) -> Ran:
    """Takes one step."""
    if step == "generate":
        return job.generate(PROMPT)
    # Nobody asked for scores of the engine, and without evaluation there are none.
    return job.step(step, *(["--set", "evaluate=null"] if step == "repository" else []))


def line(name: str, ran: Ran) -> str:
    """A step as Markdown."""
    taken = (ran.peak, ran.outside.own, ran.outside.anonymous, ran.servers.own)
    cells = [f"{value / GB:.2f}" for value in (*taken, ran.servers.anonymous)]
    return f"| {name} | {ran.seconds:.0f} | {ran.processor_seconds:.0f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

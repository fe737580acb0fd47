"""Memory and time of quantize, evaluate and compile by the size of the model.

    python benchmarks/sizes.py                          # the table: 0.1, 0.5, 1 and 3 billion
    python benchmarks/sizes.py --sizes 0.1 0.5 --formats int4_awq int8_sq --rounds 3
    python benchmarks/sizes.py --paired --rounds 3      # both ways at once, in turns of a second
    python benchmarks/sizes.py --slope --rounds 3       # equal width, 12, 24 and 48 layers
    python benchmarks/sizes.py --kills 10               # killed in the middle, and gone on

Models are random Llamas that are made on the spot (``by_size/model.py``) and removed. Every stage
is a command of its own, ``trtllm-pipeline run --until STAGE``, what is before it being cached: once
with ``model.at_once=layer`` and once with ``model.at_once=model``, in turns where there are rounds;
with ``--paired`` both at once, of which the one is stopped while the other runs
(``by_size/turns.py``), so that a machine whose speed goes up and down is the same to both.
Compiling has no second way, so a whole run of it needs ``--against``, another checkout of the
project, whose code then makes all that is whole. ``peak`` is ``ru_maxrss`` of the largest process;
the bytes are the SHA-256 over every file that a stage wrote. What does not fit into this machine's
free memory is not tried, by 11 bytes of memory for each parameter to quantize a model that is
loaded in float32, 5.5 for larger ones, and 8.8 to evaluate. Ends with 1 where bytes differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from by_size.kills import Kill, kill_often
from by_size.measured import GB, end_in_order
from by_size.model import SHAPES, Shape
from by_size.rows import HEAD, STAGES, WAYS, Plan, rows_of
from by_size.stages import Job, Setting

SIZES = [size for size in SHAPES if size != "8"]
DEFAULT = ["0.1", "0.5", "1", "3"]
WIDTH = Shape(1024, 2560, 12, 16, 4)
# What is left of a stage where there is next to nothing to do.
NEXT_TO_NOTHING = Shape(128, 128, 1, 2, 2)
TIMES = """\
how long it takes on two cores with nothing beside it, estimated for INT4 AWQ from 0.3 s to quantize
and 0.05 s to evaluate for each million parameters:
  --table  an hour: 2, 6, 13 and 40 minutes for 0.1, 0.5, 1 and 3 billion, each stage both ways
  --slope  10 minutes a round
  --kills  10 minutes for 10 of each stage at 0.5 billion
beside other work it is several times that. Disk: 4 bytes a parameter, for one size at a time, and
twice that with --paired.
"""
Result = tuple[list[dict[str, Any]], int]


def main() -> int:
    arguments = parse()
    end_in_order()
    found: dict[str, Any] = {"setting": vars(plan_of(arguments).setting)}
    parts: dict[str, Callable[[argparse.Namespace], Result]] = {
        "table": table,
        "slope": slope,
        "kills": kills,
    }
    wrong = 0
    for part in [part for part in parts if getattr(arguments, part)] or ["table"]:
        found[part], bad = parts[part](arguments)
        wrong += bad
        print(flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=TIMES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", action="store_true", help="by layer and whole, by size")
    parser.add_argument("--slope", action="store_true", help="peaks by the number of layers")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="of each stage")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=DEFAULT, metavar="BILLIONS")
    parser.add_argument("--formats", nargs="+", default=["int4_awq"], metavar="FORMAT")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="of --table")
    parser.add_argument("--rounds", type=int, default=1, help="of --table and --slope")
    parser.add_argument(
        "--paired", action="store_true", help="of --table: both ways at once, in turns"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24, 48], help="of --slope")
    parser.add_argument("--samples", type=int, default=8, help="texts of calibration")
    parser.add_argument("--length", type=int, default=256, help="tokens of a text, or a window")
    parser.add_argument("--tokens", type=int, default=2000, help="that are scored")
    parser.add_argument("--killed-size", choices=SIZES, default="0.5", help="of --kills")
    parser.add_argument(
        "--save-every",
        type=float,
        default=2.0,
        metavar="S",
        help="of --kills: seconds between two saves of what is done; 20 are usual",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments of --kills")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="a checkout that makes what is whole"
    )
    parser.add_argument("--folder", type=Path, help="where models and stores are for a while")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args()


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What is run, as the command line says."""
    return Plan(
        Setting(arguments.samples, arguments.length, arguments.tokens),
        arguments.formats,
        arguments.stages,
        arguments.ways,
        arguments.rounds,
        arguments.paired,
        arguments.against,
        arguments.folder,
    )


def table(arguments: argparse.Namespace) -> Result:
    """Runs every size in every format, and prints a line for each stage."""
    print(HEAD, flush=True)
    rows = []
    for size in arguments.sizes:
        for row in rows_of(SHAPES[size], plan_of(arguments)):
            print(row.line(), flush=True)
            rows.append(row)
    return [row.as_dict() for row in rows], sum(row.same is False for row in rows)


def slope(arguments: argparse.Namespace) -> Result:
    """Prints how the peak grows with the number of layers: medians of the rounds.

    A model with next to nothing in it tells what the imports take.
    """
    plan = replace(plan_of(arguments), ways=("layer",), paired=False)
    depths = (0, *arguments.layers)
    peaks: dict[tuple[str, str], list[float]] = {}
    found = []
    for layers in depths:
        shape = replace(WIDTH, layers=layers) if layers else NEXT_TO_NOTHING
        for row in rows_of(shape, plan):
            peak = statistics.median(ran.peak for ran in row.runs["layer"])
            peaks.setdefault((row.stage, row.format), []).append(peak)
            found.append(row.as_dict())
    print(f"{WIDTH.hidden} hidden, {WIDTH.inner} in the MLP; peak GB, {plan.rounds} round(s)\n")
    layers = " | ".join(f"{n} layers" for n in depths[1:])
    print(f"| stage | format | imports | {layers} | spread | spread above the imports |")
    print("|---|---|---:|---:|" + "---:|" * len(depths))
    for key, (imports, *all_of_it) in peaks.items():
        cells = [f"{value / GB:.3f}" for value in (imports, *all_of_it)]
        above = [peak - imports for peak in all_of_it]
        cells += [f"{max(values) / min(values) - 1:.0%}" for values in (all_of_it, above)]
        print(f"| {' | '.join([*key, *cells])} |")
    return found, 0


def kills(arguments: argparse.Namespace) -> Result:
    """Kills quantize and evaluate at random moments, lets them go on, and compares the bytes."""
    plan, shape = plan_of(arguments), SHAPES[arguments.killed_size]
    print("| stage | killed after s | went on at layer | left for the next | of |")
    print("|---|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory(dir=plan.folder) as place:
        job = Job(Path(place), shape, plan.formats[0], plan.setting)
        job.prepare("source")
        found = [
            kill_often(
                job,
                stage,
                arguments.kills,
                seed=arguments.seed,
                save_every=arguments.save_every,
                on_kill=partial(told, stage, shape.layers),
            )
            for stage in ("quantize", "evaluate")
        ]
    print()
    for one in found:
        print(
            f"{one.stage}: {one.undisturbed:.0f} s if nobody kills it; {len(one.kills)} kills, "
            f"{one.ends} ends, {'the same bytes' if one.same else 'OTHER BYTES'}"
        )
    return [one.as_dict() for one in found], sum(not one.same for one in found)


def told(stage: str, layers: int, kill: Kill) -> None:
    """Prints a kill as Markdown."""
    cells = (stage, f"{kill.seconds:.1f}", str(kill.layer), str(kill.saved), str(layers))
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())

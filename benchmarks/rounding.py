"""What each way of rounding weights costs a model: its checkpoints, measured on the same text.

    python benchmarks/rounding.py configs/demo.yaml
    python benchmarks/rounding.py RECIPE --group-sizes 64 128 --only nearest gptq awq

Writes and evaluates a checkpoint for each way, with the recipe's texts, and prints one Markdown
table. Gates are not asked. ``nearest`` is the code of GPTQ with a Hessian of one, in which no
column makes up for another. Nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

WAYS = {
    "nearest": ("rounded to nearest", ["quantize.format=int4_gptq"]),
    "awq": ("AWQ", ["quantize.format=int4_awq"]),
    "awq-portable": ("AWQ, portable", ["quantize.format=int4_awq", "quantize.portable=true"]),
    "gptq": ("GPTQ", ["quantize.format=int4_gptq"]),
    "gptq-act-order": (
        "GPTQ, act_order",
        ["quantize.format=int4_gptq", "quantize.act_order=true"],
    ),
    "int8": ("INT8 SmoothQuant", ["quantize.format=int8_sq"]),
    "int8-portable": (
        "INT8 SmoothQuant, portable",
        ["quantize.format=int8_sq", "quantize.portable=true"],
    ),
}


def main() -> None:
    arguments = parse()
    print("| rounding | group | perplexity | KL divergence | agreement |")
    print("|---|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for way in arguments.only:
            for group in ["-"] if way.startswith("int8") else arguments.group_sizes:
                name, overrides = WAYS[way]
                if group != "-":
                    overrides = [*overrides, f"quantize.group_size={group}"]
                found = measure(arguments, overrides, Path(folder) / f"{way}-{group}", way)
                print(row(name, group, found), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=tuple(WAYS))
    parser.add_argument("--group-sizes", nargs="+", type=int, choices=(64, 128), default=(64, 128))
    return parser.parse_args()


def measure(
    arguments: argparse.Namespace, overrides: list[str], build: Path, way: str
) -> dict[str, Any]:
    from pipeline.api import load_recipe, run
    from pipeline.progress import Lines
    from tests.conftest import NO_GATES

    gates = [NO_GATES, "evaluate.gates.signal_to_noise=null", "evaluate.tasks=[]"]
    recipe = load_recipe(arguments.recipe, [*overrides, *gates])
    with alone() if way == "nearest" else contextlib.nullcontext():
        result = run(recipe, build, until="evaluate", progress=Lines(sys.stderr))
    facts: dict[str, Any] = result.stages["evaluate"].artifact.facts
    return facts


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Takes away what a column knows of the others."""
    import torch

    from pipeline.quantize import hessians
    from pipeline.quantize.gptq import Spread, spread

    def unit(_self: Any, _number: int, linear: Any, _act_order: bool) -> Spread:
        return spread(torch.eye(linear.in_features, dtype=torch.float64))

    own = hessians._Walk.spread_of
    hessians._Walk.spread_of = unit  # type: ignore[method-assign]
    try:
        yield
    finally:
        hessians._Walk.spread_of = own  # type: ignore[method-assign]


def row(name: str, group: int | str, found: dict[str, Any]) -> str:
    increase, kl = found["perplexity_increase"], found["kl_divergence"]
    return (
        f"| {name} | {group} | {100 * increase['value']:+.2f} % "
        f"[{100 * increase['low']:+.2f}, {100 * increase['high']:+.2f}] | "
        f"{kl['value']:.2g} [{kl['low']:.2g}, {kl['high']:.2g}] | "
        f"{100 * found['top1_agreement']['value']:.2f} % |"
    )


if __name__ == "__main__":
    main()

"""Whether the gates catch damage every time, and accept what is whole every time.

    python benchmarks/gate_proof.py
    python benchmarks/gate_proof.py --only engines --runs 20 --tokens 20000

Quantizes the demo model and, where it is there, stories260K-h128. Then it damages the written files
in every layer, the model's tokenizer, and what an engine was compiled from, and lets the stages
measure and the default gates judge. Whole checkpoints are written again and again, each with other
calibration texts. Prints one Markdown table and ends with 1 where anything was missed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.gate_chain import Trial

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

CAUGHT = ("REGRESSION", "ANOMALOUS")
PARTS = ("files", "tokenizers", "engines", "whole")
Row = tuple[str, list[str]]


def main() -> None:
    arguments = parse()
    import torch

    torch.set_num_threads(arguments.threads)
    print("| model | damage | tries | verdicts | missed |")
    print("|---|---|---:|---|---:|", flush=True)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(Path(folder), arguments)
        for part in arguments.only:
            wanted = ("ACCEPT",) if part == "whole" else CAUGHT
            for name, verdicts in getattr(proof, part)():
                wrong = [verdict for verdict in verdicts if verdict not in wanted]
                told = ", ".join(f"{count} {word}" for word, count in Counter(verdicts).items())
                missed += len(wrong)
                print(f"| {name} | {len(verdicts)} | {told} | {len(wrong)} |", flush=True)
    raise SystemExit(1 if missed else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=int, default=20, help="whole checkpoints of the demo")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first of them")
    parser.add_argument("--samples", type=int, default=32, help="texts that those calibrate on")
    parser.add_argument("--tokens", type=int, default=20000, help="scored of a whole checkpoint")
    parser.add_argument("--damaged-tokens", type=int, default=2000, help="of a damaged one")
    parser.add_argument(
        "--quick", action="store_true", help="files without completions, in one process"
    )
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


class Proof:
    """Everything that is tried, a row of the table at a time."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        from tests.integration.gate_chain import DEMO, STORIES, Trial, present

        self._folder, self._arguments, self._made = folder, arguments, 0
        pairs = ((DEMO, "int4_awq"), (DEMO, "int8_sq"), (STORIES, "int8_sq"))
        tokens = arguments.damaged_tokens
        self._trials = [Trial(*pair, tokens) for pair in pairs if present(pair[0])]
        self._written: dict[Trial, Path] = {}

    def files(self) -> Iterator[Row]:
        """Every damage to a checkpoint, in every layer."""
        from tests.integration.damage import OF_CHECKPOINTS, ONLY_OF, config_of, exchanged_shards

        for trial in self._trials:
            whole = self._checkpoint(trial)
            for kind, harm in OF_CHECKPOINTS.items():
                if trial.format not in ONLY_OF.get(kind, (trial.format,)):
                    continue
                layers = range(config_of(whole)["num_hidden_layers"])
                verdicts = [
                    self._verdict(trial, self._harmed(whole, harm, layer)) for layer in layers
                ]
                yield f"{trial.model} {trial.format} | {kind}", verdicts
        trial = replace(self._trials[1], ranks=2)
        whole = self._checkpoint(trial)
        verdicts = [
            self._verdict(trial, self._harmed(whole, exchanged_shards, layer))
            for layer in range(config_of(whole)["num_hidden_layers"])
        ]
        yield f"{trial.model} {trial.format} | shards of two ranks exchanged", verdicts

    def tokenizers(self) -> Iterator[Row]:
        """Ids of the same vocabulary in another order, from the model's folder on."""
        from tests.integration.damage import other_ids

        for trial in self._trials:
            if trial.format != "int8_sq":  # it strikes the source, in whatever format
                continue
            verdicts = []
            for seed in range(5):
                model = self._new()
                other_ids(trial.folder, model, seed)
                other = replace(trial, source=model)
                checkpoint = other.write(self._new())
                verdicts.append(self._verdict(other, checkpoint))
            yield f"{trial.model} {trial.format} | another tokenizer", verdicts

    def engines(self) -> Iterator[Row]:
        """An engine of a checkpoint of the same shapes in place of the checkpoint's own."""
        from tests.integration.damage import another_rope_base, another_training, louder_layer

        damages: tuple[tuple[str, Callable[[Path, int], None]], ...] = (
            ("engine of weights 5 % away", another_training),
            ("engine of scales of a layer x1.5", louder_layer),
            ("engine of another rope base", another_rope_base),
        )
        for trial in self._trials:
            whole = self._checkpoint(trial)
            own = trial.build(whole, self._new())
            decision, _ = trial.judge_engine(whole, own, self._new())
            # The right one is the control: it must not be caught.
            name = f"{trial.model} {trial.format}"
            if decision.verdict != "ACCEPT":
                yield f"{name} | its own engine was not accepted", [decision.verdict, "MISSED"]
            for kind, harm in damages:
                verdicts = []
                for number in range(3):
                    engine = trial.build(self._harmed(whole, harm, number), self._new())
                    decision, _ = trial.judge_engine(whole, engine, self._new())
                    verdicts.append(decision.verdict)
                yield f"{name} | {kind}", verdicts
        for trial in self._trials:
            others = [
                other
                for other in self._trials
                if other.model == trial.model and other.format != trial.format
            ]
            others.append(replace(trial, format="float16"))
            verdicts = []
            for other in others:
                engine = other.build(self._checkpoint(other), self._new())
                decision, _ = trial.judge_engine(self._checkpoint(trial), engine, self._new())
                verdicts.append(decision.verdict)
            yield f"{trial.model} {trial.format} | engine of another format", verdicts

    def whole(self) -> Iterator[Row]:
        """The demo in both formats, with other calibration texts each time."""
        from tests.integration.gate_chain import DEMO

        arguments = self._arguments
        for trial in self._trials:
            if trial.model != DEMO:
                continue
            verdicts = []
            first = arguments.first
            for seed in range(first, first + arguments.runs // 2):
                one = replace(trial, tokens=arguments.tokens, samples=arguments.samples, seed=seed)
                verdicts.append(self._verdict(one, one.write(self._new())))
            yield f"{trial.model} {trial.format} | none, calibrated on other texts", verdicts

    def _verdict(self, trial: Trial, checkpoint: Path) -> str:
        if self._arguments.quick:
            decision = trial.judge_files(checkpoint, self._folder)
        else:
            decision, _ = trial.judge(checkpoint, self._new())
        print(f"{trial.model} {trial.format}: {decision.headline}", file=sys.stderr, flush=True)
        return decision.verdict

    def _checkpoint(self, trial: Trial) -> Path:
        if trial not in self._written:
            self._written[trial] = trial.write(self._new())
        return self._written[trial]

    def _harmed(self, whole: Path, harm: Callable[[Path, int], None], number: int) -> Path:
        copy = self._new()
        shutil.copytree(whole, copy)
        harm(copy, number)
        return copy

    def _new(self) -> Path:
        self._made += 1
        return self._folder / str(self._made)


if __name__ == "__main__":
    main()

"""Stages on one model, each a command of its own, and the digest of what it wrote."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.artifact import MANIFEST
from pipeline.targets.openvino.memory import machine_memory

from .measured import Ran, run
from .model import Shape, write_model
from .turns import Command

PROJECT = Path(__file__).resolve().parents[2]
TEXTS = PROJECT / "examples" / "tiny_llama" / "data"
# Random weights keep no limit of quality, and nobody asks them to.
RECIPE = """\
schema: 1
name: {name}
model:
  source: {model}
  dtype: {dtype}
quantize:
  format: {format}
  calibration:
    text: {texts}/calibration.jsonl
    samples: {samples}
    sequence_length: {length}
    batch_size: {batch}
evaluate:
  text: {texts}/heldout.jsonl
  tokens: {tokens}
  sequence_length: {length}
  gates:
    perplexity_increase: null
    top1_agreement: null
    kl_divergence: null
    source_perplexity: null
    signal_to_noise: null
    completions: false
compile:
  target: openvino
  max_batch_size: 1
  max_input_len: 256
  max_seq_len: 512
serve:
  max_tokens_in_paged_kv_cache: 1024
"""


@dataclass(frozen=True)
class Setting:
    """What all runs of a table have in common.

    Attributes:
        samples: Texts of calibration.
        length: Tokens of one, and of a window that is scored.
        tokens: That are scored.
        batch: Texts that are calibrated on at a time.
        dtype: Of what is not quantized.
    """

    samples: int = 8
    length: int = 256
    tokens: int = 2000
    batch: int = 8
    dtype: str = "float16"


class Job:
    """One model in one format, with a store of its own.

    Args:
        folder: Where recipe, store and logs go, and the model, which is made where there is none.
        shape: The model's sizes.
        form: What to quantize to.
        setting: The rest of the recipe.

    Attributes:
        name: The recipe's.
        build: The build folder.
        recipe: The recipe's file.
        layers: Of the model.
    """

    def __init__(self, folder: Path, shape: Shape, form: str, setting: Setting) -> None:
        self.name, self.layers = form.replace("_", "-"), shape.layers
        model = folder / "model"
        if not (model / "config.json").exists():
            write_model(shape, model)
        self.build = folder / f"build-{self.name}"
        self.recipe = folder / f"{self.name}.yaml"
        self._logs = folder / "logs"
        self._logs.mkdir(exist_ok=True)
        text = RECIPE.format(name=self.name, model=model, format=form, texts=TEXTS, **vars(setting))
        self.recipe.write_text(text, encoding="utf-8")

    def command(self, stage: str, way: str | None = None) -> list[str]:
        """The command that brings a stage up to date; ``way`` says what is in memory at a time."""
        chosen = ["--set", f"model.at_once={way}"] if way else []
        return [
            *(sys.executable, "-m", "pipeline", "run", str(self.recipe)),
            *("--build-dir", str(self.build), "--until", stage, "--json", *chosen),
        ]

    def prepare(self, stage: str) -> Ran:
        """Brings a stage up to date as the recipe says, for the stages behind it."""
        return self._measured(self._command(stage, self.command(stage)))

    def run(self, stage: str, way: str, against: Path | None = None) -> Ran:
        """Runs a stage again, whatever is cached.

        Args:
            stage: The stage; those before it are cached.
            way: ``layer`` or ``model``.
            against: A checkout whose code does it in its own way; None is this one.
        """
        return self._measured(self.again(stage, way, against))

    def again(self, stage: str, way: str, against: Path | None = None) -> Command:
        """What :meth:`run` runs."""
        words = [*self.command(stage, None if against else way), "--force", stage]
        return Command(words, *self.outputs(stage), against or PROJECT)

    def check(self, ran: Ran, command: Command) -> None:
        """Ends this process where a command failed."""
        if ran.code:
            said = command.output.read_text(encoding="utf-8")
            said += command.errors.read_text(encoding="utf-8")
            words = " ".join(command.words)
            raise SystemExit(f"ended with {ran.code}: {words}\n{said[-3000:]}")

    def step(self, stage: str, *options: str) -> Ran:
        """Brings a stage up to date and looks at all processes meanwhile; with more options."""
        words = [*self.command(stage), *options]
        return self._measured(self._command(stage, words), sampled=True)

    def generate(self, prompt: str) -> Ran:
        """Has a server started on the repository, and a few tokens generated."""
        repository = next((self.build / self.name).glob("repository*"))
        command = [
            *(sys.executable, "-m", "pipeline", "generate", "--repository", str(repository)),
            *("--max-tokens", "16", "--timeout", "1200", "--json", prompt),
        ]
        return self._measured(self._command("generate", command), sampled=True)

    def said(self, step: str) -> dict[str, Any]:
        """What the last command of that name printed."""
        path = max(self._logs.glob(f"*-{step}.json"), key=lambda path: path.stat().st_mtime_ns)
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def outputs(self, stage: str) -> tuple[Path, Path]:
        """Names files for what a command prints and says."""
        number = len(list(self._logs.iterdir())) // 2
        stem = self._logs / f"{self.name}-{number}-{stage}"
        return stem.with_suffix(".json"), stem.with_suffix(".log")

    def is_there(self, stage: str) -> bool:
        """Tells whether the stage wrote something that was not removed."""
        folder = self.build / "store" / stage
        return folder.exists() and any(folder.iterdir())

    def artifact(self, stage: str) -> Path:
        """The folder of what the last run of a stage wrote."""
        lock = json.loads((self.build / self.name / "lock.json").read_text(encoding="utf-8"))
        return self.build / "store" / stage / str(lock["stages"][stage]["key"])

    def digest(self, stage: str) -> str:
        """The SHA-256 over names and bytes of the files that the last run of a stage wrote."""
        folder, digest = self.artifact(stage), hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            # It tells when, and how long it took.
            if not path.is_file() or path.name == MANIFEST:
                continue
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while piece := file.read(1 << 24):
                    digest.update(piece)
        return digest.hexdigest()

    def clear(self) -> None:
        """Removes the store."""
        shutil.rmtree(self.build)

    def _command(self, step: str, words: Sequence[str]) -> Command:
        return Command(words, *self.outputs(step), PROJECT)

    def _measured(self, command: Command, *, sampled: bool = False) -> Ran:
        ran = run(
            command.words,
            output=command.output,
            errors=command.errors,
            folder=command.folder,
            sampled=sampled,
        )
        self.check(ran, command)
        return ran


def available_memory() -> int:
    """Bytes that this process and its children can have without others losing any."""
    found: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return min(found["MemAvailable"], machine_memory() or sys.maxsize)

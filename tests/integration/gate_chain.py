"""The stages that make and measure what the gates judge, from a model to a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.scoring import Scorer, compare, scorer_of
from pipeline.evaluation.signal_to_noise import signal_to_noise
from pipeline.evaluation.summary import summarize
from pipeline.evaluation.windows import Document, Window, read_documents, strided_windows
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.reference.source import load_source
from pipeline.source.lines import read_texts
from pipeline.source.tokens import load_tokenizer
from pipeline.stages import compile as compiling
from pipeline.stages import evaluate, fidelity, quantize
from pipeline.stages.base import Stage, StageContext
from pipeline.store.artifact import Artifact
from pipeline.verdict.checks import gates_of
from pipeline.verdict.decision import Decision, decide
from tests.conftest import DEMO_MODEL, SHARED_MODELS

DEMO, STORIES = "demo", "stories"
SIZES = {"compile": {"max_input_len": 384, "max_seq_len": 512, "max_batch_size": 4}}


def present(model: str) -> bool:
    """Tells whether a model is on this machine; only the demo's is part of the project."""
    return Trial(model, "float16", 1).folder.is_dir()


@dataclass(frozen=True)
class Trial:
    """One model in one format.

    Attributes:
        model: ``demo`` or ``stories``.
        format: The recipe's ``quantize.format``.
        tokens: Of held-out text that are scored.
        samples: Texts to calibrate on.
        seed: Chooses them.
        gates: The recipe's gates; without any it is the defaults that judge.
        changes: Keys of ``quantize``.
        ranks: The checkpoint's tensor-parallel ranks.
        source: The model's folder; None is the undamaged one.
    """

    model: str
    format: str
    tokens: int
    samples: int = 32
    seed: int = 1234
    gates: tuple[tuple[str, Any], ...] = ()
    changes: tuple[tuple[str, Any], ...] = ()
    ranks: int = 1
    source: Path | None = None

    @property
    def folder(self) -> Path:
        """The model's folder."""
        if self.source:
            return self.source
        return DEMO_MODEL if self.model == DEMO else SHARED_MODELS / "stories260K-h128"

    def recipe(self, texts: Path) -> Recipe:
        """The recipe.

        Args:
            texts: Where the texts of the second model may be written.
        """
        calibration, heldout = _texts(self.model, texts)
        return Recipe.model_validate(
            {
                "name": "trial",
                "model": {"source": str(self.folder)},
                "quantize": {
                    "format": self.format,
                    "device": "cpu",
                    "calibration": {
                        "text": str(calibration),
                        "samples": self.samples,
                        "sequence_length": 256,
                        "batch_size": 16,
                        "seed": self.seed,
                    },
                    **dict(self.changes),
                },
                "evaluate": {
                    "text": str(heldout),
                    "tokens": self.tokens,
                    "engine_tokens": min(self.tokens, 4000),
                    "sequence_length": 256,
                    "gates": dict(self.gates),
                },
                "compile": SIZES["compile"] | {"tensor_parallel": self.ranks},
            }
        )

    def write(self, output: Path) -> Path:
        """Quantizes the model into ``output``."""
        self._run(quantize.STAGE, output, {})
        return output

    def judge(self, checkpoint: Path, output: Path) -> tuple[Decision, dict[str, Any]]:
        """What becomes of a checkpoint, and what was measured of it."""
        return self._judge(evaluate.STAGE, output, {"quantize": checkpoint})

    def build(self, checkpoint: Path, output: Path) -> Path:
        """Compiles a checkpoint for the CPU."""
        self._run(compiling.STAGE, output, {"quantize": checkpoint})
        return output

    def judge_engine(
        self, checkpoint: Path, engine: Path, output: Path
    ) -> tuple[Decision, dict[str, Any]]:
        """What becomes of an engine that is taken for that of a checkpoint."""
        return self._judge(fidelity.STAGE, output, {"quantize": checkpoint, "compile": engine})

    def judge_files(self, checkpoint: Path, texts: Path) -> Decision:
        """What :meth:`judge` says, without completions, and with the source computed once.

        Args:
            checkpoint: The files.
            texts: Where the texts of the second model may be written.
        """
        recipe, source = self.recipe(texts), _source(self.folder, self.tokens, self.recipe(texts))
        written, cpu = load_reference(checkpoint), torch.device("cpu")
        vocabulary = int(source.model.config.vocab_size)
        scores = compare(source.scorer, scorer_of(written, cpu), source.windows, vocabulary)
        rows = [window.ids for window in source.windows]
        both = source.model, written, scorer_of(source.model, cpu), rows
        noise = signal_to_noise(*both)
        measured = {
            "parameters": source.model.num_parameters(),
            "vocabulary": vocabulary,
            **summarize(source.documents, source.windows, scores),
            "signal_to_noise": [linear.as_dict() for linear in noise.linears],
            "signal_to_noise_of_others": [
                {"part": other.linear, **other.as_dict()} for other in noise.others
            ],
        }
        return decide(gates_of(recipe, measured), None, None)

    def _judge(
        self, stage: Stage, output: Path, inputs: dict[str, Path]
    ) -> tuple[Decision, dict[str, Any]]:
        measured = self._run(stage, output, inputs)
        gates = gates_of(self.recipe(output.parent), measured)
        return decide(gates, None, None), measured

    def _run(self, stage: Stage, output: Path, inputs: dict[str, Path]) -> dict[str, Any]:
        output.mkdir(parents=True)
        made = {
            name: Artifact(name, "key", "digest", path, {})
            for name, path in {"source": self.folder, **inputs}.items()
        }
        return stage.run(StageContext(self.recipe(output.parent), made, output, Silent()))


@dataclass(frozen=True)
class _Source:
    """A source model and what it says of its text."""

    model: Any
    documents: list[Document]
    windows: list[Window]
    scorer: Scorer


_sources: dict[tuple[Path, int], _Source] = {}


def _source(folder: Path, tokens: int, recipe: Recipe) -> _Source:
    if (folder, tokens) not in _sources:
        assert recipe.evaluate
        model = load_source(folder)
        texts = read_texts(Path(recipe.evaluate.text))
        documents = read_documents(texts, load_tokenizer(folder), tokens)
        windows = strided_windows(documents, recipe.evaluate.sequence_length)
        known: dict[bytes, torch.Tensor] = {}
        score = scorer_of(model, torch.device("cpu"))

        def remembered(ids: torch.Tensor) -> torch.Tensor:
            key = bytes(ids.numpy())
            if key not in known:
                known[key] = score(ids)
            return known[key]

        _sources[folder, tokens] = _Source(model, documents, windows, remembered)
    return _sources[folder, tokens]


@cache
def _texts(model: str, folder: Path) -> tuple[Path, Path]:
    """Texts to calibrate on and texts to measure with."""
    if model == DEMO:
        data = DEMO_MODEL.parent / "data"
        return data / "calibration.jsonl", data / "heldout.jsonl"
    stories = SHARED_MODELS.parent / "data"
    found = []
    for name, file in (
        ("calibration", "tinystories_train_head_0.9M.txt"),
        ("heldout", "tinystories_valid_30k.txt"),
    ):
        text = (stories / file).read_text(encoding="utf-8")[:120_000]
        paragraphs = [text[start : start + 900].strip() for start in range(0, len(text), 900)]
        path = folder / f"{name}.txt"
        path.write_text("\n\n".join(" ".join(part.split()) for part in paragraphs))
        found.append(path)
    return found[0], found[1]

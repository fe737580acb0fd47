"""What the two stages that score models share: the text, both models, and their part in a key."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import versions
from pipeline.evaluation.tasks.reading import tasks_material, tasks_section
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.recipe.evaluate import EvaluateSection
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import file_marks
from pipeline.source.texts import text_digest
from pipeline.source.tokens import TextTokenizer
from pipeline.stages.base import StageContext
from pipeline.stages.compared import Pair, open_pair

if TYPE_CHECKING:
    from pipeline.evaluation.windows import Document, Window

TEXT_KEY = "evaluate.text"
MOVED_SCALES = "moved_scales"
"""A fact of a checkpoint whose norms and linears differ from the source's by moved scales."""
TOOLS = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class ScoredText:
    """What is scored.

    Attributes:
        tokenizer: The source's.
        documents: The recipe's texts, as far as they are scored.
        windows: Their windows.
        positions: The model's number of them.
    """

    tokenizer: TextTokenizer
    documents: Sequence[Document]
    windows: Sequence[Window]
    positions: int

    @property
    def tokens(self) -> int:
        """Counts the tokens that are scored."""
        return sum(document.scored for document in self.documents)


def settings_of(recipe: Recipe) -> EvaluateSection:
    """Returns the section ``evaluate``, without which neither stage is part of a run."""
    assert recipe.evaluate is not None
    return recipe.evaluate


def section(recipe: Recipe, keys: set[str]) -> dict[str, Any]:
    """Returns what decides the scores; files count by their contents, and gates do not.

    Args:
        recipe: With a section ``evaluate``.
        keys: Those of the section that count, besides its tasks.
    """
    # Raised when the reference computes other numbers of checkpoints whose bytes stay the same.
    settings = settings_of(recipe)
    measured = {} if settings.reference is None else {"reference": True}
    divided = {"scales": 2} if FORMATS[recipe.quantize.format].divides_prequant else {}
    return {
        **divided,
        **measured,
        **settings.model_dump(mode="json", include=keys),
        "tasks": tasks_section(recipe),
        "trust_remote_code": recipe.model.trust_remote_code,
        "device": recipe.quantize.device,
    }


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers the tools' versions and the digests of the text and of the tasks' files.

    Raises:
        RecipeError: A file cannot be read.
    """
    reference = settings_of(recipe).reference
    return {
        # Known by the stat of its files, as a source is.
        **({} if reference is None else {"reference": file_marks(Path(reference))}),
        "text": text_digest(recipe, TEXT_KEY),
        "tasks": tasks_material(recipe),
        "tools": versions(TOOLS),
    }


def read_text(context: StageContext, tokens: int, longest: int | None = None) -> ScoredText:
    """Reads the recipe's text and cuts it into windows that the model takes.

    Args:
        context: Of a stage with the source among its inputs.
        tokens: How many are scored, at most.
        longest: Of an engine that takes no longer windows; None is as long as the model takes.

    Raises:
        UsageError: The text is not usable.
        SourceError: The tokenizer cannot be loaded.
    """
    from pipeline.evaluation.windows import read_documents, strided_windows
    from pipeline.source.lines import read_texts
    from pipeline.source.rendering import Renderer
    from pipeline.source.tokens import load_tokenizer

    recipe, source = context.recipe, context.inputs["source"].path
    settings = settings_of(recipe)
    tokenizer = load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code)
    positions = ModelFacts.from_directory(source).max_position_embeddings
    wanted = min(settings.sequence_length, positions)
    if wanted < settings.sequence_length:
        context.progress.note(
            f"windows are of {wanted} tokens, not {settings.sequence_length}: the model has no "
            "more positions"
        )
    length = wanted if longest is None else max(2, min(wanted, longest))
    if length < wanted:
        context.progress.note(f"windows are of {length} tokens, not {wanted}: for the engine")
    texts = Renderer(source).texts(read_texts(Path(settings.text)))
    documents = read_documents(texts, tokenizer, tokens)
    windows = strided_windows(documents, length, settings.stride)
    return ScoredText(tokenizer, documents, windows, positions)


def load_models(context: StageContext) -> AbstractContextManager[Pair]:
    """Opens the source, or the model that it was made from, and the reference of its checkpoint.

    Raises:
        SourceError: The source model cannot be loaded.
        CheckpointError: The checkpoint is not complete.
        StageError: The device's memory ran out.
    """
    source, checkpoint = context.inputs["source"].path, context.inputs["quantize"].path
    if (reference := settings_of(context.recipe).reference) is not None:
        context.progress.note(f"measuring against {reference}")
        source = Path(reference)
    return open_pair(context, source, checkpoint, unfinished=context.unfinished)

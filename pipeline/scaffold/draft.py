"""A first recipe put together: what is read of the model, what is chosen, the files to write."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import parameters
from pipeline.preflight.model_checks import check_model
from pipeline.preflight.remarks import source_dtype
from pipeline.recipe.docs import recipe_keys, schema_text
from pipeline.recipe.evaluate import Gates
from pipeline.recipe.file import load_recipe
from pipeline.recipe.paths import as_written
from pipeline.recipe.schema import Recipe
from pipeline.running.planner import build_plan
from pipeline.scaffold import samples
from pipeline.scaffold.choices import Asked, Choices, choose
from pipeline.scaffold.document import GATES, recipe_text
from pipeline.source.hub import hub_config
from pipeline.source.lines import read_texts
from pipeline.source.local import local_directory
from pipeline.source.rendering import check_conversations
from pipeline.store.build_dir import BuildDir
from pipeline.verdict.defaults import limit_of
from pipeline.verdict.plausible import GUESSING

SCHEMA_NAME = "recipe.schema.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARES = ("perplexity_increase", "top1_agreement", "accuracy_loss")


@dataclass(frozen=True)
class Draft:
    """A recipe that is not written yet.

    Attributes:
        name: Its name.
        path: Where it goes.
        text: The file.
        files: What goes beside it, by path.
        choices: What was chosen, and why.
        recipe: The same, read from the file.
    """

    name: str
    path: Path
    text: str
    files: dict[Path, bytes]
    choices: Choices
    recipe: Recipe

    @property
    def schema(self) -> Path:
        """The file that the recipe's first line names to editors."""
        return self.path.parent / SCHEMA_NAME

    def as_dict(self) -> dict[str, Any]:
        """Returns what was chosen as JSON values, with the reasons."""
        reasons = self.choices.reasons
        return {
            "name": self.name,
            "recipe": str(self.path),
            "files": [str(path) for path in self.files],
            "choices": [
                {"key": key, "value": value, "why": reasons.get(key)}
                for key, value in self.choices.values.items()
            ],
        }


def draft(
    asked: Asked, output: Path | None, text: Path | None = None, heldout: Path | None = None
) -> Draft:
    """Makes a recipe of which ``plan`` has nothing to refuse.

    Only ``config.json`` of a model on the Hub is fetched. Nothing is written but to a temporary
    folder.

    Args:
        asked: What the user says.
        output: The file to write; None is the recipe's name in the current directory.
        text: The user's text; None takes the stopgap.
        heldout: The user's text to measure on; see :func:`pipeline.scaffold.samples.own`.

    Raises:
        RecipeError: The model is neither a directory nor a Hub id, or there is no such GPU.
        SourceError: ``config.json`` is damaged or cannot be fetched, or the snapshot is damaged.
        UnsupportedError: Model, format and target do not go together.
        UsageError: A text cannot be read, or has a conversation that the model's template refuses.
    """
    bare = Recipe.model_validate(
        {"name": "new", "model": {"source": asked.model}, "quantize": {"format": "float16"}}
    )
    local = local_directory(bare)
    directory = local or hub_config(bare)
    facts = ModelFacts.from_directory(directory)
    choices = choose(asked, facts, directory, source_dtype(facts, local))
    name = _name(asked.model, str(choices.values["quantize.format"]))
    path = output or Path(f"{name}.yaml")
    texts = samples.own(text, heldout, path.parent, name) if text else samples.bundled(path.parent)
    for file in (text, heldout):
        if file and local:
            check_conversations(read_texts(file), local)
    choices.set("name", name, "the model's, with the format")
    source = as_written(Path(asked.model), path.parent) if local else asked.model
    choices.set("model.source", source)
    if local is None and _COMMIT.fullmatch(directory.name):
        pinned = "what the main branch was when this was written"
        choices.set("model.revision", directory.name, pinned)
    row = FORMATS[choices.values["quantize.format"]]
    if row.calibration and facts.quantized is None:
        choices.set("quantize.calibration.text", _text(texts.calibration, path), texts.reasons[0])
    choices.set("evaluate.text", _text(texts.heldout, path), texts.reasons[1])
    for key, words in _gate_words(facts, row.weight_bits):
        choices.set(key, "auto", words)
    choices.sort([key.name for key in recipe_keys()])
    files = {file: data for file, data in texts.files.items() if _is_named(file, path, choices)}
    written = recipe_text(choices, _left_out(choices, local is not None), _head(asked, path))
    return Draft(
        name,
        path,
        written,
        {**files, path.parent / SCHEMA_NAME: schema_text().encode()},
        choices,
        _planned(choices, local or asked.model, directory),
    )


def _planned(choices: Choices, source: Path | str, directory: Path) -> Recipe:
    """Reads the recipe as ``plan`` would, and plans it on an empty store.

    It lies in a folder of its own meanwhile, so the model is named from there.
    """
    there = source if isinstance(source, str) else as_written(source.absolute(), Path())
    moved = Choices({**choices.values, "model.source": there}, choices.reasons)
    text = recipe_text(moved, _left_out(moved, isinstance(source, Path)), [])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        recipe = load_recipe(path)
        check_model(recipe, directory)
        if local_directory(recipe):
            build_plan(recipe, BuildDir(Path(folder)).store, {})
        return recipe


def _name(model: str, form: str) -> str:
    last = Path(model).expanduser().resolve().name if Path(model).exists() else model
    words = re.sub(r"[^a-z0-9._-]+", "-", last.rpartition("/")[2].lower()).strip("-._")
    return f"{words[:80] or 'model'}-{form.replace('_', '-')}"


def _text(file: Path, recipe: Path) -> str:
    return as_written(file, recipe.parent)


def _is_named(file: Path, recipe: Path, choices: Choices) -> bool:
    named = (choices.values.get(key) for key in ("quantize.calibration.text", "evaluate.text"))
    return _text(file, recipe) in named


def _left_out(choices: Choices, local: bool) -> frozenset[str]:
    row = FORMATS[choices.values["quantize.format"]]
    absent = {
        "model.revision": local,
        "model.dtype": "model.dtype" not in choices.values,
        "quantize.group_size": not row.group_sizes,
        "quantize.smoothquant_alpha": row.searched != "smoothquant_alpha",
        "quantize.stored": "quantize.stored" not in choices.values,
        "quantize.calibration": row.calibration is None or "quantize.stored" in choices.values,
    }
    return frozenset(key for key, left in absent.items() if left)


def _gate_words(facts: ModelFacts, bits: int) -> Iterator[tuple[str, str]]:
    count = parameters(facts)
    size = f"{count / 1e9:.3g} billion" if count >= 10**9 else f"{count / 1e6:.3g} million"
    for name in Gates.model_fields:
        if Gates.model_fields[name].default != "auto":
            continue
        if name == "source_perplexity":
            guess = f"auto is {GUESSING * facts.vocab_size:,}, twice the vocabulary"
            yield f"{GATES}.{name}", guess
            continue
        limit = limit_of(Gates(), name, count, bits)
        assert limit is not None
        share = name.removeprefix("engine_") in _SHARES
        shown = f"{limit:g} ({limit * 100:g} %)" if share else f"{limit:g}"
        yield f"{GATES}.{name}", f"auto is {shown}, for {size} parameters and {bits}-bit weights"


def _head(asked: Asked, path: Path) -> list[str]:
    file = shlex.quote(path.as_posix())
    return [
        f"yaml-language-server: $schema={SCHEMA_NAME}",
        f"{asked.model}, by trtllm-pipeline init. Keys that are not here have their defaults:",
        "`trtllm-pipeline schema --markdown` explains all of them. Next:",
        f"  trtllm-pipeline plan {file}",
        f"  trtllm-pipeline run {file}",
    ]

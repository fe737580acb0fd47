"""The files of texts that a recipe names: their part in a key, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipeline.errors import RecipeError, UsageError, check_all
from pipeline.recipe.schema import PROMPTS_KEY, Recipe
from pipeline.source.lines import read_texts
from pipeline.source.prompts import read_prompts
from pipeline.source.rendering import check_conversations
from pipeline.store.digests import file_digest

# A text that may begin with a special token, such as <s>: in a line, or in a string of JSON, where
# any character may be an escape.
_SPECIAL_FIRST = re.compile(
    rb'(?:\A(?:\xef\xbb\xbf)?|[\n"])(?:\s|\\[nrtf])*(?:[<\[]|\\u00(?:3[cC]|5[bB]))'
)


def text_digest(recipe: Recipe, key: str) -> str | None:
    """Returns what a text file that the recipe names counts as in a key; None where it names none.

    That is the SHA-256 of its bytes, and a mark where a text may begin with a special token.

    Args:
        recipe: The recipe.
        key: Such as ``quantize.calibration.text`` or ``evaluate.text``.

    Raises:
        RecipeError: The file cannot be read.
    """
    path = recipe.text_paths().get(key)
    if path is None:
        return None
    try:
        digest = file_digest(path)
        # Raised where one special token at the beginning of a text has become of two.
        return f"{digest} once" if _SPECIAL_FIRST.search(path.read_bytes()) else digest
    except OSError as error:
        raise RecipeError(
            f"the text {path} cannot be read",
            where=recipe.place(key),
            why=error.strerror,
            fix="Name a .txt or .jsonl file; relative paths begin at the recipe's folder",
        ) from error


def check_texts(recipe: Recipe) -> None:
    """Reads every text that the recipe names, before hours are spent on what comes before it.

    Conversations of a model that lies in a directory are rendered, too.

    Raises:
        RecipeError: A text is missing, of another kind, not UTF-8, malformed or empty, or a
            conversation is one that the model's chat template refuses.
    """
    folder = Path(recipe.model.source).expanduser()
    check_all(
        partial(_check_text, key, path, recipe.place(key), folder if folder.is_dir() else None)
        for key, path in recipe.text_paths().items()
    )


def check_fetched(recipe: Recipe, directory: Path) -> None:
    """Renders the conversations of the texts that the recipe names, for a model of the Hub.

    Args:
        recipe: The recipe.
        directory: The model's snapshot.

    Raises:
        RecipeError: The model has no chat template, or its template refuses a line.
    """
    if not Path(recipe.model.source).expanduser().is_dir():
        check_all(
            partial(_check_text, key, path, recipe.place(key), directory)
            for key, path in recipe.text_paths().items()
        )


def _check_text(key: str, path: Path, place: str, directory: Path | None) -> None:
    with named_at(place):
        lines = (read_prompts if key == PROMPTS_KEY else read_texts)(path)
        if directory is not None:
            check_conversations(lines, directory)


@contextmanager
def named_at(place: str) -> Iterator[None]:
    """Makes what is wrong with a file a mistake of the recipe that names it.

    Args:
        place: Where the recipe names it, from :meth:`Recipe.place`.

    Raises:
        RecipeError: For a UsageError.
    """
    try:
        yield
    except UsageError as error:
        raise RecipeError(
            f"{error.where}: {error.what}", where=place, why=error.why, fix=error.fix
        ) from error

"""The questions of the recipe's tasks: read, checked at once, and counted by their contents."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError, UsageError, check_all
from pipeline.evaluation.tasks.hellaswag import read_hellaswag
from pipeline.evaluation.tasks.mmlu import files_of, read_mmlu
from pipeline.evaluation.tasks.question import Question
from pipeline.recipe.evaluate import TaskSection
from pipeline.recipe.schema import Recipe
from pipeline.source.texts import named_at
from pipeline.store.digests import digest_of, file_digest

TASKS_KEY = "evaluate.tasks"


def read_questions(task: TaskSection, most: int | None = None) -> list[Question]:
    """Reads the questions of one task, at most ``rows`` of them.

    Args:
        task: The task.
        most: Bytes that are read of each larger file of questions; None reads all.

    Raises:
        UsageError: A file is missing, is not in the layout or has no question.
    """
    path = Path(task.file)
    if task.layout == "hellaswag":
        questions = read_hellaswag(path, most)
    else:
        shots_path = None if task.shots_file is None else Path(task.shots_file)
        questions = read_mmlu(path, task.shots, shots_path, most)
    if not questions:
        raise UsageError("the file has no question", where=str(path), fix="Write one a line")
    return questions[: task.rows]


def check_tasks(recipe: Recipe) -> None:
    """Reads every question that the recipe names, before hours are spent on what comes before.

    Raises:
        RecipeError: A file is missing, is not in the layout or has no question.
    """
    check_all(partial(_check_task, task, place) for place, task in _tasks(recipe))


def tasks_material(recipe: Recipe) -> list[dict[str, str]]:
    """Computes the SHA-256 of the contents of each task's files, by the key that names them.

    Raises:
        RecipeError: A file cannot be read.
    """
    found = []
    for place, task in _tasks(recipe):
        named = {"file": task.file, "shots_file": task.shots_file}
        try:
            found.append({key: _digest(Path(path)) for key, path in named.items() if path})
        except OSError as error:
            raise RecipeError(
                f"the task's file {error.filename} cannot be read",
                where=place,
                why=error.strerror,
                fix="Name a file in the task's layout; relative paths begin at the recipe's folder",
            ) from error
        except UsageError as error:
            raise RecipeError(f"{error.where}: {error.what}", where=place, fix=error.fix) from error
    return found


def tasks_section(recipe: Recipe) -> list[dict[str, Any]]:
    """Returns what the recipe says of its tasks beside the files, which count by their contents."""
    tasks = recipe.evaluate.tasks if recipe.evaluate else []
    return [task.model_dump(mode="json", exclude={"file", "shots_file"}) for task in tasks]


def _check_task(task: TaskSection, place: str) -> None:
    with named_at(place):
        read_questions(task)


def _tasks(recipe: Recipe) -> list[tuple[str, TaskSection]]:
    tasks = recipe.evaluate.tasks if recipe.evaluate else []
    return [(recipe.place(f"{TASKS_KEY}.{index}"), task) for index, task in enumerate(tasks)]


def _digest(path: Path) -> str:
    """A file's digest; a folder's counts the names, which are subjects, too."""
    files = files_of(path)
    if files == [path]:
        # A subject is in the name of a CSV file.
        return digest_of([path.name, file_digest(path)]) if _is_csv(path) else file_digest(path)
    return digest_of([[file.name, file_digest(file)] for file in files])


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"

"""Files of multiple-choice questions: what is read of them, and what is refused with its line."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError, UsageError
from pipeline.evaluation.tasks.reading import check_tasks, read_questions, tasks_material
from pipeline.recipe.evaluate import TaskSection
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe

SWAG: dict[str, Any] = {
    "activity_label": "Making tea",
    "ctx_a": "[header] Boil water [title] Take a [step] pot.",
    "ctx_b": "the Cook",
    "endings": ["drinks  it.", " pours [substeps] some."],
    "label": "1",
}
SUM: dict[str, Any] = {
    "question": " 1 + 1 = ",
    "choices": ["1", "2", "3", "4"],
    "answer": 1,
    "subject": "small_sums",
}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def task(path: Path, layout: Any = "mmlu", **keys: Any) -> TaskSection:
    return TaskSection(name="t", file=str(path), layout=layout, **keys)


def recipe(tmp_path: Path, tasks: Any) -> Recipe:
    path = tmp_path / "recipe.yaml"
    text = tmp_path / "text.txt"
    text.write_text("A text.\n")
    path.write_text(
        "schema: 1\nname: t\nmodel: {source: m}\nquantize: {format: float16}\n"
        f"evaluate:\n  text: {text}\n  tasks: {json.dumps(tasks)}\n"
    )
    return load_recipe(path)


def test_hellaswag_has_the_text_that_lm_eval_makes(tmp_path: Path) -> None:
    """By hand, from lm-eval's rules: ``[title]`` ends a sentence, other brackets go, once."""
    (question,) = read_questions(task(jsonl(tmp_path / "q.jsonl", SWAG), "hellaswag"))
    assert question.context == "Making tea: Boil water. Take a pot. The cook"
    assert question.choices == ("drinks it.", "pours some.")
    assert question.answer == 1
    assert question.place == f"{tmp_path / 'q.jsonl'}:1"


def test_mmlu_has_the_prompt_that_lm_eval_makes(tmp_path: Path) -> None:
    (question,) = read_questions(task(jsonl(tmp_path / "q.jsonl", SUM)))
    assert question.context == (
        "The following are multiple choice questions (with answers) about small sums.\n\n"
        "1 + 1 =\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    assert question.choices == ("A", "B", "C", "D")
    assert question.answer == 1


def test_examples_of_the_subject_stand_in_front_with_their_letters(tmp_path: Path) -> None:
    other = {**SUM, "subject": "words", "question": "Which?"}
    shots = jsonl(tmp_path / "s.jsonl", other, {**SUM, "answer": "D"}, SUM, SUM)
    path = jsonl(tmp_path / "q.jsonl", SUM)
    (question,) = read_questions(task(path, shots=2, shots_file=str(shots)))
    body = "1 + 1 =\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert question.context.partition("\n\n")[2] == f"{body} D\n\n{body} B\n\n{body}"
    with pytest.raises(UsageError, match="3 examples of the subject small_sums, not 4"):
        read_questions(task(path, shots=4, shots_file=str(shots)))


def test_a_folder_has_a_subject_a_file_which_are_asked_in_turn(tmp_path: Path) -> None:
    for subject, rows in (("b_test", 1), ("a_val", 3)):
        with (tmp_path / f"{subject}.csv").open("w", newline="") as file:
            lines = [f'{subject} {row}, "so"\nto say' for row in range(rows)]
            csv.writer(file).writerows([line, 1, 2, 3, 4, "C"] for line in lines)
    found = read_questions(task(tmp_path, rows=3))
    assert [question.context.split("\n")[2] for question in found] == [
        'a_val 0, "so"',
        'b_test 0, "so"',
        'a_val 1, "so"',
    ]
    assert found[1].context.startswith(
        "The following are multiple choice questions (with answers) about b.\n\n"
    )
    assert [question.answer for question in found] == [2, 2, 2]
    assert [question.place.rpartition(":")[2] for question in found] == ["2", "2", "4"]


@pytest.mark.parametrize(
    ("layout", "row", "words"),
    [
        ("hellaswag", "[1]", "not a JSON object"),
        ("hellaswag", '{"ctx_a": ', "not JSON"),
        ("hellaswag", {**SWAG, "label": 2}, '"label" is 2, none of the 2 choices'),
        ("hellaswag", {**SWAG, "label": ""}, "\"label\" is '', none of the 2 choices"),
        ("hellaswag", {**SWAG, "label": True}, '"label" is True, none of the 2 choices'),
        ("hellaswag", {**SWAG, "endings": ["a"]}, '"endings" is not a list of 2 to 26 texts'),
        ("hellaswag", {**SWAG, "endings": ["a", 1]}, 'each of "endings" is int, not a text'),
        ("hellaswag", {**SWAG, "endings": ["a", " [x] "]}, "an ending has no text"),
        ("hellaswag", {**SWAG, "ctx_b": "\ud800"}, '"ctx_b" has half of a surrogate pair'),
        ("hellaswag", {"ctx": "x"}, '"activity_label" is missing'),
        ("mmlu", {**SUM, "answer": "E"}, "\"answer\" is 'E', none of the 4 choices"),
        ("mmlu", {**SUM, "answer": -1}, '"answer" is -1, none of the 4 choices'),
        ("mmlu", {**SUM, "subject": None}, '"subject" is missing'),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, layout: str, row: Any, words: str) -> None:
    """By the recipe's check too, which runs before anything else does."""
    good = SWAG if layout == "hellaswag" else SUM
    path = jsonl(tmp_path / "q.jsonl", good)
    with path.open("a") as file:
        file.write(f"\n{row if isinstance(row, str) else json.dumps(row)}\n")
    with pytest.raises(UsageError, match=words) as found:
        read_questions(task(path, layout))
    assert found.value.where == f"{path}:3"
    assert "Write one object a line" in (found.value.fix or "")
    wrong = recipe(tmp_path, [{"name": "t", "file": str(path), "layout": layout}])
    with pytest.raises(RecipeError, match=words) as refused:
        check_tasks(wrong)
    assert f"{path}:3: " in refused.value.what
    assert refused.value.where == f"{tmp_path / 'recipe.yaml'}:7 (evaluate.tasks.0)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q,1,2,3,A\n", "5 columns, not 6"),
        ("q,1,2,3,4,E\n", "the last column is 'E'"),
        ('"q"x,1,2,3,4,A\n', "not CSV"),
        ("", "the file has no question"),
    ],
)
def test_a_wrong_csv_row_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "sums_val.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as found:
        read_questions(task(path))
    assert str(path) in (found.value.where or "")


def test_a_missing_file_is_refused_by_the_recipes_key(tmp_path: Path) -> None:
    missing = recipe(tmp_path, [{"name": "t", "file": "nowhere.jsonl", "layout": "hellaswag"}])
    for refuse in (check_tasks, tasks_material):
        with pytest.raises(RecipeError, match=r"nowhere\.jsonl") as found:
            refuse(missing)
        assert found.value.where == f"{tmp_path / 'recipe.yaml'}:7 (evaluate.tasks.0)"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"layout": "arc"}, "'arc' is not one of 'hellaswag' or 'mmlu'"),
        ({"shots": 2}, "shots and shots_file need each other"),
        ({"shots_file": "x"}, "shots and shots_file need each other"),
        ({"shots": 1, "shots_file": "q.jsonl"}, "shots_file is file itself"),
        ({"layout": "hellaswag", "shots": 1, "shots_file": "x"}, "takes no examples"),
        ({"row": 2}, "unknown key"),
    ],
)
def test_a_wrong_task_is_refused_with_its_place(
    tmp_path: Path, task: dict[str, Any], words: str
) -> None:
    given = {"name": "t", "file": "q.jsonl", "layout": "mmlu", **task}
    with pytest.raises(RecipeError, match=f"(?i){words}") as found:
        recipe(tmp_path, [given])
    assert f"{tmp_path / 'recipe.yaml'}:7" in str(found.value.where)
    if "row" in task:
        assert found.value.fix == "Did you mean rows?"


def test_names_are_given_once(tmp_path: Path) -> None:
    given = {"name": "t", "file": "q.jsonl", "layout": "mmlu"}
    with pytest.raises(RecipeError, match="Two tasks have the name t"):
        recipe(tmp_path, [given, given])


def test_contents_count_and_not_where_they_lie(tmp_path: Path) -> None:
    def digests(path: Path) -> list[dict[str, str]]:
        return tasks_material(
            recipe(tmp_path, [{"name": "t", "file": str(path), "layout": "mmlu"}])
        )

    first = jsonl(tmp_path / "a.jsonl", SUM)
    assert digests(first) == digests(jsonl(tmp_path / "b.jsonl", SUM))
    assert digests(first) != digests(jsonl(tmp_path / "c.jsonl", SUM, SUM))
    # The name of a CSV file is the subject, which stands in the prompt.
    for name in ("one/x_val.csv", "two/x_val.csv", "three/y_val.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("q,1,2,3,4,A\n")
    assert digests(tmp_path / "one") == digests(tmp_path / "two") != digests(tmp_path / "three")
    one, other = (tmp_path / name for name in ("one/x_val.csv", "three/y_val.csv"))
    assert digests(one) != digests(other)


def test_an_answer_of_thousands_of_digits_is_no_choice(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", {**SUM, "answer": "9" * 5000})
    with pytest.raises(UsageError, match=r"q\.jsonl:1: \"answer\" is '999.*none of the 4 choices"):
        read_questions(task(path))


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    """Opened for reading, it would block until somebody writes; nobody ever does here."""
    tasks = [{"name": "t", "file": str(tmp_path / "q.jsonl"), "layout": "mmlu"}]
    named = recipe(tmp_path, tasks)
    os.mkfifo(tmp_path / "q.jsonl")
    with pytest.raises(RecipeError, match=r"tasks\.0\.file cannot be used: .*It is a pipe"):
        recipe(tmp_path, tasks)
    # One that comes after the recipe was read.
    with pytest.raises(RecipeError, match=r"q\.jsonl: the text file cannot be read\. It is a pipe"):
        check_tasks(named)
    with pytest.raises(RecipeError, match=r"q\.jsonl cannot be read\. It is a pipe or a device"):
        tasks_material(named)

"""What tasks and the ranks of a checkpoint add to an estimate, against sums done by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.effort import questions
from pipeline.effort.fitting import refusal, warnings
from pipeline.effort.questions import Seen, TaskTexts, asked
from pipeline.effort.stages import Machine, StageEffort
from pipeline.reading.files import read_beginning
from pipeline.recipe.evaluate import TaskSection
from pipeline.recipe.schema import Recipe

from .test_effort import FAST, SMALL, estimated, facts_of, recipe_of

TASK = {"name": "t", "file": "none.jsonl", "layout": "mmlu"}
WITH = {"tasks": [TASK]}


def swag(first: str, *endings: str) -> str:
    row = {"activity_label": "A", "ctx_a": first, "ctx_b": "c", "endings": endings, "label": 0}
    return json.dumps(row) + "\n"


def seen(file: Path, layout: Any = "hellaswag", **keys: Any) -> Seen:
    found = TaskTexts()(TaskSection(name="t", file=str(file), layout=layout, **keys))
    assert found is not None
    return found


def evaluated(tokens: Sequence[int] | None, facts: Any, **sections: Any) -> Any:
    """The stage ``evaluate`` with a task whose texts have so many tokens."""
    given = None if tokens is None else Seen(tuple(tokens))
    recipe = recipe_of(evaluate=WITH, **sections)
    return estimated(recipe, facts, FAST, asking=lambda _task: given)["evaluate"]


def test_each_ending_is_seen_behind_its_context_and_letters_are_not(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    # "A: bbb... C" is 30 bytes, and with a space and the endings 70 and 35: 3.5 of them a token,
    # and one that begins a text. What is asked twice is computed once.
    file.write_text(2 * swag("b" * 25, "d" * 39, "e" * 4))
    assert sorted(seen(file).lengths) == [11, 21]
    sums = {"question": "1 + 1 =", "choices": ["1", "2"], "answer": 1, "subject": "small_sums"}
    file.write_text(json.dumps(sums) + "\n")
    shots = tmp_path / "shots.jsonl"
    shots.write_text(json.dumps(sums) + "\n")
    head = "The following are multiple choice questions (with answers) about small sums.\n\n"
    prompt = "1 + 1 =\nA. 1\nB. 2\nAnswer:"
    # 78 bytes and 25; an example ends with " B" and two line ends.
    assert (len(head), len(prompt)) == (78, 25)
    assert seen(file, "mmlu").lengths == (1 + 30,)
    assert seen(file, "mmlu", shots=1, shots_file=str(shots)).lengths == (1 + 38,)


def test_batches_are_as_wide_as_their_longest_row_and_no_row_as_the_model_takes_no_more() -> None:
    facts = replace(SMALL, max_position_embeddings=1000)
    recipe = recipe_of(evaluate=WITH)
    (texts,) = asked(recipe, facts, lambda _task: Seen((900, 9000, 700, 600, 500)))
    # 2^26 logits are 2097 tokens of 32000: 1000 and 900, then 700, 600 and 500 to 700.
    assert (texts.rows, texts.tokens, texts.longest) == (5, 2 * 1000 + 2 * 700 + 500, 1000)
    assert texts.batch_tokens == 2000
    # 8998 x 3.5 bytes have more than 1000 tokens of 8 bytes.
    assert texts.sure_batch == 1000


def test_questions_take_their_tokens_twice_and_a_walk_for_512_mib_of_states() -> None:
    without, found = evaluated(None, SMALL), evaluated([1000] * 1000, SMALL)
    # A million tokens through 182.5 million weights and a head of 32.8, with 2 x 1,024 x 500
    # multiplications of attention in 12 layers, in both models at 1 TFLOP/s: 910 s. Their states
    # of 4.1 GB are 8 walks, which turn 248 million parameters back at 1.5 ns in both models.
    more = found.seconds.computing - without.seconds.computing
    assert more == pytest.approx(2 * 2 * 1e6 * (215.3e6 + 12.3e6) / 1e12 + 5.95, rel=0.01)
    # 2 bytes of the source at 1 GB/s, and the checkpoint: 4.125 bits of a weight, and two tables.
    checkpoint = 182.5e6 * 4.125 / 8 + 2 * 2 * 32.8e6
    read = 8 * (2 * 248e6 + checkpoint) / 1e9
    assert found.seconds.disk - without.seconds.disk == pytest.approx(read, rel=0.01)
    assert found.disk.scratch - without.disk.scratch == pytest.approx(
        2 * 4.096e9 + (512 << 20) - 39_000 * 4096, rel=0.01
    )


def test_a_long_question_has_the_logits_of_all_its_tokens() -> None:
    facts = facts_of("llama-3.1-8b")
    found = evaluated([8000], facts).memory
    # Of one model at a time, and those of one block of the head, which is 256 MiB of 2.1 GB; two
    # such blocks; hidden states of both models; what there is in any case.
    logits, head = 8000 * 128256 * 4, 128256 * 4096 * 4
    block = 256 << 20
    wanted = logits * (1 + block / head) + 2 * block + 2 * 8000 * 4096 * 4 + 570e6
    assert found.likely == pytest.approx(wanted)
    # 7998 x 3.5 bytes have 3499 tokens of 8 bytes.
    assert found.least == 300e6 + 3499 * 128256 * 4
    whole = {"model": {"at_once": "model"}}
    # A window of 512 tokens has its logits four times, which is less.
    more = evaluated([8000], facts, **whole).memory.likely
    assert more - evaluated(None, facts, **whole).memory.likely == pytest.approx(
        2 * logits - 4 * 512 * 128256 * 4
    )


def test_what_does_not_fit_for_its_questions_fits_without() -> None:
    facts, recipe = facts_of("llama-3.1-8b"), recipe_of(evaluate=WITH)

    def estimate(other: Recipe) -> Sequence[StageEffort]:
        asking = {"asking": lambda _task: Seen((8000,))}
        return [estimated(other, facts, **asking)["evaluate"]]

    found = estimate(recipe)
    small = Machine(2 * 10**9, None, None)
    error = refusal(recipe, found, small, estimate)
    assert error is not None
    assert error.fix is not None
    assert error.fix.startswith("Set evaluate.tasks to [], which takes about ")
    (said,) = warnings(recipe, found, Machine(5 * 10**9, None, None), estimate)
    assert said.key == "evaluate.tasks"


def test_beginnings_stand_for_large_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    lines = [swag(f"{number:025}", "d" * 39, "e" * 4) for number in range(100)]
    file.write_text("".join(lines))
    monkeypatch.setattr(questions, "MOST_BYTES", 10 * len(lines[0]) + 5)
    found = seen(file)
    # Ten lines of a hundred, and five bytes of which nothing is made.
    assert (len(found.lengths), found.whole) == (20, False)
    assert found.times == pytest.approx(10, rel=0.01)
    (texts,) = asked(recipe_of(evaluate=WITH), SMALL, lambda _task: found)
    assert texts.rows == pytest.approx(200, abs=1)
    assert texts.sure_batch == 0
    assert len(seen(file, rows=5).lengths) == 10
    assert seen(file, rows=5).times == 1
    assert seen(file, rows=50).times == 5
    # Examples are read as a whole, or their task counts for nothing.
    monkeypatch.setattr(questions, "MOST_TEXT_BYTES", 10)
    shown = TaskSection(name="t", file=str(file), layout="mmlu", shots=1, shots_file=__file__)
    assert TaskTexts()(shown) is None


def test_a_row_of_a_csv_file_that_goes_on_behind_what_is_read_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "sums_test.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([["one\ntwo\nthree", "1", "2", "3", "4", "A"]] * 2)
    row = file.stat().st_size // 2
    monkeypatch.setattr(questions, "MOST_BYTES", row + 8)
    assert seen(file, "mmlu").times == pytest.approx(2 * row / (row + 8))
    file.write_bytes(b"ab\ncd\nef")
    assert read_beginning(file, 7) == b"ab\ncd\n"
    assert read_beginning(file, 8) == b"ab\ncd\nef"


def test_a_task_whose_files_are_not_there_counts_for_nothing(tmp_path: Path) -> None:
    facts = facts_of("llama-3.1-8b")
    found = estimated(recipe_of(evaluate=WITH), facts, FAST)["evaluate"]
    assert found == estimated(recipe_of(), facts, FAST)["evaluate"]
    (tmp_path / "q.jsonl").write_text("none\n")
    wrong = TaskSection(name="t", file=str(tmp_path / "q.jsonl"), layout="mmlu")
    assert TaskTexts()(wrong) is None


@pytest.mark.parametrize(("target", "answers"), [("openvino", True), ("vllm", False)])
def test_an_engine_answers_where_it_gives_its_logits(target: str, answers: bool) -> None:
    facts = facts_of("llama-3.1-8b")
    sizes = {"max_seq_len": 1024, "max_batch_size": 2, "max_input_len": 512}
    recipe = recipe_of(compile={"target": target, **sizes}, evaluate=WITH)
    with_tasks, without = (
        estimated(
            recipe, facts, FAST, stages=("fidelity",), asking=lambda _task, given=given: given
        )
        for given in (Seen((1000,) * 1000), None)
    )
    assert (with_tasks != without) == answers


def test_what_is_cut_for_ranks_is_joined_while_it_is_read() -> None:
    def likely(stage: str, ranks: int, **sections: Any) -> int:
        limits = {"max_seq_len": 1024, "max_batch_size": 2, "max_input_len": 512}
        compiled = {"target": "openvino", "tensor_parallel": ranks, **limits}
        recipe = recipe_of(compile=compiled, **sections)
        found: int = estimated(recipe, facts_of("llama-3.1-70b"))[stage].memory.likely
        return found

    # Embedding and head in bfloat16: 2.1 GB each. A layer in FP8: q and o 8192 x 8192, k and v
    # 1024 x 8192, gate, up and down 28672 x 8192.
    layer = 2 * 8192**2 + 2 * 1024 * 8192 + 3 * 28672 * 8192
    joined = 2 * 128256 * 8192 * 2 + layer
    fp8 = {"quantize": {"format": "fp8"}}
    for stage in ("evaluate", "compile"):
        assert likely(stage, 4, **fp8) - likely(stage, 1, **fp8) == pytest.approx(joined, rel=1e-3)
    # Candidates are scored by layers, too; what quantizes joins nothing, and of whole models the
    # joined arrays go before anything is scored.
    tried = {"quantize": {"format": "int8_sq", "search": {"tokens": 1000}}}
    more = likely("quantize", 4, **tried) - likely("quantize", 1, **tried)
    assert more == pytest.approx(joined, rel=0.01)
    assert likely("quantize", 4, **fp8) == likely("quantize", 1, **fp8)
    whole = {"model": {"at_once": "model"}, **fp8}
    assert likely("evaluate", 4, **whole) == likely("evaluate", 1, **whole)

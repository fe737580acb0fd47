"""Conversations in the texts of a recipe, against transformers: ids, rows, windows, perplexity."""

from __future__ import annotations

import json
import math
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("modelopt")

import torch
import transformers

from pipeline.errors import RecipeError, UsageError
from pipeline.evaluation.windows import read_documents
from pipeline.progress import Silent
from pipeline.quantize import by_layer
from pipeline.recipe.schema import Recipe
from pipeline.running.runner import RunResult, run_recipe
from pipeline.source.lines import read_texts
from pipeline.source.rendering import Renderer
from pipeline.source.texts import check_texts
from pipeline.source.tokens import load_tokenizer, text_ids
from pipeline.store.build_dir import BuildDir
from tests.conftest import DEMO_MODEL, PROJECT

PUBLISHED = PROJECT / "tests/data/chat-templates"
# As Llama's: bos once in front, the date, tools in the system turn, and no answer but the user's.
TEMPLATE = """\
{{- bos_token }}
{%- if strftime_now is defined %}{{ "Today: " + strftime_now("%d %b %Y") + "\\n" }}{% endif %}
{%- if tools %}{{ "<pad>tools\\n" + (tools | tojson) + eos_token }}{% endif %}
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant"] %}
        {{- raise_exception("there is no role " + message.role) }}
    {%- endif %}
    {{- "<pad>" + message.role + "\\n" + message.content | trim + eos_token + "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<pad>assistant\\n" }}{% endif %}
"""
TOOL = {"type": "function", "function": {"name": "look", "description": "née 🐌"}}


def chats(count: int) -> list[dict[str, Any]]:
    """Lines of every form, of words that the demo model knows, and some that it does not."""
    story = json.loads((DEMO_MODEL.parent / "data/heldout.jsonl").read_text().split("\n")[0])
    sentences = [f"{part.strip()}." for part in story["text"].split(".") if part.strip()]
    lines: list[dict[str, Any]] = []
    for number in range(count):
        first, second, third = (sentences[(number + k) % len(sentences)] for k in range(3))
        question = {"role": "user", "content": f" {first} é🐌 {number}"}
        answer = {"role": "assistant", "content": second}
        lines += [
            {"messages": [{"role": "system", "content": third}, question, answer]},
            {"prompt": [question], "completion": [answer], "tools": [TOOL]},
        ]
    return lines


def messages_of(line: dict[str, Any]) -> list[dict[str, Any]]:
    return line.get("messages") or [*line["prompt"], *line["completion"]]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def expected_ids(model: Path, line: dict[str, Any], **options: Any) -> list[int]:
    """What transformers makes of a conversation; on the day that is always the same here."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    found: list[int] = tokenizer.apply_chat_template(
        messages_of(line),
        tools=line.get("tools"),
        tokenize=True,
        strftime_now=datetime(2026, 1, 1, tzinfo=timezone.utc).strftime,
        **options,
    )
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, whose tokenizer puts bos in front as Llama's does, with a chat template."""
    folder = tmp_path_factory.mktemp("model") / "chat"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_ids_of_a_conversation_are_those_of_transformers(model: Path, tmp_path: Path) -> None:
    rows = chats(3)
    texts = Renderer(model).texts(read_texts(write(tmp_path / "t.jsonl", rows)))
    tokenizer = load_tokenizer(model)
    bos = transformers.AutoTokenizer.from_pretrained(model).bos_token_id
    for row, text in zip(rows, texts, strict=True):
        ids = text_ids(tokenizer, text)
        assert ids == expected_ids(model, row)
        assert ids.count(bos) == 1


@pytest.mark.parametrize("name", [path.name for path in sorted(PUBLISHED.glob("*.jinja"))])
def test_published_templates_give_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copyfile(PUBLISHED / name, folder / "chat_template.jinja")
    (row,) = ({"messages": line["messages"][1:]} for line in chats(1) if "messages" in line)
    (text,) = Renderer(folder).texts(read_texts(write(tmp_path / "t.jsonl", [row])))
    ids = text_ids(load_tokenizer(folder), text)
    assert ids == expected_ids(folder, row)
    assert len(ids) > 10


def test_documents_have_the_ids_and_bytes_of_what_the_template_wrote(
    model: Path, tmp_path: Path
) -> None:
    rows = chats(2)
    texts = Renderer(model).texts(read_texts(write(tmp_path / "t.jsonl", rows)))
    documents = read_documents(texts, load_tokenizer(model), 10**6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    for row, document in zip(rows, documents, strict=True):
        assert list(document.ids) == expected_ids(model, row)
        text = tokenizer.decode(document.ids, clean_up_tokenization_spaces=False)
        # The first token, bos, is context alone.
        assert document.bytes == len(text.removeprefix("<s>").encode())
        asked = {**row, "messages": messages_of(row)[:-1]}
        assert list(document.question) == expected_ids(model, asked, add_generation_prompt=True)


def test_a_plain_text_gets_bos_once(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    reference = transformers.AutoTokenizer.from_pretrained(model)
    plain = reference.encode("Once upon a time")
    assert plain[0] == reference.bos_token_id
    assert text_ids(tokenizer, "Once upon a time") == plain
    assert reference.encode("<s>Once upon a time") != plain
    assert text_ids(tokenizer, "<s>Once upon a time") == plain
    assert text_ids(tokenizer, "<s><s>Once upon a time") == [plain[0], *plain]


def recipe(model: Path, calibration_text: Path, heldout: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "chat",
            "model": {"source": str(model)},
            "quantize": {
                "format": "int8_sq",
                "device": "cpu",
                "calibration": {
                    "text": str(calibration_text),
                    "samples": 8,
                    "sequence_length": 512,
                    "batch_size": 1,
                },
            },
            "compile": {"max_seq_len": 512, "max_input_len": 384},
            "evaluate": {
                "text": str(heldout),
                "tokens": 10000,
                "sequence_length": 512,
            },
        }
    )


@pytest.fixture(scope="module")
def built(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunResult, list[list[int]], list[dict[str, Any]]]:
    """A run to the end of evaluation, the rows it calibrated on, and the held-out lines."""
    root = tmp_path_factory.mktemp("built")
    lines = chats(8)
    first = write(root / "calibration.jsonl", lines[:8])
    settings = recipe(model, first, write(root / "heldout.jsonl", lines[8:]))
    rows: list[list[int]] = []
    really = by_layer.embedded

    def noted(weights: Any, batches: Any, dtype: Any) -> Any:
        rows.extend(row for batch in batches for row in batch)
        return really(weights, batches, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_layer, "embedded", noted)
        # So little text tells little of the quality, which is not the point.
        result = run_recipe(
            settings, BuildDir(root / "build"), Silent(), until="evaluate", past_checks=True
        )
    return result, rows, lines


@pytest.mark.slow
def test_calibration_sees_the_conversations_of_transformers(
    built: tuple[RunResult, list[list[int]], list[dict[str, Any]]], model: Path
) -> None:
    _, rows, lines = built
    wanted = [token for line in lines[:8] for token in expected_ids(model, line)]
    seen = [token for row in rows for token in row]
    # Fewer tokens than there are rows are left over.
    assert len(rows) <= len(wanted) // 256 + 1
    assert len(wanted) - len(rows) < len(seen) <= len(wanted)
    assert seen == wanted[: len(seen)]


@pytest.mark.slow
def test_perplexity_and_bits_per_byte_are_those_of_a_plain_forward(
    built: tuple[RunResult, list[list[int]], list[dict[str, Any]]], model: Path
) -> None:
    result, _, lines = built
    artifact = result.stages["evaluate"].artifact
    assert artifact is not None
    plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    losses: list[float] = []
    size = 0
    for line in lines[8:]:
        ids = torch.tensor([expected_ids(model, line)])
        with torch.inference_mode():
            logits = plain(ids).logits[0, :-1].double()
        losses += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
        size += len(tokenizer.decode(ids[0, 1:], clean_up_tokenization_spaces=False).encode())
    assert artifact.facts["tokens"] == len(losses)
    found = artifact.facts["source_perplexity"], artifact.facts["source_bits_per_byte"]
    wanted = math.exp(sum(losses) / len(losses)), sum(losses) / math.log(2) / size
    assert found == pytest.approx(wanted, rel=1e-4)
    # The completions go on where an answer begins, not in the middle of the system's turn.
    asked = {**lines[8], "messages": messages_of(lines[8])[:-1]}
    ids_asked = expected_ids(model, asked, add_generation_prompt=True)
    first = artifact.facts["completions"][0]
    assert first["prompt"] == tokenizer.decode(ids_asked, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("template", "line", "reason"),
    [
        (None, {"messages": [{"role": "user", "content": "x"}]}, "no chat template"),
        (TEMPLATE, {"messages": [{"role": "tool", "content": "x"}]}, "There is no role tool"),
        ("{{ nothing.at.all }}", {"messages": [{"role": "user", "content": "x"}]}, "undefined"),
    ],
)
def test_a_line_that_the_model_cannot_be_asked_is_named_before_any_work(
    tmp_path: Path, template: str | None, line: dict[str, Any], reason: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    bad = write(tmp_path / "t.jsonl", [{"text": "fine"}, line])
    good = write(tmp_path / "good.jsonl", [{"text": "fine"}])
    with pytest.raises(RecipeError, match=rf"^evaluate\.text: .*t\.jsonl:2: .*{reason}"):
        check_texts(recipe(folder, good, bad))
    with pytest.raises(RecipeError, match=r"^quantize\.calibration\.text: .*t\.jsonl:2: "):
        check_texts(recipe(folder, bad, good))
    # Of a model on the Hub nothing is known then; its snapshot is looked at when it is there.
    unknown = recipe(Path("Org/Name"), good, bad)
    check_texts(unknown)
    with pytest.raises(UsageError, match=rf"t\.jsonl:2: .*{reason}"):
        list(Renderer(folder).texts(read_texts(bad)))

"""Which tokens end a text: every file has a say, and nothing that is no token gets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError
from pipeline.source.chat_template import TemplateError, turn_end
from pipeline.source.end_ids import read_end_ids
from trtllm_client import ChatTemplate

# Qwen2.5's own ids, and the turn that its template writes.
TEXT_END, TURN_START, TURN_END = 151643, 151644, 151645
QWEN_TOKENS = {TEXT_END: "<|endoftext|>", TURN_START: "<|im_start|>", TURN_END: "<|im_end|>"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADDED = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|eot_id|>")


def _snapshot(directory: Path, **files: Any) -> Path:
    """A Qwen2.5 without its ordinary words, and the files of a test over it."""
    names = {name.replace("_json", ".json"): content for name, content in files.items()}
    written = {
        "config.json": {"model_type": "qwen2", "vocab_size": 152064},
        "tokenizer.json": {
            "added_tokens": [{"id": i, "content": t} for i, t in QWEN_TOKENS.items()],
            "model": {"vocab": {"!": 0, "#": 2}},
        },
        "tokenizer_config.json": {"eos_token": None},
        **names,
    }
    for name, content in written.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name).write_text(text)
    return directory


def test_without_a_tokenizer_ids_are_named_and_not_checked(tmp_path: Path) -> None:
    # Llama 3.1's own ids, of which config.json alone is there: plan needs no more.
    config = {"model_type": "llama", "vocab_size": 128256, "eos_token_id": [128001, 128008, 128009]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read_end_ids(tmp_path)
    assert found.ids == [128001, 128008, 128009]
    assert found.lines() == [
        "end ids: 128001  (config.json)",
        "         128008  (config.json)",
        "         128009  (config.json)",
        "         not checked: no tokenizer here (there is no tokenizer.json)",
    ]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 128009}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot_id|>"}))
    assert set(read_end_ids(tmp_path).ids) == {128001, 128008, 128009}
    # What needs no tokenizer is still looked at.
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 128256}))
    with pytest.raises(SourceError, match="eos_token_id is 128256"):
        read_end_ids(tmp_path)


def test_the_ids_of_all_files_and_where_each_was_found(tmp_path: Path) -> None:
    found = read_end_ids(
        _snapshot(
            tmp_path,
            config_json={"vocab_size": 152064, "eos_token_id": TEXT_END},
            generation_config_json={"eos_token_id": [TEXT_END]},
            tokenizer_config_json={"eos_token": "<|im_end|>", "chat_template": CHATML},
        )
    )
    # A chat turn's own end comes first: it is the one that the C++ backend takes out of the text.
    assert [(end.id, end.token, end.sources) for end in found.ends] == [
        (TURN_END, "<|im_end|>", ("chat template", "tokenizer_config.json")),
        (TEXT_END, "<|endoftext|>", ("generation_config.json", "config.json")),
    ]
    assert found.lines() == [
        "end ids: 151645 <|im_end|>  (chat template, tokenizer_config.json)",
        "         151643 <|endoftext|>  (generation_config.json, config.json)",
    ]


def test_a_model_without_any_is_allowed_and_said(tmp_path: Path) -> None:
    found = read_end_ids(_snapshot(tmp_path))
    assert found.ids == []
    assert found.lines() == [
        "end ids: none: no file of the model names one, so every text runs to max_tokens"
    ]


def test_an_ordinary_word_in_config_json_alone_is_a_left_over(tmp_path: Path) -> None:
    """Llama's class has eos 2, which is a # in a vocabulary that is not Llama's."""
    stale = {"vocab_size": 152064, "eos_token_id": 2}
    found = read_end_ids(
        _snapshot(tmp_path, config_json=stale, generation_config_json={"eos_token_id": TEXT_END})
    )
    assert found.ids == [TEXT_END]
    assert found.notes == (
        (
            "left out: eos_token_id 2 of config.json is the ordinary token #, and "
            "generation_config.json names others"
        ),
    )
    (tmp_path / "generation_config.json").unlink()
    assert read_end_ids(tmp_path).ids == [2]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([TEXT_END, None], "and null is none"),
        (152064, r"last token of the model is 152063 \(vocab_size\), so this one never comes"),
        (-1, "and -1 is none"),
        (True, "and true is none"),
        ("151643", 'and "151643" is none'),
        (151643.0, r"and 151643\.0 is none"),
        ([[TEXT_END]], r"and \[151643\] is none"),
        (152000, "The tokenizer has no token 152000"),
    ],
)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_what_is_no_token_is_refused_by_file_key_and_value(
    tmp_path: Path, name: str, value: object, reason: str
) -> None:
    content = {"vocab_size": 152064, "eos_token_id": value}
    _snapshot(tmp_path, **{name.replace(".json", "_json"): content})
    with pytest.raises(SourceError, match=rf"{name}: eos_token_id is .*{reason}.*null for none"):
        read_end_ids(tmp_path)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("<|im_stop|>", "has no such token"),
        ({"content": "<|im_stop|>"}, "has no such token"),
        ("<|new|>", "Its id is 152064"),
    ],
)
def test_an_eos_token_that_the_model_has_not_is_refused(
    tmp_path: Path, token: object, reason: str
) -> None:
    config = {
        "eos_token": token,
        "added_tokens_decoder": {"152064": {"content": "<|new|>", "special": True}},
    }
    _snapshot(tmp_path, tokenizer_config_json=config)
    with pytest.raises(SourceError, match=rf"tokenizer_config\.json: eos_token is .*{reason}"):
        read_end_ids(tmp_path)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    if (name, content) == ("tokenizer.json", "{"):
        content = '{"added_tokens": [{'
    _snapshot(tmp_path, **{name.replace(".json", "_json"): content})
    # Only a token that no added one is needs the whole of tokenizer.json.
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "!"}')
    with pytest.raises(SourceError, match=rf"{name}: {name} cannot be read"):
        read_end_ids(tmp_path)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        # Llama 2's kind: white space before the token, and a token that opens the next turn.
        (
            (
                "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
                "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
            ),
            "</s>",
        ),
        # Llama 3's kind.
        (
            (
                "{% for m in messages %}{{ '<|start|>' + m.role + '\\n\\n' + m.content | trim }}"
                "<|eot_id|>{% endfor %}"
            ),
            "<|eot_id|>",
        ),
        # Nothing ends the turn; what comes next opens another one.
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}", None),
        # The same, and it opens an answer whether it is asked to or not.
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>",
            None,
        ),
        # Only the end of the conversation has a token.
        (
            (
                "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
                "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
            ),
            "</s>",
        ),
        # Ordinary text ends it.
        ("{% for m in messages %}{{ m.content }} END {% endfor %}", None),
        # What training templates and newer ones use.
        (
            (
                "{% for m in messages %}{% if not m.content %}{% continue %}{% endif %}"
                "{% generation %}{{ m.content }}</s>{% endgeneration %}{% endfor %}"
                "{{ strftime_now('%Y') }}{{ {'a': 'é'} | tojson }}"
            ),
            "</s>",
        ),
    ],
)
def test_what_follows_an_answer(template: str, end: str | None) -> None:
    assert turn_end(ChatTemplate(template, {"eos_token": "</s>"}), ADDED) == end


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("no messages", "does not show the assistant's answer"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ],
)
def test_a_template_that_cannot_be_rendered_has_no_say(
    tmp_path: Path, template: str, reason: str
) -> None:
    with pytest.raises(TemplateError, match=reason):
        turn_end(ChatTemplate(template), ADDED)
    config = {"eos_token": "<|im_end|>", "chat_template": template}
    found = read_end_ids(_snapshot(tmp_path, tokenizer_config_json=config))
    assert found.ids == [TURN_END]
    assert reason in found.notes[0]
    assert "the chat template is ignored" in found.lines()[1]


def test_a_turn_that_ends_beyond_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    found = read_end_ids(
        _snapshot(
            tmp_path,
            config_json={"vocab_size": TURN_START, "eos_token_id": TEXT_END},
            tokenizer_config_json={"chat_template": CHATML},
        )
    )
    assert found.ids == [TEXT_END]
    assert "left out: 151645 <|im_end|>, which ends a chat turn" in found.notes[0]


def test_the_vocabulary_is_not_read_for_tokens_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is megabytes in real models, and ``plan`` is to take a second at most."""
    directory = _snapshot(
        tmp_path,
        generation_config_json={"eos_token_id": [TURN_END, TEXT_END]},
        tokenizer_config_json={"eos_token": "<|im_end|>", "chat_template": CHATML},
    )
    monkeypatch.delattr("pipeline.source.end_ids._vocabulary")
    assert read_end_ids(directory).ids == [TURN_END, TEXT_END]

"""End ids against transformers, which reads the same files in its own way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from pipeline.source.end_ids import read_end_ids
from trtllm_client import ChatTemplate

from ..conftest import DEMO_MODEL

CHATML = (
    "{{ bos_token }}{% for m in messages %}<pad>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<pad>assistant\n{% endif %}"
)
DECODER = {
    str(id_): {"content": content, "special": True}
    for id_, content in enumerate(("<s>", "</s>", "<pad>"))
}


def _model(directory: Path, **files: Any) -> Path:
    """The demo model's small files, with the files of a test in their place; None removes one."""
    for path in DEMO_MODEL.glob("*.json"):
        shutil.copyfile(path, directory / path.name)
    for name, content in files.items():
        path = directory / f"{name}.json"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(json.dumps(content))
    return directory


# Ids of the demo model: 0 <s>, 1 </s>, 2 <pad>.
LAYOUTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "the tokenizer names another": {"generation_config": {"eos_token_id": 2}},
    "generation lists two": {"generation_config": {"eos_token_id": [2, 0]}},
    "config alone": {"generation_config": None},
    "the map decides": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<pad>"},
        "special_tokens_map": {"eos_token": {"content": "</s>"}},
    },
    "the map is ignored": {
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<pad>",
            "added_tokens_decoder": DECODER,
        },
        "special_tokens_map": {"eos_token": "</s>"},
    },
    "the class has one": {
        "tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast"},
        "special_tokens_map": None,
        "generation_config": {"eos_token_id": 2},
    },
    "null is none": {
        "tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast", "eos_token": None},
        "special_tokens_map": None,
        "generation_config": {"eos_token_id": 2},
    },
    "no tokenizer_config": {"tokenizer_config": None, "generation_config": {"eos_token_id": 2}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_union_holds_what_either_program_stops_at(tmp_path: Path, layout: str) -> None:
    directory = _model(tmp_path, **LAYOUTS[layout])
    config = json.loads((directory / "config.json").read_text())["eos_token_id"]
    if (directory / "generation_config.json").is_file():
        generation = transformers.GenerationConfig.from_pretrained(directory).eos_token_id
    else:
        generation = config
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory).eos_token_id
    # vLLM stops at the first and the second of these, upstream's preprocessing at the second.
    by_others = {
        *(generation if isinstance(generation, list) else [generation]),
        *([] if tokenizer is None else [tokenizer]),
    }
    found = read_end_ids(directory)
    assert set(found.ids) == by_others | {config}
    assert found.notes == ()
    named = {end.id for end in found.ends if "tokenizer_config.json" in end.sources}
    assert named == set() if tokenizer is None else {tokenizer}


@pytest.mark.parametrize("name", sorted(ChatTemplate.CLASS_DEFAULTS))
def test_what_classes_take_for_a_token_that_no_file_names(tmp_path: Path, name: str) -> None:
    shutil.copyfile(DEMO_MODEL / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{name}Fast"}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    defaults = ChatTemplate.CLASS_DEFAULTS[name]
    ours = {key: value for key, value in defaults.items() if key != "unk_token"}
    taken = {key: value for key, value in tokenizer.special_tokens_map.items() if key in ours}
    assert ours == taken
    assert set(defaults) >= {"eos_token"}


TEMPLATES = {
    "chatml": CHATML,
    "white space": "{%- for m in messages %}\n    {% if m.role == 'user' %}\n  {{- m.content }}"
    "\n    {% else %}\n{{ ' ' + m.content + eos_token }}\n    {%- endif %}\n{% endfor %}\n",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ m | tojson }}{{ m.content }}{% generation %}</s>{% endgeneration %}{% endfor %}",
    "json": "{{ {'b': 'é<&>', 'a': [1]} | tojson(indent=2) }}{{ messages[1].content }}</s>",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_rendered_as_transformers_renders_them(tmp_path: Path, name: str) -> None:
    directory = _model(tmp_path)
    (directory / "chat_template.jinja").write_text(TEMPLATES[name])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": "ä <b>"}, {"role": "assistant", "content": " yes "}]
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": "of the other file"}
    path.write_text(json.dumps(config))
    ours = ChatTemplate.from_directory(directory).render(chat, add_generation_prompt=False)
    assert ours == tokenizer.apply_chat_template(chat, tokenize=False)
    (first, *_) = read_end_ids(directory).ends
    assert (first.id, first.sources[0]) == (1, "chat template")


@pytest.mark.parametrize(
    "template",
    [
        [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": CHATML}],
        CHATML,
    ],
)
def test_the_template_is_the_one_that_transformers_takes(tmp_path: Path, template: Any) -> None:
    directory = _model(tmp_path)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": template}
    path.write_text(json.dumps(config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert ChatTemplate.from_directory(directory).source == tokenizer.get_chat_template()

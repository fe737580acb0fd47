"""The Modelfile, read by the grammar that Ollama documents."""

from __future__ import annotations

import re

import pytest

from pipeline.errors import CompileError
from pipeline.targets.ollama.modelfile import modelfile, quoted

# docs/modelfile.mdx and parser/parser.go of ollama/ollama.
INSTRUCTIONS = {
    *("from", "parameter", "template", "system", "adapter", "license", "message"),
    *("draft", "renderer", "parser", "requires"),
}
PARAMETERS = {
    *("num_ctx", "num_predict", "temperature", "top_k", "top_p", "min_p", "repeat_penalty"),
    *("repeat_last_n", "seed", "stop", "draft_num_predict"),
}


def parse(text: str) -> list[tuple[str, str]]:
    """What ``ollama create`` reads: instructions and their values, quotes taken away."""
    found, rest = [], text
    while rest.strip():
        line = re.match(r"\s*(?:#[^\n]*\n)*\s*(\w+)[ \t]+", rest)
        assert line, f"(line): command must be one of {INSTRUCTIONS}: {rest[:40]!r}"
        name = line[1].lower()
        assert name in INSTRUCTIONS, name
        rest = rest[line.end() :]
        if name == "parameter":
            word = re.match(r"\w+", rest)
            assert word
            assert word[0] in PARAMETERS, word[0]
            name, rest = f"parameter {word[0]}", rest[word.end() :].lstrip(" \t")
        for quote in ('"""', '"'):
            if rest.startswith(quote):
                value, end, rest = rest[len(quote) :].partition(quote)
                assert end, "a quote that is not closed"
                after, _, rest = rest.partition("\n")
                assert not after.strip(), f"{after!r} behind the closing quote"
                break
        else:
            value, _, rest = rest.partition("\n")
            value = value.strip()
        found.append((name, value))
    assert any(name == "from" for name, _ in found), "no FROM line"
    return found


def test_it_is_read_as_it_is_meant() -> None:
    text = modelfile(
        "model.gguf", 512, ["</s>", "a b", "#"], chats=True, licence='MIT\n# "as is"\n'
    )
    assert parse(text) == [
        ("from", "./model.gguf"),
        ("parameter num_ctx", "512"),
        ("parameter stop", "</s>"),
        ("parameter stop", "a b"),
        ("parameter stop", "#"),
        ("license", 'MIT\n# "as is"\n'),
    ]


def test_a_model_without_a_chat_template_completes_texts() -> None:
    assert ("template", "{{ .Prompt }}") in parse(
        modelfile("model.gguf", 64, [], chats=False, licence=None)
    )


@pytest.mark.parametrize("text", ["plain", " spaces ", 'a "quoted" word', "two\nlines", "", "\\n"])
def test_a_text_is_read_back(text: str) -> None:
    assert parse(f"FROM x\nSYSTEM {quoted(text, 'SYSTEM')}\n") == [("from", "x"), ("system", text)]


@pytest.mark.parametrize("text", ['""" in it', 'at the end"', '"'])
def test_what_no_quotes_hold_is_refused(text: str) -> None:
    with pytest.raises(CompileError, match="PARAMETER stop has a text that a Modelfile cannot"):
        modelfile("model.gguf", 64, [text], chats=True, licence=None)

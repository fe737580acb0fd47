"""What is served is what AutoTokenizer gives, and tokenizer.json alone is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipeline.errors import RepositoryError, SourceError, UsageError
from pipeline.source.probes import (
    CHAT,
    TEXTS,
    TOKENIZER_FOLDER,
    check_served,
    cleaned_up,
    find_probes,
    known_probes,
    make_probes,
    read_probes,
)
from pipeline.source.tokenizer import open_tokenizer, served_config, served_file
from pipeline.store.digests import file_digest
from pipeline.triton.parameters import TOKENIZER_DIR
from tests.conftest import PROJECT
from tests.integration.tokenizer_layouts import BOS, LAYOUTS, byte_level, save
from tests.integration.tokenizer_support import Served, serve

TRANSFORMERS_5 = PROJECT / "tests" / "data" / "transformers-5"


@pytest.fixture(params=LAYOUTS)
def snapshot(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    LAYOUTS[request.param](folder)
    return folder


def texts_for(reference: Any) -> Iterator[str]:
    yield from TEXTS
    for token in reference.get_added_vocab():
        yield from (token, f"x{token}y", f"  {token}  ", f"{token.upper()} {token}\n{token}{token}")
    if reference.chat_template:
        yield reference.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)


def differences(served: Served, reference: Any) -> dict[str, int]:
    """How many texts differ from transformers' own answer, and in what."""
    found = {"texts": 0, "ids": 0, "plain": 0, "auto": 0, "whole": 0, "streamed": 0}
    begin = reference.encode("")  # none of the layouts puts anything behind a text
    for text in texts_for(reference):
        ids = reference.encode(text)
        if not ids:
            continue
        decoded = reference.decode(ids, skip_special_tokens=True)
        found["texts"] += 1
        found["ids"] += served.ids(text, added=True) != ids
        plain = reference.encode(text, add_special_tokens=False)
        found["plain"] += bool(plain) and served.ids(text, added=False) != plain
        begins = begin and plain[: len(begin)] == begin
        found["auto"] += served.ids(text) != (plain if begins else ids)
        found["whole"] += served.text(ids) != decoded
        found["streamed"] += served.streamed(ids) != decoded
    return found


def test_served_is_what_transformers_gives(snapshot: Path, tmp_path: Path) -> None:
    reference = AutoTokenizer.from_pretrained(snapshot)
    served = serve(snapshot, tmp_path)
    found = differences(served, reference)
    assert found.pop("texts") > len(TEXTS)
    assert found == {"ids": 0, "plain": 0, "auto": 0, "whole": 0, "streamed": 0}
    # Whoever opens the served folder with transformers gets the same tokenizer once more.
    assert not any(
        reference.encode(text) != again.encode(text)
        for again in [AutoTokenizer.from_pretrained(served.folder)]
        for text in texts_for(reference)
    )


def test_the_file_as_it_lies_in_the_snapshot_is_something_else(
    snapshot: Path, tmp_path: Path
) -> None:
    """Each layout is one that a copied tokenizer.json serves wrongly."""
    reference = AutoTokenizer.from_pretrained(snapshot)
    raw = Tokenizer.from_file(str(snapshot / "tokenizer.json"))
    pairs = [(text, reference.encode(text)) for text in texts_for(reference)]
    assert any(
        raw.encode(text).ids != ids
        or raw.decode(ids) != reference.decode(ids, skip_special_tokens=True)
        for text, ids in pairs
    )
    shutil.copy(snapshot / "tokenizer.json", tmp_path)
    with pytest.raises(RepositoryError, match=r"when it is served: .* not "):
        check_served(make_probes(open_tokenizer(snapshot)), tmp_path, PROJECT / "model_repo")


def test_bos_by_hand(tmp_path: Path) -> None:
    """DeepSeek's layout in numbers: one bos in front of a prompt, and one in front of a chat."""
    for name, expected in (("bos_of_the_class", 1), ("bos_of_the_template", 0)):
        root = tmp_path / name
        (root / "source").mkdir(parents=True)
        LAYOUTS[name](root / "source")
        served = serve(root / "source", root)
        bos = served.tokenizer.token_to_id(BOS)
        assert served.ids("Hello").count(bos) == expected
        chat = f"{BOS}<|user|>Hello"
        assert served.ids(chat).count(bos) == 1
        assert served.ids(chat, added=False).count(bos) == 1
        assert served.ids(chat, added=True).count(bos) == expected + 1


def test_a_token_that_is_special_by_the_config_leaves_no_text(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    LAYOUTS["flags_of_the_config"](tmp_path / "source")
    served = serve(tmp_path / "source", tmp_path)
    ids = served.ids("x<a>y<b>z<once>!")
    assert served.text(ids) == served.streamed(ids) == "xy<b>z!"


@pytest.mark.parametrize("name", ["general", "qwen2", "llama"])
def test_tokenizers_of_transformers_5(name: str, tmp_path: Path) -> None:
    """Ids and texts were recorded by transformers 5 itself; version 4 cannot open these folders."""
    source = TRANSFORMERS_5 / name
    with pytest.raises((ValueError, AttributeError), match=r"TokenizersBackend|has no attribute"):
        AutoTokenizer.from_pretrained(source)
    expected = json.loads((source / "expected.json").read_text())
    assert expected["transformers"].startswith("5.")
    served = serve(source, tmp_path)
    for row in expected["rows"]:
        assert served.ids(row["text"], added=True) == row["ids"], row
        assert served.streamed(row["ids"]) == row["decoded"], row
        # Postprocessing takes ids that begin with no special token for the middle of a text.
        assert served.text(row["ids"]) in (row["decoded"], f" {row['decoded']}"), row


def test_the_probes_travel_with_the_repository(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    LAYOUTS["bos_of_the_template"](tmp_path / "source")
    served = serve(tmp_path / "source", tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path / "source")
    path = served.folder / "probes.json"
    probes = read_probes(path)
    assert served.facts["tokenizer"] == {
        "class": "LlamaTokenizerFast",
        "probes": len(probes.items),
        "probes_sha256": file_digest(path),
        "without_chat": None,
    }
    for probe in probes.items:
        assert list(probe.ids) == reference.encode(probe.text)
        assert list(probe.plain) == reference.encode(probe.text, add_special_tokens=False)
        assert probe.decoded == reference.decode(probe.ids, skip_special_tokens=True)
    asked = reference.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    probed = {probe.text for probe in probes.items}
    assert {asked, "<|assistant|>", *(text for text in TEXTS if text)} <= probed


def test_the_probes_are_found_wherever_the_tokenizer_is(tmp_path: Path) -> None:
    """``verify --tokenizer`` takes a repository, its tokenizer folder, or the model directory."""
    (tmp_path / "source").mkdir()
    LAYOUTS["bos_of_the_class"](tmp_path / "source")
    served = serve(tmp_path / "source", tmp_path)
    written = read_probes(served.folder / "probes.json")
    for place in (tmp_path / "output", served.folder, tmp_path / "source"):
        assert find_probes(place) == written
    assert known_probes(tmp_path / "source") is None
    (served.folder / "probes.json").write_text('{"items": [{"text": 1}]}')
    with pytest.raises(UsageError, match=r"probes\.json: the probe texts cannot be read"):
        find_probes(served.folder)
    with pytest.raises(UsageError, match="neither a repository with probe texts nor a tokenizer"):
        find_probes(tmp_path)


def test_the_folder_is_the_one_that_triton_is_told() -> None:
    assert TOKENIZER_FOLDER == TOKENIZER_DIR


def test_the_same_snapshot_gives_the_same_bytes(tmp_path: Path) -> None:
    """A chat template may print the date."""
    (tmp_path / "source").mkdir()
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    save(tmp_path / "source", byte_level(), tokenizer_config=config)
    probes = make_probes(open_tokenizer(tmp_path / "source"))
    assert probes.items[-1].text == f"01 Jan 2026 {CHAT[0]['content']}"


def test_a_chat_template_that_takes_no_plain_question_is_said(tmp_path: Path) -> None:
    template = "{{ raise_exception('a system prompt is needed') }}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    save(tmp_path, byte_level(), tokenizer_config=config)
    assert make_probes(open_tokenizer(tmp_path)).without_chat == (
        "the chat template does not take a plain question: a system prompt is needed"
    )


def test_what_cuts_and_pads_while_training_is_left_out(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8, pad_token=BOS)
    save(tmp_path, tokenizer, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    opened = open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(served_file(opened, tmp_path), encoding="utf-8")
    written = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert written.truncation is None
    assert written.padding is None
    assert len(written.encode("Hello there, world").ids) > 4


def test_spaces_are_not_cleaned_up(tmp_path: Path) -> None:
    """Llama 3's files ask transformers 4 to, which spoils code; 5 does not, nor can a stream."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
    save(tmp_path, byte_level(), tokenizer_config=config)
    opened = open_tokenizer(tmp_path)
    probes = make_probes(opened)
    assert probes.cleans_up
    found = {probe.text: probe for probe in probes.items}
    text = "Hello , world ! Is this ' it ' ? do n't . x != y"
    assert found[text].decoded == text
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert reference.decode(reference.encode(text)) == "Hello, world! Is this'it '? don't. x!= y"
    for probe in probes.items:
        assert cleaned_up(probe.decoded) == reference.decode(probe.ids, skip_special_tokens=True)


def test_the_config_names_the_tokens_in_force(tmp_path: Path) -> None:
    """Pad and end ids are read from it, and special_tokens_map.json may name others."""
    LAYOUTS["bos_of_the_map"](tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    written = json.loads(served_config(open_tokenizer(tmp_path), tmp_path))
    assert (written["bos_token"], written["pad_token"]) == ("<|user|>", "<|assistant|>")
    assert written["eos_token"] == reference.eos_token


def test_a_tokenizer_that_python_changes_is_refused(tmp_path: Path) -> None:
    """Code of the model's own may do what no tokenizer.json says."""
    save(
        tmp_path,
        byte_level(),
        tokenizer_config={
            "tokenizer_class": "Shouting",
            "auto_map": {"AutoTokenizer": [None, "shouting.Shouting"]},
        },
    )
    (tmp_path / "shouting.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class Shouting(PreTrainedTokenizerFast):\n"
        "    def encode(self, text, *args, **kwargs):\n"
        "        return super().encode(text.upper(), *args, **kwargs)\n"
    )
    opened = open_tokenizer(tmp_path, trust_remote_code=True)
    with pytest.raises(RepositoryError, match=r"'Once upon a time, .*' is other tokens when it is"):
        check_served(make_probes(opened), tmp_path, PROJECT / "model_repo")


def test_a_tokenizer_in_python_is_served_by_the_file_that_does_the_same(tmp_path: Path) -> None:
    """It has no backend to write; what counts is that every probe comes out alike."""
    token = {"tokenizer_class": "Slow", "auto_map": {"AutoTokenizer": ["slow.Slow", None]}}
    save(tmp_path, byte_level(), tokenizer_config=token)
    (tmp_path / "slow.py").write_text(
        "from tokenizers import Tokenizer\n"
        "from transformers import PreTrainedTokenizer\n"
        "class Slow(PreTrainedTokenizer):\n"
        "    vocab_files_names = {'vocab_file': 'tokenizer.json'}\n"
        "    def __init__(self, vocab_file, **kwargs):\n"
        "        self.inner = Tokenizer.from_file(vocab_file)\n"
        "        super().__init__(**kwargs)\n"
        "    vocab_size = property(lambda self: self.inner.get_vocab_size())\n"
        "    def _convert_token_to_id(self, token):\n"
        "        return self.inner.token_to_id(token)\n"
        "    def get_vocab(self):\n"
        "        return self.inner.get_vocab()\n"
        "    def encode(self, text, **kwargs):\n"
        "        return self.inner.encode(text).ids\n"
        "    def decode(self, ids, skip_special_tokens=False, **kwargs):\n"
        "        return self.inner.decode(ids, skip_special_tokens=skip_special_tokens)\n"
    )
    opened = open_tokenizer(tmp_path, trust_remote_code=True)
    assert not opened.is_fast
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(served_file(opened, tmp_path), encoding="utf-8")
    probes = make_probes(opened)
    check_served(probes, folder, PROJECT / "model_repo")
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))
    other.pre_tokenizer = None
    other.save(str(folder / "tokenizer.json"))
    with pytest.raises(RepositoryError, match=r"is other tokens when it is served"):
        check_served(probes, folder, PROJECT / "model_repo")


@pytest.mark.parametrize(
    ("files", "config", "remedy"),
    [
        ((), {"add_prefix_space": True}, "Remove add_prefix_space from tokenizer_config.json"),
        (("tokenizer.model",), {"add_prefix_space": True}, "pip install 'sentencepiece<0.2.3'"),
        ((), {"tokenizer_class": "NoSuchTokenizer"}, '"tokenizer_class": "PreTrainedTokenizerF'),
    ],
)
def test_what_is_missing_is_named(
    files: tuple[str, ...], config: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    named = {"bos_token": BOS, "tokenizer_class": "LlamaTokenizer"}
    save(tmp_path, byte_level(), tokenizer_config={**named, **config})
    for name in files:
        (tmp_path / name).write_bytes(b"not read without the package")
    with pytest.raises(SourceError, match="the tokenizer cannot be loaded") as raised:
        open_tokenizer(tmp_path)
    assert remedy in str(raised.value)

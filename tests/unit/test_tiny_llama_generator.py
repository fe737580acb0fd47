"""The story generator is deterministic, its splits are disjoint and its stories consistent."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "tiny_llama"
GENERATOR = FOLDER / "story_generator.py"
TOKENIZER = FOLDER / "model" / "tokenizer.json"
SAMPLE = 400


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_llama_story_generator", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name while the class is being made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generator = load_generator()


def run_cli(*arguments: str, hash_seed: str = "0") -> str:
    # An ASCII locale must not change the output either.
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, str(GENERATOR), *arguments]
    return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout.decode()


def cast_of(text: str):
    found = generator.facts(text)
    kinds = [field.name for field in dataclasses.fields(generator.Cast)]
    return generator.Cast(*(found[kind][0] for kind in kinds))


def test_story_depends_on_nothing_but_its_seed():
    arguments = ("--split", "heldout", "--count", "20", "--format", "jsonl")
    first = run_cli(*arguments, hash_seed="1")
    assert first == run_cli(*arguments, hash_seed="2")
    texts = [json.loads(line)["text"] for line in first.splitlines()]
    assert texts == list(generator.stories("heldout", 20))


def test_known_story_does_not_change():
    """The trained model and its README numbers belong to exactly these texts."""
    assert generator.story(0).startswith(
        "Jack was a clever boy who lived above a small shop. From his aunt he had a purple marble. "
        "On the mailbox of the house he had painted a 🍓."
    )


def test_txt_is_one_paragraph_per_story():
    paragraphs = run_cli("--split", "train", "--count", "3").rstrip("\n").split("\n\n")
    assert paragraphs == list(generator.stories("train", 3))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_start_skips_stories(split):
    assert list(generator.stories(split, 5))[2:] == list(generator.stories(split, 3, start=2))


@pytest.mark.parametrize("seed", [-1, 2_000_000_000])
def test_seed_outside_the_splits_is_refused(seed):
    with pytest.raises(ValueError, match="in no split"):
        generator.story(seed)


def test_seed_ranges_do_not_overlap():
    train, heldout = (generator.SPLIT_SEEDS[split] for split in ("train", "heldout"))
    assert train.stop <= heldout.start


@pytest.mark.parametrize(("split", "heldout"), [("train", False), ("heldout", True)])
def test_the_split_can_be_read_from_the_text(split, heldout):
    """Hence no held-out story is in the training set, however many seeds are drawn."""
    assert all(cast_of(text).is_heldout == heldout for text in generator.stories(split, SAMPLE))


def test_no_sampled_heldout_story_is_a_training_story():
    training = set(generator.stories("train", 5 * SAMPLE))
    assert len(training) == 5 * SAMPLE
    assert training.isdisjoint(generator.stories("heldout", SAMPLE))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_beginning_and_end_agree(split):
    for text in generator.stories(split, SAMPLE):
        sentences = re.split(r"(?<=[.!?]) (?=[A-Z\u00c0-\u017f])", text)
        start, end = " ".join(sentences[:4]), " ".join(sentences[-4:])
        for kind in ("name", "pet", "colour", "treasure", "symbol", "sign"):
            first, last = generator.facts(start)[kind], generator.facts(end)[kind]
            assert first[:1] == last[-1:] != [], (kind, text)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_generated_stories_are_consistent(split):
    for text in generator.stories(split, SAMPLE):
        assert all(generator.consistency(text).values()), text


@pytest.mark.parametrize(
    ("kind", "addition"),
    [
        ("name", "Zoë and Mia slept."),
        ("pronoun", "She met him."),
        ("number", "Then nine cookies fell."),
        ("symbol", "🐝🌻"),
        ("colour", "A red kite and a blue kite."),
        ("treasure", "A bell."),
        ("sign", "It hung on the roof."),
    ],
)
def test_consistency_notices_a_contradiction(kind, addition):
    assert not generator.consistency(f"{generator.story(0)} {addition}")[kind]


def test_articles_and_counts_agree():
    for text in generator.stories("train", SAMPLE):
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        assert not re.search(r"\bone \w+s\b|\bone \w+ were\b", text), text


def test_stories_are_not_ascii_only():
    text = " ".join(generator.stories("train", SAMPLE))
    assert {"Zoë", "José", "Chloé", "Søren"} <= set(re.findall(r"\w+", text))
    assert set(generator.EMOJI) <= set(text)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    if not TOKENIZER.exists():
        pytest.skip("the model has not been trained")
    return tokenizers.Tokenizer.from_file(str(TOKENIZER))


def test_tokenizer_has_the_ids_of_the_model(tokenizer):
    assert tokenizer.get_vocab_size() == 1024
    assert [tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<pad>")] == [0, 1, 2]


def test_tokenizer_round_trips_and_adds_only_bos(tokenizer):
    for text in [*generator.stories("heldout", 50), " two  spaces, 漢字 and\ttabs\n"]:
        ids = tokenizer.encode(text).ids
        assert ids[0] == 0
        assert {0, 1, 2}.isdisjoint(ids[1:])
        assert tokenizer.decode(ids) == text


def test_every_emoji_is_split_over_tokens(tokenizer):
    for emoji in generator.EMOJI:
        assert len(tokenizer.encode(emoji, add_special_tokens=False).ids) >= 2


@pytest.mark.parametrize(
    ("name", "split", "count"), [("calibration", "train", 64), ("heldout", "heldout", 120)]
)
def test_the_committed_texts_are_the_generators(name: str, split: str, count: int) -> None:
    path = FOLDER / "data" / f"{name}.jsonl"
    committed = [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
    assert committed == list(generator.stories(split, count))

"""Scores, completions and signal to noise, held against plain forwards of transformers."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.evaluation import scoring
from pipeline.evaluation.completions import compare_completions, greedy
from pipeline.evaluation.scoring import Scorer, TokenScores, compare, scorer_of
from pipeline.evaluation.signal_to_noise import signal_to_noise
from pipeline.evaluation.windows import Document, Window, read_documents, strided_windows
from pipeline.reference.source import load_source
from pipeline.source.lines import read_texts
from pipeline.source.tokens import load_tokenizer
from tests.conftest import DEMO_MODEL
from tests.integration.quantize_support import VOCAB, write_source

HELD_OUT = DEMO_MODEL.parent / "data" / "heldout.jsonl"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("Qwen2", tmp_path_factory.mktemp("source") / "Qwen2")


def damaged(model: torch.nn.Module, bits: int = 4) -> torch.nn.Module:
    """A copy whose layers have their weights rounded, row by row."""
    other = copy.deepcopy(model)
    for name, module in other.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            largest = 2 ** (bits - 1) - 1
            step = module.weight.data.abs().amax(dim=1, keepdim=True) / largest
            step[step == 0] = 1.0
            module.weight.data = torch.round(module.weight.data / step) * step
    return other


def plain(model: Any) -> Scorer:
    return scorer_of(model, CPU)


@torch.inference_mode()
def by_hand(source: Any, other: Any, context: list[int], token: int) -> tuple[float, ...]:
    """One token behind its context, alone."""
    p, q = (
        torch.distributions.Categorical(logits=model(torch.tensor([context])).logits[0, -1])
        for model in (source, other)
    )
    there = torch.tensor(token)
    return (
        -float(p.log_prob(there)),
        -float(q.log_prob(there)),
        float(torch.distributions.kl_divergence(p, q)),
        float(p.logits.argmax() == q.logits.argmax()),
    )


@pytest.mark.parametrize("stride", [None, 3, 11])
def test_each_token_has_the_score_of_a_forward_with_its_context(
    source: Path, stride: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_source(source)
    other = damaged(model)
    # Several batches, of windows of several lengths.
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 40)
    length, step = 12, 6 if stride is None else stride
    generator = np.random.default_rng(3)
    documents = [
        Document("", generator.integers(0, VOCAB, size).tolist(), 0) for size in (5, 12, 31, 2, 18)
    ]
    windows = strided_windows(documents, length, stride)
    advanced: list[float] = []
    parts = compare(plain(model), plain(other), windows, VOCAB, advanced.append)
    assert len(advanced) >= 3
    assert sum(advanced) == sum(document.scored for document in documents)
    found = TokenScores.joined(parts)
    expected = []
    for document in documents:
        ids = list(document.ids)
        for place in range(1, len(ids)):
            # Later windows end ``step`` tokens apart, and at the end of the document.
            later = max(0, math.ceil((place + 1 - length) / step))
            begin = max(0, min(length + later * step, len(ids)) - length)
            expected.append(by_hand(model, other, ids[begin:place], ids[place]))
    columns = np.array(expected).T
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.source_nll, columns[0], rtol=1e-4)
    np.testing.assert_allclose(found.nll, columns[1], rtol=1e-4)
    np.testing.assert_allclose(found.kl, columns[2], rtol=1e-2, atol=1e-5)
    assert found.agrees.tolist() == columns[3].astype(bool).tolist()
    assert found.kl.mean() > 1e-3


def test_tokens_beyond_the_sources_vocabulary_are_left_out(source: Path) -> None:
    model = plain(load_source(source))

    def wider(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(model(ids), (0, 11), value=50.0)

    (found,) = compare(model, wider, [Window(0, range(30), 1)], VOCAB)
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert found.agrees.all()


def test_no_tail_is_scored_without_context() -> None:
    """What a window leaves over was a window of its own, whose first tokens nothing predicts."""
    model, tokenizer = load_source(DEMO_MODEL), load_tokenizer(DEMO_MODEL)
    other = damaged(model)
    texts = [json.loads(line)["text"] for line in HELD_OUT.read_text().splitlines()]
    documents = [
        document for document in read_documents(texts, tokenizer, 10**6) if document.scored > 256
    ][:10]
    first = [Window(n, document.ids[:256], 1) for n, document in enumerate(documents)]
    tails = [Window(n, document.ids[256:512], 1) for n, document in enumerate(documents)]
    assert all(1 < len(tail.ids) < 200 for tail in tails)
    parts = TokenScores.joined(compare(plain(model), plain(other), first, 1024))
    alone = TokenScores.joined(compare(plain(model), plain(other), tails, 1024))
    strided = strided_windows(documents, 256)
    behind = TokenScores.joined(
        [
            scores
            for window, scores in zip(
                strided, compare(plain(model), plain(other), strided, 1024), strict=True
            )
            if window.first > 1
        ]
    )
    before = alone.kl.sum() / (alone.kl.sum() + parts.kl.sum())
    after = behind.kl.sum() / (behind.kl.sum() + parts.kl.sum())
    assert len(alone) / len(parts) < 0.05
    assert before > 0.5
    assert after < 2 * len(behind) / len(parts)
    # The token that was context only is scored, too.
    assert len(behind) == len(alone) + len(documents)


@pytest.mark.parametrize("ends", [False, True])
def test_greedy_texts_are_those_of_transformers(ends: bool) -> None:
    model: Any = load_source(DEMO_MODEL)
    tokenizer = load_tokenizer(DEMO_MODEL)
    prompts = [
        tokenizer.encode(text)[:size]
        for text, size in zip(read_texts(HELD_OUT)[:3], (4, 19, 9), strict=True)
    ]
    end_ids = [tokenizer.encode(" the")[-1]] if ends else []
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=end_ids or None,
            pad_token_id=2,
        )
        expected.append([id_ for id_ in whole[0, len(prompt) :].tolist() if id_ not in end_ids])
    assert greedy(plain(model), prompts, 20, end_ids) == expected
    lengths = [len(text) for text in expected]
    assert (min(lengths) < 20) == ends


def test_completions_are_cut_at_the_prompt_and_compared_by_tokens() -> None:
    model, tokenizer = load_source(DEMO_MODEL), load_tokenizer(DEMO_MODEL)
    texts = read_texts(HELD_OUT)
    documents = read_documents(texts, tokenizer, 2000)
    same = compare_completions(
        plain(model), plain(model), documents, tokenizer=tokenizer, end_ids=[1], longest=1024
    )
    other = compare_completions(
        plain(model), plain(damaged(model, 3)), documents, tokenizer=tokenizer, end_ids=[1],
        longest=1024,
    )  # fmt: skip
    assert len(same) == len(other) == 3
    for text, one, two in zip(texts, same, other, strict=False):
        assert text.startswith(one.prompt)
        assert one.prompt == two.prompt != ""
        assert one.source == one.written == two.source
        assert one.same_tokens == one.tokens == 32
        assert two.same_tokens < two.tokens
        assert two.written != two.source
        # The common beginning is one of the texts, too.
        whole = tokenizer.encode(one.prompt + one.source)
        assert (one.prompt + two.written).startswith(
            tokenizer.decode(whole[: len(tokenizer.encode(one.prompt)) + two.same_tokens - 1])
        )


def test_a_prompt_ends_with_a_whole_character() -> None:
    model, tokenizer = load_source(DEMO_MODEL), load_tokenizer(DEMO_MODEL)
    # The picture's four bytes are four tokens, of which the sixteenth is the third.
    text = "a b c d e f g h i j k l " + "\U0001f40c" + " and so on"
    ids = tokenizer.encode(text)
    place = next(n for n in range(1, len(ids)) if "\ufffd" in tokenizer.decode(ids[:n]))
    head = ids[: place + 1][-16:]
    (found,) = compare_completions(
        plain(model),
        plain(model),
        [Document("", head, 0)],
        tokenizer=tokenizer,
        end_ids=[],
        longest=1024,
    )
    assert found.prompt
    assert "\ufffd" not in found.prompt


def test_no_completion_is_longer_than_the_model(source: Path) -> None:
    model, tokenizer = plain(load_source(source)), load_tokenizer(source)
    lengths: list[int] = []

    def watched(ids: torch.Tensor) -> torch.Tensor:
        lengths.append(ids.shape[1])
        return model(ids)

    (found,) = compare_completions(
        watched,
        watched,
        [Document("", range(1, 60), 0)],
        tokenizer=tokenizer,
        end_ids=[],
        longest=20,
    )
    assert max(lengths) < 20
    assert 0 < found.tokens < 20


def test_signal_to_noise_is_that_of_a_direct_computation(source: Path) -> None:
    model: Any = load_source(source)
    written: Any = copy.deepcopy(model)
    names = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    error = 0.01 * torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    query = "model.layers.0.self_attn.q_proj"
    written.get_submodule(query).weight.data += error
    written.get_submodule("model.layers.1.mlp.down_proj").weight.data[0, 0] = math.nan
    written.get_submodule("model.layers.0.mlp.up_proj").weight.data *= 1.1
    rows = [list(range(5, 40)), [3, 9, 27]]
    found = signal_to_noise(model, written, plain(model), rows).linears
    assert {item.linear for item in found} == set(names)
    decibels = {item.linear: item.db for item in found}
    # The embedding's rows, normalized by hand.
    ids = np.array([*rows[0], *rows[1]])
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    x = state["model.embed_tokens.weight"][ids]
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + model.config.rms_norm_eps)
    x = x * state["model.layers.0.input_layernorm.weight"]
    y = x @ state[f"{query}.weight"].T + state[f"{query}.bias"]
    noise = x @ error.double().numpy().T
    expected = 10 * math.log10((y**2).sum() / (noise**2).sum())
    assert decibels[query] == pytest.approx(expected, abs=1e-3)
    # A tenth of the amplitude is a hundredth of the power.
    assert decibels["model.layers.0.mlp.up_proj"] == pytest.approx(20.0, abs=1e-2)
    # The source's own inputs: an error before a linear does not count.
    assert decibels["model.layers.1.self_attn.q_proj"] == math.inf
    assert found[0].as_dict() == {
        "linear": "model.layers.1.mlp.down_proj", "db": None, "exact": False,
    }  # fmt: skip
    assert found[-1].as_dict()["exact"]
    # Nothing of the measurement stays in the model.
    assert not any(module._forward_hooks for module in model.modules())


def test_signal_to_noise_of_what_no_format_rounds(source: Path) -> None:
    """An output that is half as large again has an error of half of it: 20 log10(2) dB."""
    model: Any = load_source(source)
    written = copy.deepcopy(model)
    with torch.no_grad():
        written.model.norm.weight.mul_(1.5)
        written.model.embed_tokens.weight.mul_(0.9)
    found = signal_to_noise(model, written, plain(model), [range(200)]).others
    assert [(one.linear, round(one.db, 3)) for one in found[:2]] == [
        ("model.norm", 6.021),
        ("model.embed_tokens", 20.0),
    ]
    assert {one.db for one in found[2:]} == {math.inf}
    assert len(found) == 2 + 2 * len(model.model.layers)


def test_signal_to_noise_looks_at_a_small_batch(source: Path) -> None:
    model = load_source(source)
    seen: list[int] = []

    def watched(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape[1])
        return plain(model)(ids)

    signal_to_noise(model, copy.deepcopy(model), watched, [range(200)] * 9)
    assert seen == [200, 200, 112]


@pytest.mark.parametrize("name", ["demo", "stories"])
def test_bytes_are_those_of_the_text_that_the_scored_tokens_stand_for(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Byte-level and sentencepiece vocabularies, both with bos; pictures are four tokens each."""
    tokenizer = load_tokenizer(request.getfixturevalue(f"{name}_model"))
    text = "Once \U0001f40c na\u00efve\nupon  a \U0001f335 time, don't!"
    ids = tokenizer.encode(text)
    assert tokenizer.encode_with_spans(text)[0] == ids
    sizes = []
    for tokens in range(1, len(ids)):
        (document,) = read_documents([text], tokenizer, tokens)
        # By the other way: what the tokens decode to, without the pieces of a last character.
        sizes.append(len(tokenizer.decode(ids[: tokens + 1]).rstrip("\ufffd").encode()))
        assert document.bytes == sizes[-1]
    assert sizes[-1] == len(text.encode())
    assert len(set(sizes)) < len(sizes)

"""What a tensor-parallel rank holds, against divisions done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.models.facts import ModelFacts
from pipeline.models.ranks import RankShare, split_problem, vocabulary_rows

DATA = Path(__file__).parents[1] / "data"


def facts_of(name: str) -> ModelFacts:
    path = DATA / f"{name}.json"
    return ModelFacts.from_config(json.loads(path.read_text()), str(path))


# Llama 3.1 8B: 32 heads and 8 KV heads of 128, 14336 inner features, 128256 tokens. The rows are
# those of the fused q, k and v, of the MLP and of the vocabulary.
@pytest.mark.parametrize(
    ("ranks", "heads", "kv_heads", "copies", "rows"),
    [
        (1, 32, 8, 1, (32 * 128 + 2 * 8 * 128, 14336, 128256)),
        (2, 16, 4, 1, (3072, 7168, 64128)),
        (8, 4, 1, 1, (768, 1792, 16032)),
        # Above the 8 KV heads each rank keeps one, and two or four ranks have the same.
        (16, 2, 1, 2, (512, 896, 8016)),
        (32, 1, 1, 4, (384, 448, 4008)),
    ],
)
def test_llama_3_1_8b(
    ranks: int, heads: int, kv_heads: int, copies: int, rows: tuple[int, int, int]
) -> None:
    facts = facts_of("llama-3.1-8b")
    share = RankShare(facts, ranks)
    assert (share.heads, share.kv_heads, share.kv_copies) == (heads, kv_heads, copies)
    assert (share.q_rows, share.kv_rows) == (heads * 128, kv_heads * 128)
    assert (share.qkv_rows, share.inner_rows, share.vocabulary_rows) == rows
    qkv, inner, _ = rows
    assert {linear.name: share.shape(linear) for linear in facts.linears} == {
        "attention.qkv": (qkv, 4096),
        "attention.dense": (4096, heads * 128),
        "mlp.fc": (inner, 4096),
        "mlp.gate": (inner, 4096),
        "mlp.proj": (4096, inner),
    }


def test_heads_that_are_no_power_of_two() -> None:
    # Qwen2.5 7B has 28 heads and 4 KV heads of 128: 7 and 1 on each of 4 ranks.
    share = RankShare(facts_of("qwen2.5-7b"), 4)
    assert (share.heads, share.kv_heads, share.kv_copies) == (7, 1, 1)
    assert share.qkv_rows == (7 + 2) * 128


def test_the_last_part_of_a_vocabulary_is_padded() -> None:
    # 4 x 8001 is 32004, so the last rank has one row of zeros.
    assert vocabulary_rows(32003, 4) == 8001
    assert vocabulary_rows(32004, 4) == 8001
    assert vocabulary_rows(32005, 4) == 8002


def test_a_decoder_is_split_by_heads_and_by_each_linear() -> None:
    facts = facts_of("llama-3.1-8b")
    # 8 KV heads are repeated over 16 ranks.
    assert [n for n in range(1, 20) if split_problem(facts, n) is None] == [1, 2, 4, 8, 16]
    assert split_problem(facts, 3) == "32 attention heads cannot be split over 3 ranks"
    odd = replace(facts, intermediate_size=14338)
    assert split_problem(odd, 4) == "out_features 14338 of mlp.fc cannot be split over 4 ranks"


def test_kv_heads_that_are_neither_split_nor_repeated() -> None:
    # 28 heads go over 7 ranks, but 4 KV heads do not.
    assert (
        split_problem(facts_of("qwen2.5-7b"), 7)
        == "4 KV heads can be neither split nor repeated over 7 ranks"
    )

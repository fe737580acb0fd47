"""Prompts that begin alike, started together, against each of them alone without a shared cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from model_repo.tensorrt_llm.engine import Engine
from model_repo.tensorrt_llm.kv_blocks import shared_tokens
from tests.conftest import DEMO_MODEL
from tests.integration.engine_front_support import Plain, front, settings, write_engine

_TEXTS = ("", "Once there was a girl named Zoë", "Once there was a gentle boy", "One day")


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(DEMO_MODEL, tmp_path_factory.mktemp("engine"))


def test_a_prompt_that_begins_others_does_not_change_their_texts(engine_dir: Path) -> None:
    """The empty text is the token that begins every other."""
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in _TEXTS]
    plain = Plain(Engine(settings(engine_dir, enable_prefix_caching=False)))
    random, asked = np.random.default_rng(1), []
    with front(engine_dir) as served:
        for _ in range(400):
            # Some are running while others start, as on a server.
            starting = random.integers(0, len(prompts), random.integers(1, 4))
            asked += [(prompts[i], served.submit(prompts[i], 8)[1]) for i in starting]
            asked[max(0, len(asked) - 5)][1].wait_first()
        wrong = [
            (prompt, listener.ids)
            for prompt, listener in asked
            if listener.result() != plain(prompt, 8)
        ]
    assert not wrong, f"{len(wrong)} of {len(asked)}, the first is {wrong[0]}"


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [([0], [0, 5], 1), ([0, 5], [0], 1), ([0, 5, 6], [0, 7, 6], 1), ([1], [0], 0), ([3], [3], 1)],
)
def test_how_many_tokens_two_prompts_share(one: list[int], other: list[int], shared: int) -> None:
    assert shared_tokens(np.array(one), np.array(other)) == shared

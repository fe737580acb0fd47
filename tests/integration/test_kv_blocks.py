"""The bookkeeping of shared KV blocks against what the engine had to compute.

With 32 tokens a step, the number of steps up to the first token says how many blocks of the prompt
the engine did not compute, whatever anybody's bookkeeping says.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from model_repo.tensorrt_llm.engine import Engine
from model_repo.tensorrt_llm.kv_blocks import KvBlocks
from model_repo.tensorrt_llm.settings import TOKENS_PER_BLOCK, blocks
from tests.conftest import DEMO_MODEL
from tests.integration.engine_front_support import settings, write_engine


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(DEMO_MODEL, tmp_path_factory.mktemp("engine"))


@pytest.mark.parametrize("total", [512, 24, 16])
def test_reused_blocks_are_those_that_the_engine_did_not_compute(
    engine_dir: Path, total: int
) -> None:
    limits = settings(engine_dir, num_kv_blocks=total, max_num_batched_tokens=TOKENS_PER_BLOCK)
    engine, book = Engine(limits), KvBlocks(limits.engine_kv_blocks)
    ids, random = itertools.count(), np.random.default_rng(total)
    beginnings = [random.integers(3, 900, 160) for _ in range(4)]
    reused = 0
    for _ in range(60):
        beginning = beginnings[random.integers(4)][: TOKENS_PER_BLOCK * random.integers(0, 6)]
        own = random.integers(3, 900, random.integers(1, 60))
        prompt = np.concatenate([beginning, own]).astype(np.int64)
        config = engine.genai.GenerationConfig()
        config.max_new_tokens = int(random.integers(1, 40))
        config.set_eos_token_id(0)
        config.ignore_eos = True
        handle = engine.pipeline.add_request(next(ids), engine.tensor(prompt[None]), config)
        held = book.start(prompt)
        steps, generated = 0, []
        while engine.pipeline.has_non_finished_requests():
            engine.pipeline.step()
            steps += not generated
            while handle.can_read():
                for output in handle.read().values():
                    generated += output.generated_ids
            if generated:
                book.grow(held, [*prompt.tolist(), *generated[:-1]])
        assert blocks(prompt.size - held.reused * TOKENS_PER_BLOCK) == steps
        reused += held.reused
        book.end(held, [*prompt.tolist(), *generated[:-1]])
    assert reused > 20

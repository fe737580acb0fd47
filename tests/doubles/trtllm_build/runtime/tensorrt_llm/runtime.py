"""``ModelRunnerCpp`` of the unit tests, with the sizes of the engine that it opens.

``TRTLLM_BUILD_DOUBLE_GARBAGE`` is a token id that it generates last.
"""

import json
import os
from pathlib import Path
from typing import Any

import tensorrt_llm
from tests.unit.tensorrt import fake_tensorrt_llm as fake


class ModelRunnerCpp(fake.FakeRunner):
    """The tiny deterministic model, whatever the checkpoint."""

    rank = tensorrt_llm.mpi_rank()
    garbage = int(os.environ.get("TRTLLM_BUILD_DOUBLE_GARBAGE", "0")) or None

    @classmethod
    def from_dir(cls, engine_dir: str, *, rank: int, **settings: Any) -> fake.FakeRunner:
        """Opens a placeholder."""
        engine = Path(engine_dir)
        assert "A test double" in (engine / f"rank{rank}.engine").read_text()
        config = json.loads((engine / "config.json").read_text())
        fake.VOCABULARY = config["pretrained_config"]["vocab_size"]
        fake.PADDED = fake.VOCABULARY + 2
        fake.MAX_SEQ_LEN = config["build_config"]["max_seq_len"]
        _check_lookahead(config["build_config"], settings.get("lookahead_config"))
        return super().from_dir(engine_dir, rank=rank, **settings)


def _check_lookahead(build: dict[str, Any], sizes: list[int] | None) -> None:
    """An engine of lookahead decoding (mode 8) runs with sizes that its draft length holds."""
    if build["speculative_decoding_mode"] != 8:
        assert sizes is None, "lookahead_config for an engine without"
        return
    assert sizes is not None, "the engine needs lookahead_config"
    window, ngram, verification = sizes
    draft = (ngram - 2) + (window - 1 + verification) * (ngram - 1)
    assert draft <= build["max_draft_len"], "maxDraftTokens <= getMaxDecodingDraftTokens()"

"""Stand-ins for the two modules of TensorRT-LLM that the engine scripts use.

``ModelRunnerCpp`` returns what its documentation says: ``output_ids`` [batch, beams, max_seq_len]
with the prompt and padded with ``end_id``, ``sequence_lengths`` [batch, beams], one tensor of
context logits [tokens, padded vocabulary] per input, and an empty list on ranks other than 0. The
"model" prefers the token ``(3 * token + 1) % vocabulary`` with a logit of 2, and 0.5 elsewhere.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

VOCABULARY = 10
PADDED = 12
MAX_SEQ_LEN = 16


class FakeRunner:
    """``ModelRunnerCpp`` of a tiny deterministic model."""

    rank = 0
    reused = 0
    garbage: int | None = None
    calls = 0
    opened: dict[str, Any]

    @classmethod
    def from_dir(cls, engine_dir: str, *, rank: int, **settings: Any) -> FakeRunner:
        """Opens an engine."""
        assert rank == cls.rank
        assert settings["max_input_len"] + settings["max_output_len"] <= MAX_SEQ_LEN
        cls.opened = {"engine_dir": engine_dir, **settings}
        return cls()

    def generate(
        self, batch_input_ids: list[torch.Tensor], *, max_new_tokens: int, **sampling: Any
    ) -> Any:
        """Greedy tokens and context logits."""
        type(self).calls += 1
        if self.rank:
            return []
        (ids,) = batch_input_ids
        assert ids.dtype == torch.int32
        tokens = ids.tolist()
        for _ in range(max_new_tokens):
            tokens.append((3 * tokens[-1] + 1) % VOCABULARY)
        if self.garbage is not None:
            tokens[-1] = self.garbage + type(self).calls - 1
        outputs = torch.full((1, 1, MAX_SEQ_LEN), sampling["end_id"], dtype=torch.int32)
        outputs[0, 0, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        logits = torch.full((len(ids), PADDED), 0.5, dtype=torch.float16)
        logits[torch.arange(len(ids)), (3 * ids.long() + 1) % VOCABULARY] = 2.0
        # A padded vocabulary holds whatever the kernel left there.
        logits[:, VOCABULARY:] = 9.0
        logits[: self.reused] = 0.0
        return {
            "output_ids": outputs,
            "sequence_lengths": torch.tensor([[len(tokens)]], dtype=torch.int32),
            "context_logits": [logits],
        }


def install(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> type[FakeRunner]:
    """Puts the stand-ins where ``import tensorrt_llm`` finds them.

    Args:
        changes: Attributes of :class:`FakeRunner`.
    """
    runner = type("Runner", (FakeRunner,), changes)
    package, runtime = types.ModuleType("tensorrt_llm"), types.ModuleType("tensorrt_llm.runtime")
    package.mpi_rank = lambda: runner.rank  # type: ignore[attr-defined]
    runtime.ModelRunnerCpp = runner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_llm", package)
    monkeypatch.setitem(sys.modules, "tensorrt_llm.runtime", runtime)
    return runner

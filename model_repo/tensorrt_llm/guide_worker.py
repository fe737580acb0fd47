"""Tries guides in a process of its own: ``python -m PACKAGE.guide_worker CONFIG``.

The engine takes a guide unseen and fails for good when it cannot make a grammar of it, and some
guides are never done or overflow the stack. So each is tried here first, in what may die of it:
OpenVINO GenAI with the engine's own vocabulary and a model that has random preferences.

Each line of standard input is a guide, ``{"kind": ..., "text": ...}``; each line of standard output
an answer, ``{"refused": null}`` or with the reason. The first line out says that it is ready.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .guide_tokenizer import guide_tokenizer
from .request import Guide
from .sampling import structured_output
from .vocabulary import token_texts

WALKS, TRIED_TOKENS = 4, 32
"""How often a guide is followed, and how far: one that soon leads nowhere is found out."""

STUCK = 8
"""Times that token 0 ends a walk which leads nowhere. Where a guide allows no token at all, they
are all equally unlikely, the first one is taken, and the guide stays where it is."""


class GuideTrial:
    """A model that follows guides.

    Args:
        texts: The bytes of every token of the engine, by id.
        end_ids: Ids that end a text.
    """

    def __init__(self, texts: Sequence[bytes], end_ids: Sequence[int]) -> None:
        import openvino
        import openvino_genai

        self._genai, self._openvino = openvino_genai, openvino
        self._texts, self._end_ids = texts, frozenset(end_ids)
        tokenizer = guide_tokenizer(openvino_genai, texts, min(end_ids))
        with tempfile.TemporaryDirectory() as folder:
            _write_model(len(texts), end_ids, Path(folder))
            self._pipeline: Any = openvino_genai.LLMPipeline(
                folder, tokenizer, "CPU", ATTENTION_BACKEND="SDPA"
            )

    def refusal(self, guide: Guide) -> str | None:
        """Says why no text can follow the guide; None if some can, as far as it was tried."""
        config = self._genai.GenerationConfig()
        config.max_new_tokens = TRIED_TOKENS
        config.set_eos_token_id(min(self._end_ids))
        config.stop_token_ids = set(self._end_ids)
        config.structured_output_config = structured_output(self._genai, guide)
        for walk in range(WALKS):
            prompt = self._openvino.Tensor(np.full((1, 1), walk, np.int64))
            try:
                ids = self._pipeline.generate(prompt, config).tokens[0]
            # What pybind11 makes of C++'s exceptions; short of memory, this process ends.
            except (RuntimeError, ValueError, IndexError, OverflowError) as error:
                return _reason(str(error)) or "a number in it is out of range"
            if self._is_stuck(ids):
                return "it has a part that no text of this model's tokens can follow to an end"
        return None

    def _is_stuck(self, ids: Sequence[int]) -> bool:
        textless = any(not self._texts[id_] and id_ not in self._end_ids for id_ in ids)
        return textless or (0 not in self._end_ids and list(ids[-STUCK:]) == [0] * STUCK)


def _write_model(vocab_size: int, end_ids: Sequence[int], folder: Path) -> None:
    """Writes a model whose next token depends on the last one, with those that end a text late.

    It likes token 0 least, so that a text has it in a row only where there is nothing else.
    """
    import openvino as ov
    from openvino import opset13 as op

    scores = np.random.default_rng(0).random((WALKS, vocab_size), np.float32)
    scores[:, list(end_ids)] = -1
    scores[:, 0] = -2
    inputs = []
    for name, kind, rank in (
        ("input_ids", ov.Type.i64, 2),
        ("attention_mask", ov.Type.i64, 2),
        ("beam_idx", ov.Type.i32, 1),
    ):
        inputs.append(op.parameter(ov.PartialShape([-1] * rank), kind, name=name))
        inputs[-1].output(0).set_names({name})
    rows = op.mod(inputs[0], op.constant(np.int64(WALKS)))
    logits = op.gather(op.constant(scores), rows, op.constant(np.int64(0)))
    logits.output(0).set_names({"logits"})
    model = ov.Model([op.result(logits)], inputs, "walker")
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)


def _reason(message: str) -> str:
    """Returns xgrammar's own words, without the time, file and line in front of them."""
    line = message.strip().partition("\n")[0]
    for mark in (" is false: ", ".cc:"):
        _, found, after = line.partition(mark)
        if found:
            number, _, rest = after.partition(": ")
            return rest if number.isdigit() else after
    return line


def main(config: dict[str, Any]) -> None:
    """Answers until standard input ends.

    Args:
        config: ``tokenizer`` (a ``tokenizer.json``), ``vocab_size``, ``end_ids`` and ``limit_s``,
            the seconds after which this process ends itself when a guide is not done.
    """
    # What the libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    end_ids = config["end_ids"]
    trial = GuideTrial(
        token_texts(Path(config["tokenizer"]), config["vocab_size"], end_ids), end_ids
    )
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        # Its default action ends the process, also while a library does not come back.
        signal.alarm(config["limit_s"])
        reason = trial.refusal(Guide(wish["kind"], wish["text"], frozenset(end_ids)))
        signal.alarm(0)
        print(json.dumps({"refused": reason}), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

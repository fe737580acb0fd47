"""Whether greedy text depends on how many prompts are computed together.

The demo model with transformers, 16 prompts of ``verify``, 32 tokens each: alone, eight together,
and all of them twice over, 32 together. Each is padded to the same length on the left, alone too,
so that nothing but the batch is another. Where two texts split, the gap is how much less likely the
other token is, by the log-probabilities of the prompt alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from scripts.gpu_check.task import MODEL, Cases, Task, case

TOKENS = 32
PROMPTS = 16
BATCHES = (8, 32)


@dataclass(frozen=True)
class Answer:
    """What one prompt was answered with: TOKENS ids, and their log-probabilities [TOKENS, V]."""

    ids: list[int]
    log_probs: Any


def cases(task: Task) -> Cases:
    """One case per dtype and batch size; figures, without a rule."""
    from pipeline.quantize.loading import count_parameters
    from pipeline.source.runtime import deterministic
    from pipeline.source.tokens import load_tokenizer

    tokenizer = load_tokenizer(MODEL)
    rows = padded([tokenizer.encode(prompt) for prompt in prompts()])
    # Half precision on a CPU says nothing of a GPU, and a GPU has to choose its kernels itself.
    on_cuda = task.device == "cuda"
    names = ("float16", "bfloat16") if on_cuda else ("float32",)
    with nullcontext() if on_cuda else deterministic(count_parameters(MODEL)):
        for name in names:
            for size, found in compare(name, rows, task.device):
                yield case(f"{name}, {size} together", "measured", **found)


def compare(dtype: str, rows: Sequence[Row], device: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The answers of each batch size against those of the prompts alone."""
    import torch

    from pipeline.source.loading import load_causal_lm

    model = load_causal_lm(MODEL, getattr(torch, dtype)).to(device)
    alone = [generate(model, [row])[0] for row in rows]
    for size in BATCHES:
        repeated = list(rows) * max(1, size // len(rows))
        together = [
            answer
            for start in range(0, len(repeated), size)
            for answer in generate(model, repeated[start : start + size])
        ]
        yield size, differences(alone, together)


def prompts() -> list[str]:
    """The prompts of ``verify``, numbered as its check of interleaved streams numbers them."""
    from pipeline.verify.check import Plan

    plan = Plan()
    base = (*plan.prompts, *plan.multibyte_prompts)
    numbered = [f"{prompt} {number}" for number in range(PROMPTS) for prompt in base]
    return numbered[:PROMPTS]


@dataclass(frozen=True)
class Row:
    """A prompt of the common length: ids with padding in front; the mask is 0 on the padding."""

    ids: list[int]
    mask: list[int]


def padded(prompts: Sequence[Sequence[int]]) -> list[Row]:
    """The prompts, all as long as the longest one."""
    longest = max(map(len, prompts))
    short = [longest - len(ids) for ids in prompts]
    return [
        Row([0] * missing + list(ids), [0] * missing + [1] * len(ids))
        for missing, ids in zip(short, prompts, strict=True)
    ]


def generate(model: Any, rows: Sequence[Row]) -> list[Answer]:
    """The greedy continuations of a batch."""
    import torch

    with torch.inference_mode():
        made = model.generate(
            torch.tensor([row.ids for row in rows], device=model.device),
            attention_mask=torch.tensor([row.mask for row in rows], device=model.device),
            do_sample=False,
            min_new_tokens=TOKENS,
            max_new_tokens=TOKENS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    log_probs = torch.stack(made.logits, dim=1).float().log_softmax(-1).cpu()
    ids = made.sequences[:, -TOKENS:].cpu()
    return [Answer(row.tolist(), scores) for row, scores in zip(ids, log_probs, strict=True)]


def differences(alone: Sequence[Answer], together: Sequence[Answer]) -> dict[str, Any]:
    """Where the answers of a batch are not those of their prompts alone."""
    splits, largest = [], 0.0
    for number, answer in enumerate(together):
        own = alone[number % len(alone)]
        same = [a == b for a, b in zip(own.ids, answer.ids, strict=True)]
        position = same.index(False) if False in same else len(same)
        shared = range(position)
        moved = (
            abs(float(own.log_probs[i, own.ids[i]] - answer.log_probs[i, own.ids[i]]))
            for i in shared
        )
        largest = max(largest, *moved, 0.0)
        if position < len(same):
            chosen, other = own.ids[position], answer.ids[position]
            gap = float(own.log_probs[position, chosen] - own.log_probs[position, other])
            splits.append({"prompt": number % len(alone), "token": position, "gap": gap})
    return {
        "texts": len(together),
        "texts_that_differ": len(splits),
        "largest_gap": max((split["gap"] for split in splits), default=None),
        "largest_log_prob_change": largest,
        "splits": splits,
    }

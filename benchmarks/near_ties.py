"""How far rounding moves log probabilities: the figures behind verify's tolerance for near ties.

    python benchmarks/near_ties.py
    python benchmarks/near_ties.py --model DIR --heldout TEXT --length 64

The same texts are computed twice by transformers on the CPU: each alone, token by token with a KV
cache, and eight together without one. What is compared is the log probability of the token that is
the likeliest of the first way, at every place. Prints one Markdown table; nothing is timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny_llama"
TEXTS = 8


def main() -> None:
    arguments = parse()
    print("| dtype | places | largest difference | 99th percentile | another likeliest token |")
    print("|---|---:|---:|---:|---:|")
    for name in ("float32", "float16", "bfloat16"):
        alone, together = log_probabilities(name, arguments)
        likeliest = alone.argmax(-1, keepdim=True)
        apart = (alone.gather(-1, likeliest) - together.gather(-1, likeliest)).abs().flatten()
        changed = int((likeliest != together.argmax(-1, keepdim=True)).sum())
        print(
            f"| {name} | {apart.numel()} | {apart.max():.2g} | {apart.quantile(0.99):.2g} "
            f"| {changed} |"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=EXAMPLE / "model")
    parser.add_argument("--heldout", type=Path, default=EXAMPLE / "data" / "heldout.jsonl")
    parser.add_argument("--length", type=int, default=64, help="tokens of each of the eight texts")
    return parser.parse_args()


def log_probabilities(
    dtype: str, arguments: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 [texts, length, vocabulary], alone with a cache and together without."""
    from transformers import AutoModelForCausalLM

    from pipeline.source.lines import read_texts
    from pipeline.source.tokens import load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    texts = (tokenizer.encode(text) for text in read_texts(arguments.heldout))
    ids = [text[: arguments.length] for text in texts if len(text) >= arguments.length][:TEXTS]
    if len(ids) < TEXTS:
        raise SystemExit(f"{arguments.heldout} has fewer than {TEXTS} texts of that length")
    model: Any = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, dtype)
    ).eval()
    with torch.inference_mode():
        together = model(torch.tensor(ids), use_cache=False).logits
        alone = torch.stack([token_by_token(model, torch.tensor([text])) for text in ids])
    return alone.float().log_softmax(-1), together.float().log_softmax(-1)


def token_by_token(model: Any, ids: torch.Tensor) -> torch.Tensor:
    cache, logits = None, []
    for place in range(ids.shape[1]):
        done = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
        cache = done.past_key_values
        logits.append(done.logits[0, 0])
    return torch.stack(logits)


if __name__ == "__main__":
    main()

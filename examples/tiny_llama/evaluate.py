"""Print held-out perplexity and story consistency of a model directory.

    python examples/tiny_llama/evaluate.py --model examples/tiny_llama/model

Weights are upcast to float32, so the numbers are the model's and not those of a CPU kernel.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from story_generator import consistency, stories
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

BATCH = 25
MAX_NEW_TOKENS = 400
IGNORE = -100


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokenizer: Tokenizer, count: int) -> tuple[float, int]:
    """Return per-token perplexity over `count` held-out stories and the number of tokens.

    Each story is one document `<s> story </s>`, teacher forced. Every token after `<s>` is
    scored, `</s>` included; `<s>` itself and padding are not. The mean is over all tokens of all
    stories together.
    """
    nll, tokens = 0.0, 0
    for texts in _chunks(list(stories("heldout", count))):
        batch = tokenizer(
            [text + tokenizer.eos_token for text in texts],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORE)[:, 1:]
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        nll += cross_entropy(
            logits[:, :-1].flatten(0, 1).double(), labels.flatten(), reduction="sum"
        ).item()
        tokens += int((labels != IGNORE).sum())
    return math.exp(nll / tokens), tokens


@torch.inference_mode()
def completions(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: list[str]
) -> Iterator[tuple[str, bool]]:
    """Yield, per prompt, the whole text after greedy completion and whether `</s>` ended it."""
    for chunk in _chunks(prompts):
        batch = tokenizer(chunk, padding=True, padding_side="left", return_tensors="pt")
        rows = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        for row in rows:
            ended = bool((row == tokenizer.eos_token_id).any())
            yield tokenizer.decode(row, skip_special_tokens=True), ended


def opening(text: str, sentences: int = 2) -> str:
    """Return the first `sentences` sentences of a story."""
    return " ".join(re.split(r"(?<=\.) ", text)[:sentences])


def _chunks(items: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--stories", type=int, default=500, help="stories for the perplexity")
    parser.add_argument("--prompts", type=int, default=200, help="prompts to complete")
    parser.add_argument("--show", type=int, default=0, help="completions to print")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()

    value, tokens = perplexity(model, tokenizer, args.stories)
    print(f"perplexity {value:.4f} per token, {tokens:,} tokens of {args.stories} held-out stories")

    prompts = [opening(text) for text in stories("heldout", args.prompts)]
    kept: Counter[str] = Counter()
    for index, (text, ended) in enumerate(completions(model, tokenizer, prompts)):
        verdict = {"ends with </s>": ended, **consistency(text)}
        verdict["all of these"] = all(verdict.values())
        kept.update({kind: int(ok) for kind, ok in verdict.items()})
        if index < args.show:
            print(f"\n[{prompts[index]}]{text.removeprefix(prompts[index])}")

    print(f"\ngreedy completions of {args.prompts} held-out two-sentence openings")
    for kind, number in kept.items():
        print(f"{kind:16} {number / args.prompts:.3f}")


if __name__ == "__main__":
    main()

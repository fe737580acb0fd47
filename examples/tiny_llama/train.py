"""Train the tiny Llama and its tokenizer on generated stories, on one CPU core.

    python examples/tiny_llama/train.py --out examples/tiny_llama/model

The result is a Hugging Face model directory with float16 weights. The same seed, number of
threads and machine type give the same weights.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from story_generator import EMOJI, stories
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCAB_SIZE = 1024
TOKENIZER_STORIES = 5_000
MAX_POSITIONS = 1024

CONTEXT = 320  # tokens per row; stories take 249 on average, at most 303 of the first 20,000
BATCH = 8  # rows per step
PEAK_LR = 2e-3
FINAL_LR = 2e-5
WARMUP_STEPS = 150
WEIGHT_DECAY = 0.05
MAX_GRAD_NORM = 1.0


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of exactly `VOCAB_SIZE` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],  # ids 0, 1, 2
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Without emoji in its training text BPE learns no merge of their bytes, so that every emoji
    # is spread over several tokens, as rare characters are in large models.
    no_emoji = str.maketrans("", "", "".join(EMOJI))
    texts = (text.translate(no_emoji) for text in stories("train", TOKENIZER_STORIES))
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(f"the stories gave only {tokenizer.get_vocab_size()} tokens")

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        hidden_act="silu",
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, steps: int) -> Iterator[torch.Tensor]:
    """Yield [BATCH, CONTEXT + 1] token ids; no story is seen twice.

    Documents are packed as `<s> story </s>`. A row always begins with a document and only its
    last document is cut, so the model never sees an ending without its beginning.
    """
    eos = tokenizer.eos_token_id
    documents = ([*tokenizer.encode(text), eos] for text in _training_stories())
    for _ in range(steps):
        rows = []
        for _ in range(BATCH):
            row: list[int] = []
            while len(row) <= CONTEXT:
                row += next(documents)
            rows.append(row[: CONTEXT + 1])
        yield torch.tensor(rows)


def _training_stories(chunk: int = 1_000) -> Iterator[str]:
    start = 0
    while True:
        yield from stories("train", chunk, start)
        start += chunk


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay from `PEAK_LR` to `FINAL_LR`."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return FINAL_LR + (PEAK_LR - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    # Decaying norm gains would pull them to zero rather than to one.
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write float16 weights, configurations and tokenizer; `model` keeps its float32 weights."""
    half = LlamaForCausalLM(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)


def train(steps: int, out: Path, seed: int, bf16: bool, save_every: int) -> None:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    model = build_model(tokenizer)
    optimizer = build_optimizer(model)
    print(f"{model.num_parameters():,} parameters, {BATCH * CONTEXT:,} tokens per step")

    started = time.monotonic()
    loss_sum, loss_count = 0.0, 0
    for step, tokens in enumerate(batches(tokenizer, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=tokens[:, :-1]).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

        loss_sum, loss_count = loss_sum + loss.item(), loss_count + 1
        done = step + 1
        if done % 50 == 0 or done == steps:
            elapsed = time.monotonic() - started
            print(
                f"step {done}/{steps} loss {loss_sum / loss_count:.4f} "
                f"tokens/s {done * BATCH * CONTEXT / elapsed:.0f} "
                f"elapsed {elapsed:.0f} s ETA {elapsed / done * (steps - done):.0f} s",
                flush=True,
            )
            loss_sum, loss_count = 0.0, 0
        if save_every and done % save_every == 0:
            save(model, tokenizer, out)
    save(model, tokenizer, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=0, help="steps; 0 saves at the end only")
    # On a core with AVX512-BF16 or AMX autocast is 2 to 3 times faster; without, it is slower.
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    train(args.steps, args.out, args.seed, args.bf16, args.save_every)


if __name__ == "__main__":
    main()

"""A Llama of 124.7 million random weights, taken through the pipeline, to measure speed on.

    python benchmarks/random_llama.py                        # both formats, in build/
    python benchmarks/random_llama.py --format int4_awq

768 hidden, 2048 in the MLP, 12 layers, 12 heads on 4 of keys and values, and a byte-level BPE of
32000 tokens, trained on made-up words. What it writes is of no use; what it costs to compute is
what a trained model of these sizes would cost. The recipes have no gates, which random weights
cannot pass, so the runs end with the repository: ``build/random-llama-FORMAT/``
``repository.unverified``. Takes a few minutes of a processor for each format.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from pathlib import Path

from pipeline.progress import Lines
from pipeline.recipe.file import load_recipe
from pipeline.running.runner import run_recipe
from pipeline.store.build_dir import BuildDir

PROJECT = Path(__file__).resolve().parents[1]
FORMATS = ("int4_awq", "int8_sq")
NAME = "random-llama"
VOCABULARY = 32_000
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
SYLLABLES = [a + b for a in "bdfghklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]
RECIPE = """\
schema: 1
name: {name}
model:
  source: {model}
  dtype: float16
quantize:
  format: {format}
  calibration:
    text: {text}
    samples: 16
    sequence_length: 256
    batch_size: 16
evaluate: null
compile:
  target: openvino
  max_batch_size: 32
  max_input_len: 384
  max_seq_len: 512
  openvino:
    dynamic_quantization_group_size: {group}
serve:
  max_queue_size: 256
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--format", choices=FORMATS, nargs="+", default=FORMATS, help="which to build"
    )
    parser.add_argument("--build", type=Path, default=PROJECT / "build", help="where to")
    arguments = parser.parse_args()
    for name in arguments.format:
        print(build(arguments.build.resolve(), name))


def build(folder: Path, form: str, group: int = 0) -> Path:
    """Builds one format; what is built already is found in the store.

    Args:
        folder: The build folder; the model goes to ``random-llama`` in it.
        form: One of :data:`FORMATS`.
        group: Input features that share one INT8 scale of the activations; 0 keeps these in
            floating point.

    Returns:
        The repository.
    """
    model = folder / NAME
    if not (model / "tokenizer.json").exists():
        write_model(model)
    name = f"{NAME}-{form.replace('_', '-')}" + (f"-dynamic-{group}" if group else "")
    recipe = folder / f"{name}.yaml"
    text = PROJECT / "examples" / "tiny_llama" / "data" / "calibration.jsonl"
    recipe.write_text(
        RECIPE.format(name=name, model=model, format=form, text=text, group=group),
        encoding="utf-8",
    )
    run_recipe(load_recipe(recipe), BuildDir(folder), Lines(sys.stderr), until="repository")
    return folder / name / "repository.unverified"


def write_model(folder: Path) -> None:
    """Writes the model and its tokenizer, the same ones each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """Writes a byte-level BPE with as many tokens as the model has rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = [" " + "".join(word) for word in itertools.product(SYLLABLES, repeat=2)]
    drawn = random.Random(0).choices(SYLLABLES, k=4 * 120_000)
    words += [" " + "".join(drawn[n : n + 4]) for n in range(0, len(drawn), 4)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"the tokenizer has {tokenizer.get_vocab_size()} tokens")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS).save_pretrained(folder)


if __name__ == "__main__":
    main()

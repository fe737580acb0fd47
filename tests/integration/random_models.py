"""Tiny models with random weights, of every architecture, served on the CPU.

What they write is of no use: words of no text, one token over and over, or bytes that are no
characters. A right server of them is a right server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.running.runner import run_recipe
from pipeline.store.build_dir import BuildDir

from .quantize_support import EXTRAS, SIZES, VOCAB, write_source

BOS = "<|begin|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}\n{% else %}<|{{ m.role }}|>{{ m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Of Qwen's family, without its default system turn.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = ("The old man looked at the sea, and naïve cafés were 😀 😃 漢字.",) * 40


def words(architecture: str, folder: Path) -> Path:
    """Any of its words follows any other; what is no word of it is one special token."""
    return write_source(architecture, folder)


def broken_characters(architecture: str, folder: Path) -> Path:
    """Tokens are bytes and runs of them, in any order, so most characters are broken."""
    config = getattr(transformers, f"{architecture}Config")(**SIZES, **EXTRAS[architecture])
    torch.manual_seed(11)
    getattr(transformers, f"{architecture}ForCausalLM")(config).save_pretrained(folder)
    _bytes_tokenizer().save_pretrained(folder)
    return folder


def broken_bytes(architecture: str, folder: Path) -> Path:
    """As :func:`broken_characters`, of Llama 2's kind: a bad byte spoils those around it."""
    broken_characters(architecture, folder)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [f"\u2581w{number}" for number in range(VOCAB - len(pieces))]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def chat_model(architecture: str, folder: Path) -> Path:
    """As :func:`broken_characters`, with a template that writes bos, as the tokenizer does too."""
    broken_characters(architecture, folder)
    tokenizer = _bytes_tokenizer(BOS, "<|user|>", "<|assistant|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.convert_tokens_to_ids(BOS))]
    )
    tokenizer.bos_token = BOS
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def one_token(architecture: str, folder: Path) -> Path:
    """The layers add nothing and the head is the embedding, so each token follows itself."""
    config = getattr(transformers, f"{architecture}Config")(
        **SIZES, **EXTRAS[architecture] | {"tie_word_embeddings": True}
    )
    torch.manual_seed(13)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    model.save_pretrained(folder)
    _bytes_tokenizer().save_pretrained(folder)
    return folder


def chat(architecture: str, folder: Path) -> Path:
    """As :func:`broken_characters`, with a chat template whose special tokens it writes, too."""
    broken_characters(architecture, folder)
    _bytes_tokenizer("<|im_start|>", "<|im_end|>").save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def one_token_chat(architecture: str, folder: Path) -> Path:
    """As :func:`one_token`, with a chat template."""
    one_token(architecture, folder)
    _bytes_tokenizer("<|im_start|>", "<|im_end|>").save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def _bytes_tokenizer(*special_tokens: str) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        initial_alphabet=sorted(alphabet),
        special_tokens=["<|end|>", *special_tokens],
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def build_repository(source: Path, root: Path, max_seq_len: int) -> Path:
    """A repository for the CPU."""
    compile_keys = {
        "target": "openvino",
        "max_batch_size": 4,
        "max_input_len": max_seq_len * 3 // 4,
        "max_seq_len": max_seq_len,
        "max_num_tokens": 256,
    }
    recipe = Recipe.model_validate(
        {
            "name": f"random-{max_seq_len}",
            "model": {"source": str(source)},
            "quantize": {"format": "float16", "device": "cpu"},
            "compile": compile_keys,
        }
    )
    built = run_recipe(recipe, BuildDir(root / "build"), Silent(), until="repository")
    return built.deployed["repository"]

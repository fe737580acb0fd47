"""Tiny random chat models, laid out as each family publishes its own.

Files, special tokens, post-processors and chat templates are those of Llama 3.1, Mistral v0.3,
Qwen2.5 and Qwen3; sizes and weights are not. Their answers are of no use and end by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.conftest import PROJECT

TEMPLATES = PROJECT / "tests" / "data" / "chat-templates"
TEXTS = PROJECT / "pipeline" / "scaffold" / "texts" / "calibration.jsonl"
PIECES = 900
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Random weights of the usual size hear nothing but the last token.
    "initializer_range": 0.1,
}
SYSTEM = {"role": "system", "content": "You answer in “one” line. <é>"}
QUESTION = {"role": "user", "content": "Why is the sea blue, naïve 漢字 😀?"}
AND_THEN = {"role": "user", "content": "And at sunset?"}
ANSWER_TOKENS = 48
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Of the likeliest token over the next; arithmetic in another order moves logits less.
MARGIN = 0.005

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_MISTRAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_WORDS = ("<tool_call>", "</tool_call>")
_QWEN3_WORDS = (*_QWEN_WORDS, "<tool_response>", "</tool_response>", "<think>", "</think>")


@dataclass(frozen=True)
class Family:
    """How a family publishes its chat models.

    Attributes:
        architecture: The name of transformers' classes.
        template: The file of its chat template.
        template_in_config: Whether that is published in ``tokenizer_config.json``.
        vocabulary_of: What the size of the vocabulary is a multiple of.
        tokenizer: Makes its tokenizer.
        tokenizer_config: What the file of that name says.
        config: What its ``config.json`` says beside the sizes.
        generation: What its ``generation_config.json`` says; of ids, the tokens.
    """

    architecture: str
    template: str
    template_in_config: bool
    vocabulary_of: int
    tokenizer: Callable[[], Tokenizer]
    tokenizer_config: dict[str, Any]
    config: dict[str, Any]
    generation: dict[str, Any]

    @property
    def end(self) -> str:
        """The token that ends a turn."""
        return str(self.tokenizer_config["eos_token"])


def _trained(tokenizer: Tokenizer, **options: Any) -> Tokenizer:
    texts = [json.loads(line)["text"] for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    trainer = trainers.BpeTrainer(vocab_size=PIECES, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level(digits: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT % digits), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def _llama() -> Tokenizer:
    tokenizer = _byte_level("{1,3}")
    tokenizer.model.ignore_merges = True
    tokenizer.add_special_tokens(list(_LLAMA_TOKENS))
    bos = _LLAMA_TOKENS[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos}:1 $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    return tokenizer


def _qwen(words: Sequence[str]) -> Tokenizer:
    tokenizer = _byte_level("")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.add_special_tokens(list(_QWEN_TOKENS))
    tokenizer.add_tokens(list(words))
    return tokenizer


def _mistral() -> Tokenizer:
    """A converted SentencePiece model, with a token for each byte."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    found = json.loads(_trained(trained).to_str())["model"]
    pieces = [*_MISTRAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *found["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [(left, right) for left, right in found["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(list(_MISTRAL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


_QWEN_CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "add_bos_token": False,
    "add_prefix_space": False,
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "pad_token": "<|endoftext|>",
    "split_special_tokens": False,
    "unk_token": None,
}
_QWEN_GENERATION = {
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": ["<|im_end|>", "<|endoftext|>"],
    "pad_token_id": "<|endoftext|>",
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}
FAMILIES = {
    family.architecture: family
    for family in (
        Family(
            "Llama",
            "llama3_1",
            True,
            1,
            _llama,
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|begin_of_text|>",
                "clean_up_tokenization_spaces": True,
                "eos_token": "<|eot_id|>",
            },
            {
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 256,
                },
            },
            {
                "bos_token_id": "<|begin_of_text|>",
                "eos_token_id": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
                "do_sample": True,
                "temperature": 0.6,
                "top_p": 0.9,
            },
        ),
        Family(
            "Mistral",
            "mistral_v2v3",
            True,
            1,
            _mistral,
            {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": "<s>",
                "clean_up_tokenization_spaces": False,
                "eos_token": "</s>",
                "legacy": False,
                "unk_token": "<unk>",
            },
            {
                "max_position_embeddings": 1024,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1e6,
                "sliding_window": None,
            },
            {"bos_token_id": "<s>", "eos_token_id": "</s>"},
        ),
        Family(
            "Qwen2",
            "qwen2_5",
            True,
            128,
            lambda: _qwen(_QWEN_WORDS),
            _QWEN_CONFIG,
            {
                "max_position_embeddings": 1024,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1e6,
                "sliding_window": 1024,
                "max_window_layers": 2,
                "use_sliding_window": False,
                "tie_word_embeddings": True,
            },
            _QWEN_GENERATION,
        ),
        Family(
            "Qwen3",
            "qwen3",
            False,
            128,
            lambda: _qwen(_QWEN3_WORDS),
            _QWEN_CONFIG,
            {
                "max_position_embeddings": 1024,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1e6,
                "head_dim": 128,
                "max_window_layers": 2,
                "use_sliding_window": False,
            },
            _QWEN_GENERATION,
        ),
    )
}


def chat_model(architecture: str, folder: Path) -> Path:
    """Writes a model in bfloat16 whose answers to the questions above end after some tokens."""
    family = FAMILIES[architecture]
    folder.mkdir(parents=True, exist_ok=True)
    made = family.tokenizer()
    made.save(str(folder / "tokenizer.json"))
    template = (TEMPLATES / f"{family.template}.jinja").read_text(encoding="utf-8")
    settings = dict(family.tokenizer_config)
    if family.template_in_config:
        settings["chat_template"] = template
    else:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

    generation = {
        key: _ids(made, value) if key.endswith("_token_id") else value
        for key, value in family.generation.items()
    }
    tokens = made.get_vocab_size()
    ends = {key: generation[key] for key in ("bos_token_id", "eos_token_id")}
    config = getattr(transformers, f"{architecture}Config")(
        **SIZES, **family.config, **ends, vocab_size=tokens + -tokens % family.vocabulary_of
    )
    model = _that_ends(family, config, transformers.AutoTokenizer.from_pretrained(folder))
    model.generation_config = transformers.GenerationConfig(**generation)
    model.save_pretrained(folder)
    return folder


def _ids(tokenizer: Tokenizer, tokens: str | list[str]) -> int | list[int]:
    if isinstance(tokens, str):
        return int(tokenizer.token_to_id(tokens))
    return [int(tokenizer.token_to_id(token)) for token in tokens]


def prompt_ids(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """What transformers makes of a conversation."""
    found: list[int] = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True
    )
    return found


def greedy(model: Any, ids: Sequence[int], ends: Sequence[int]) -> tuple[list[int], float]:
    """transformers' answer, with its end id, and the least margin of its choices."""
    asked = torch.tensor([list(ids)])
    with torch.inference_mode():
        answer = model.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            max_new_tokens=ANSWER_TOKENS,
            eos_token_id=list(ends),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    best = torch.stack(answer.scores).float().topk(2).values
    return answer.sequences[0, len(ids) :].tolist(), float((best[..., 0] - best[..., 1]).min())


def as_served(folder: Path) -> Any:
    """The model of a folder with its weights in half precision, computed in single."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return _rounded(model, torch.float16)


def _rounded(model: Any, dtype: torch.dtype) -> Any:
    """The weights alone: rotations have frequencies for which half precision is too coarse."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model


def _that_ends(family: Family, config: Any, tokenizer: Any) -> Any:
    """The first model at random whose two answers end at the end of a turn, and by a margin."""
    end = tokenizer.convert_tokens_to_ids(family.end)
    unsaid = [
        number
        for number in range(len(tokenizer))
        if number in tokenizer.added_tokens_decoder or REPLACEMENT in tokenizer.decode([number])
    ]
    unsaid.remove(end)
    for seed in range(200):
        torch.manual_seed(seed)
        model: Any = getattr(transformers, f"{family.architecture}ForCausalLM")(config)
        with torch.no_grad():
            for head in (model.get_input_embeddings(), model.get_output_embeddings()):
                head.weight[len(tokenizer) :] = 0
            rows = model.get_output_embeddings().weight
            # What opens a turn, calls a tool or is no character is no part of an answer.
            rows[unsaid] *= 0.1
            # A longer row is the likeliest more often than others.
            rows[end] *= 2
            # As unsure of each token as a model that was never trained.
            model.model.norm.weight *= 0.125
        served = _rounded(_rounded(model, torch.bfloat16), torch.float16)
        turns = [QUESTION]
        for _ in range(2):
            answer, margin = greedy(served, prompt_ids(tokenizer, turns), [end])
            if not 4 <= len(answer) < ANSWER_TOKENS or margin < MARGIN:
                break
            text = tokenizer.decode(answer, skip_special_tokens=True)
            turns = [*turns, {"role": "assistant", "content": text}, AND_THEN]
        else:
            return model.bfloat16()
    raise AssertionError(f"no {family.architecture} of these seeds ends its answers")

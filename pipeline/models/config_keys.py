"""Which keys of ``config.json`` decide what transformers computes, and a model refused for one.

transformers' classes say what a model is. What they read is what a row of
:mod:`pipeline.models.architectures` lists, and what its shared code reads is listed here; a test
compares both with the sources of the pinned version. Each key is one of three: understood, fixed to
the values with which nothing changes, or inert. Keys outside of these are read by nobody.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.models.architectures import ARCHITECTURES, Architecture

# Keys that transformers' shared code reads for every class, and the values with which each class
# computes what its own file says. The cache of keys and values, for one, drops what is outside
# ``sliding_window`` even for classes that know no window.
SHARED_FIXED: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "layer_types": (None,),
    "num_kv_shared_layers": (None,),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "return_dict": (True,),
    "output_attentions": (False, None),
    "alibi": (False, None),
    "use_alibi": (False, None),
}
# Keys that are read and change nothing of what a text's logits are: training, files, token ids and
# generation, which has settings of its own here.
INERT = frozenset(
    (
        # Of configurations and models in general.
        *("architectures", "attn_implementation", "dtype", "torch_dtype", "name_or_path"),
        *("transformers_version", "transformers_weights", "distributed_config", "torchscript"),
        *("gradient_checkpointing", "output_hidden_states", "chunk_size_feed_forward"),
        *("is_decoder", "add_cross_attention", "cross_attention_hidden_size"),
        *("tie_encoder_decoder", "tf_legacy_loss", "use_bfloat16", "use_cache", "pretraining_tp"),
        # Read for a rope type that is refused.
        "original_max_position_embeddings",
        # Of training and of heads for other tasks.
        *("initializer_range", "attention_dropout", "classifier_dropout", "hidden_dropout"),
        *("resid_pdrop", "embd_pdrop", "residual_dropout", "embedding_dropout"),
        *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
        *("finetuning_task", "id2label", "label2id", "num_labels", "problem_type"),
        "task_specific_params",
        # Of the tokenizer and of generation.
        *("tokenizer_class", "prefix", "bos_token_id", "eos_token_id", "pad_token_id"),
        *("sep_token_id", "decoder_start_token_id", "max_length", "min_length", "do_sample"),
        *("early_stopping", "num_beams", "temperature", "top_k", "top_p", "typical_p"),
        *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
        *("encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
        *("return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id"),
        *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
        *("begin_suppress_tokens", "num_beam_groups", "diversity_penalty"),
    )
)
# What chooses the classes, and how transformers 5 writes the rotary embedding.
ELSEWHERE = frozenset(
    ("model_type", "auto_map", "rope_parameters", "_name_or_path", "_commit_hash")
)


def fixed_keys(architecture: Architecture) -> dict[str, tuple[Any, ...]]:
    """Returns the keys that may have certain values only; the first one is the one to recommend."""
    fixed = {**SHARED_FIXED, **architecture.fixed}
    return {key: values for key, values in fixed.items() if key not in architecture.understood}


def refuse_other_arithmetic(
    architecture: Architecture, config: Mapping[str, Any], where: str
) -> None:
    """Refuses a model of which transformers would compute something that nothing here computes.

    Args:
        architecture: The row of the model.
        config: The parsed ``config.json``.
        where: Its path, for error messages.

    Raises:
        UnsupportedError: Names the key and its value, or the one that an absent key stands for.
    """
    named = config.get("model_type")
    if named not in (None, architecture.model_type):
        raise UnsupportedError(
            f"model_type is {_json(named)} beside {architecture.name}",
            where=where,
            why=f"transformers chooses its classes by model_type, and {architecture.name} belongs "
            f"to {architecture.model_type}",
            fix="Use config.json as the tool that saved the model wrote it, unchanged",
        )
    fixed = fixed_keys(architecture)
    known = architecture.understood | fixed.keys() | INERT
    foreign = [key for key in architecture.reads if key not in known]
    if foreign:
        others = ", ".join(name for name in sorted(ARCHITECTURES) if name != architecture.name)
        raise UnsupportedError(
            ", ".join(_stated(key, config, architecture.reads[key]) for key in foreign),
            where=where,
            why=f"transformers computes a {architecture.name} with that, and nothing here does, so "
            "every target would compute another model",
            fix=f"Use a model of another architecture: {others}",
        )
    for key, values in fixed.items():
        default = architecture.reads.get(key, values[0])
        if not any(_same(config.get(key, default), value) for value in values):
            raise UnsupportedError(
                _stated(key, config, default),
                where=where,
                why=f"transformers reads {key} when it computes a {architecture.name}, and nothing "
                f"here does, which is the same only where it is {_json(values[0])}",
                fix=f"If the model was trained without it, set {key} to {_json(values[0])} in the "
                "config.json of a local copy; otherwise use another model",
            )


def unread_keys(config: Mapping[str, Any]) -> list[str]:
    """Lists the ``config.json`` keys that neither transformers nor this pipeline reads, sorted.

    Published files have some: of the tools that trained or converted them, or of a relative of the
    model.

    Args:
        config: A file that :meth:`pipeline.models.facts.ModelFacts.from_config` has taken.
    """
    architecture = ARCHITECTURES[config["architectures"][0]]
    read = {*architecture.reads, *architecture.understood, *SHARED_FIXED, *INERT, *ELSEWHERE}
    return sorted(config.keys() - read)


def _stated(key: str, config: Mapping[str, Any], default: Any) -> str:
    return f"{key} is " + (_json(config[key]) if key in config else f"{_json(default)} by default")


def _same(value: Any, other: Any) -> bool:
    # In Python 0 equals False, and in config.json they may well mean two things.
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _json(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)

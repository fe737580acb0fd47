"""What a TensorRT engine's ``config.json`` says about how it can be served.

The runtime corrects some settings in silence and refuses others with a message about something
else; here each is a sentence before the server starts. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RepositoryError, cause
from pipeline.targets.tensorrt.lora.size import adapter_bytes
from pipeline.targets.tensorrt.speculation import SPECULATION
from pipeline.targets.tensorrt.toolchain import TENSORRT_LLM

# SpeculativeDecodingMode, as BuildConfig writes it.
_NO_SPECULATION = SPECULATION[None]
_LOOKAHEAD = SPECULATION["lookahead_decoding"]
_GUESSES = SPECULATION["draft_tokens_external"]


@dataclass(frozen=True)
class TrtEngine:
    """The facts of one engine directory.

    Attributes:
        version: The TensorRT-LLM that built it.
        max_seq_len: Prompt plus generated tokens, at most.
        vocab_size: Tokens it knows.
        logits_dtype: Element type of ``context_logits`` and ``generation_logits``.
        kv_cache_quant: ``INT8``, ``FP8`` or None.
        attention_plugin: Whether the GPT attention plugin is in it.
        packed_input: ``remove_input_padding``.
        paged_kv_cache: Whether the KV cache is in blocks.
        paged_context_fmha: Whether the context phase can read KV blocks, as it was built (not as it
            was asked for).
        gather_context_logits: Whether it returns logits of every prompt token.
        speculation: The kind of speculative decoding it was built for, by upstream's number.
        max_draft_len: Tokens that a step guesses for a sequence.
        lora_modules: The linears that adapters may change; empty without the LoRA plugin.
        max_lora_rank: Their largest rank; None without the plugin.
        adapter_bytes: What an adapter of that rank takes in the cache, at most; 0 without the
            plugin.
        gpus_per_node: GPUs of one machine in its mapping.
    """

    version: str
    tp_size: int
    pp_size: int
    world_size: int
    max_batch_size: int
    max_beam_width: int
    max_seq_len: int
    vocab_size: int
    logits_dtype: str
    kv_cache_quant: str | None
    attention_plugin: bool
    packed_input: bool
    paged_kv_cache: bool
    paged_context_fmha: bool
    gather_context_logits: bool
    speculation: int
    max_draft_len: int
    lora_modules: tuple[str, ...] = ()
    max_lora_rank: int | None = None
    adapter_bytes: int = 0
    gpus_per_node: int = 8

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrtEngine:
        """Reads the content of an engine's ``config.json``.

        Raises:
            RepositoryError: A key is missing or has the wrong type.
        """
        try:
            model, build = config["pretrained_config"], config["build_config"]
            mapping, plugins = model["mapping"], build["plugin_config"]
            tp_size, pp_size = int(mapping["tp_size"]), int(mapping["pp_size"])
            quantization = model.get("quantization") or {}
            return cls(
                version=str(config["version"]),
                tp_size=tp_size,
                pp_size=pp_size,
                world_size=int(mapping.get("world_size", tp_size * pp_size)),
                max_batch_size=int(build["max_batch_size"]),
                max_beam_width=int(build["max_beam_width"]),
                max_seq_len=int(build["max_seq_len"]),
                vocab_size=int(model["vocab_size"]),
                logits_dtype=str(model["logits_dtype"]),
                kv_cache_quant=quantization.get("kv_cache_quant_algo"),
                attention_plugin=bool(plugins["gpt_attention_plugin"]),
                packed_input=bool(plugins["remove_input_padding"]),
                paged_kv_cache=str(build["kv_cache_type"]).rpartition(".")[2].upper() == "PAGED",
                paged_context_fmha=bool(plugins["use_paged_context_fmha"]),
                gather_context_logits=bool(build["gather_context_logits"]),
                speculation=int(build.get("speculative_decoding_mode", _NO_SPECULATION)),
                max_draft_len=int(build.get("max_draft_len", 0)),
                **(_lora(model, build) if plugins.get("lora_plugin") else {}),
                gpus_per_node=int(mapping.get("gpus_per_node", 8)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RepositoryError(
                "the engine's config.json is not that of a TensorRT-LLM engine",
                where="engine config.json",
                why=cause(error),
                fix="Compile the engine again with trtllm-pipeline run",
            ) from error

    @property
    def rank_files(self) -> tuple[str, ...]:
        """The engine files it consists of, one per rank."""
        return tuple(f"rank{rank}.engine" for rank in range(self.world_size))

    @property
    def lookahead(self) -> bool:
        """Whether it was built for lookahead decoding."""
        return self.speculation == _LOOKAHEAD

    @property
    def takes_guesses(self) -> bool:
        """Whether it was built for the guesses of a draft model."""
        return self.speculation == _GUESSES

    def kv_reuse_obstacle(self) -> str | None:
        """Says why KV blocks cannot be shared between prompts; None when they can."""
        if self.gather_context_logits:
            return (
                "the engine gathers context logits, and reused blocks have none; the runtime "
                "switches the reuse off without saying so"
            )
        return self._context_obstacle()

    def chunked_context_obstacle(self) -> str | None:
        """Says why long prompts cannot be split over several steps; None when they can."""
        return self._context_obstacle()

    def _context_obstacle(self) -> str | None:
        if self.kv_cache_quant == "INT8":
            return "an INT8 KV cache has no paged context attention"
        if not self.paged_context_fmha:
            return "the engine was built without use_paged_context_fmha"
        return None

    def problems(self) -> Iterator[str]:
        """Names everything that keeps the C++ backend from serving it, one sentence each."""
        if self.version != TENSORRT_LLM:
            yield f"it was built with TensorRT-LLM {self.version}, not {TENSORRT_LLM}"
        if self.world_size != self.tp_size * self.pp_size:
            yield (
                f"mapping.world_size is {self.world_size}, but tp_size {self.tp_size} x pp_size "
                f"{self.pp_size} is {self.tp_size * self.pp_size}"
            )
        if self.world_size > self.gpus_per_node:
            yield (
                f"its {self.world_size} ranks need more than one machine of {self.gpus_per_node} "
                "GPUs, which the launcher does not start"
            )
        missing = [
            name
            for name, present in (
                ("gpt_attention_plugin", self.attention_plugin),
                ("remove_input_padding", self.packed_input),
                ("kv_cache_type PAGED", self.paged_kv_cache),
            )
            if not present
        ]
        if missing:
            yield f"in-flight batching needs {', '.join(missing)}, which it was built without"
        if self.logits_dtype != "float32":
            yield (
                f"its logits are {self.logits_dtype}, but the wire contract of all models says "
                "TYPE_FP32; build with --logits_dtype float32"
            )
        if self.speculation not in (_NO_SPECULATION, _LOOKAHEAD, _GUESSES):
            yield (
                f"it was built for speculative decoding of kind {self.speculation}, which this "
                "repository does not serve"
            )


def _lora(model: Mapping[str, Any], build: Mapping[str, Any]) -> dict[str, Any]:
    config = build["lora_config"]
    modules, rank = tuple(map(str, config["lora_target_modules"])), int(config["max_lora_rank"])
    hidden, inner = int(model["hidden_size"]), int(model["intermediate_size"])
    heads = int(model["num_attention_heads"])
    head = int(model.get("head_size") or hidden // heads)
    keys = head * int(model.get("num_key_value_heads") or heads)
    features = {
        "attn_q": hidden + heads * head,
        "attn_k": hidden + keys,
        "attn_v": hidden + keys,
        "attn_dense": heads * head + hidden,
    }
    # The three of the MLP.
    widths = [features.get(name, hidden + inner) for name in modules]
    layers = int(model["num_hidden_layers"])
    return {
        "lora_modules": modules,
        "max_lora_rank": rank,
        "adapter_bytes": adapter_bytes(widths, rank, layers) if widths else 0,
    }

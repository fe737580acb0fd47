"""One typed build configuration and the ``trtllm-build`` flags that say it.

Field names are those of TensorRT-LLM 1.2's ``BuildConfig`` and ``PluginConfig``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.formats import FORMATS, FP8_KV_CACHE, kv_cache_algo
from pipeline.recipe.schema import Recipe
from pipeline.recipe.tensorrt import LoraSection, PluginSection, TensorRtSection
from pipeline.targets.tensorrt.speculation import SPECULATION, SpeculationName

KvCacheType = Literal["paged", "continuous", "disabled"]

# Options that are stated even when they are upstream's default: the command line then shows what
# decides batching, KV reuse and the kernels.
STATED_OPTIONS = (
    "gpt_attention_plugin",
    "gemm_plugin",
    "context_fmha",
    "remove_input_padding",
    "use_paged_context_fmha",
    "use_fp8_context_fmha",
    "multiple_profiles",
    "reduce_fusion",
)


@dataclass(frozen=True)
class PluginConfig:
    """``PluginConfig``, resolved; :class:`~pipeline.recipe.tensorrt.PluginSection` explains it."""

    gpt_attention_plugin: str | None = "auto"
    gemm_plugin: str | None = None
    gemm_swiglu_plugin: str | None = None
    low_latency_gemm_plugin: str | None = None
    low_latency_gemm_swiglu_plugin: str | None = None
    gemm_allreduce_plugin: str | None = None
    nccl_plugin: str | None = "auto"
    lora_plugin: str | None = None
    context_fmha: bool = True
    remove_input_padding: bool = True
    tokens_per_block: int = 32
    use_paged_context_fmha: bool = True
    use_fp8_context_fmha: bool = True
    multiple_profiles: bool = False
    norm_quant_fusion: bool = False
    reduce_fusion: bool = False
    user_buffer: bool = False
    use_fused_mlp: bool = True

    @classmethod
    def from_section(
        cls, section: PluginSection, *, tokens_per_block: int, fp8_attention: bool, lora: bool
    ) -> PluginConfig:
        """Resolves what the recipe leaves open.

        Args:
            section: ``compile.tensorrt.plugin_config``.
            tokens_per_block: ``compile.tokens_per_block``.
            fp8_attention: What ``use_fp8_context_fmha`` is where the recipe does not say.
            lora: Whether requests may choose an adapter.
        """
        values = section.model_dump()
        if values["use_fp8_context_fmha"] is None:
            values["use_fp8_context_fmha"] = fp8_attention
        lora_plugin = "auto" if lora else None
        return cls(**values, tokens_per_block=tokens_per_block, lora_plugin=lora_plugin)

    def flags(self) -> list[str]:
        """Returns the arguments: those always stated, and what differs from upstream's default."""
        flags = ["--tokens_per_block", str(self.tokens_per_block)]
        upstream = PluginConfig()
        for option in fields(self):
            name, value = option.name, getattr(self, option.name)
            if name == "tokens_per_block":
                continue
            if name in STATED_OPTIONS or value != getattr(upstream, name):
                flags += [f"--{name}", _plugin_value(value)]
        return flags


@dataclass(frozen=True)
class BuildConfig:
    """What ``trtllm-build`` is asked for.

    Attributes:
        max_batch_size: Sequences decoded together.
        max_input_len: Prompt tokens, at most.
        max_seq_len: Prompt plus generated tokens, at most.
        max_num_tokens: Packed tokens per engine step.
        opt_num_tokens: Tokens per step that kernels are chosen for; None with several profiles.
        gather_context_logits: Returns the logits of prompt tokens.
        speculative_decoding_mode: How tokens are guessed; None guesses none.
        max_draft_len: Tokens that are guessed for a sequence in a step.
        lora: What adapters may change; None for no adapters.
        workers: Ranks built at the same time; trtllm-build takes at most one per visible GPU.
        input_timing_cache: A timing cache to start from.
        output_timing_cache: Where the timing cache goes. ``trtllm-build`` would write
            ``model.cache`` into the working directory.
    """

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    opt_num_tokens: int | None
    max_beam_width: int = 1
    kv_cache_type: KvCacheType = "paged"
    gather_context_logits: bool = False
    speculative_decoding_mode: SpeculationName | None = None
    max_draft_len: int = 0
    lora: LoraSection | None = None
    plugin_config: PluginConfig = PluginConfig()
    workers: int = 1
    input_timing_cache: Path | None = None
    output_timing_cache: Path | None = None

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> BuildConfig:
        """Makes the configuration a recipe asks for, before any of upstream's overrides."""
        section, options = recipe.compile, recipe.compile.tensorrt
        row, kv_cache = FORMATS[recipe.quantize.format], kv_cache_algo(recipe.quantize.kv_cache)
        plugins = PluginConfig.from_section(
            options.plugin_config,
            tokens_per_block=section.tokens_per_block,
            fp8_attention=row.needs_fp8 and kv_cache == FP8_KV_CACHE,
            lora=options.lora is not None,
        )
        opt_num_tokens = options.opt_num_tokens
        if opt_num_tokens is None and not plugins.multiple_profiles:
            # What upstream would take; stated, so that the engine's configuration shows it.
            opt_num_tokens = min(
                section.max_batch_size * section.max_beam_width, section.max_num_tokens
            )
        mode, draft = _speculation(options)
        return cls(
            max_batch_size=section.max_batch_size,
            max_input_len=section.max_input_len,
            max_seq_len=section.max_seq_len,
            max_num_tokens=section.max_num_tokens,
            opt_num_tokens=opt_num_tokens,
            max_beam_width=section.max_beam_width,
            kv_cache_type=options.kv_cache_type,
            gather_context_logits=options.gather_context_logits,
            speculative_decoding_mode=mode,
            max_draft_len=draft,
            lora=options.lora,
            plugin_config=plugins,
            workers=options.workers or section.tensor_parallel * section.pipeline_parallel,
        )

    def with_timing_cache(self, source: Path | None, target: Path) -> BuildConfig:
        """Returns the same build, reading and writing these timing caches.

        Args:
            source: The timing cache to start from; None starts without.
            target: Where the build's own goes.
        """
        return replace(self, input_timing_cache=source, output_timing_cache=target)

    def for_evaluation(self, longest: int) -> BuildConfig:
        """Returns the build of an engine with prompt logits, for perplexity, without KV reuse.

        It is no larger than one window needs: a logit of the vocabulary in float32 for each of
        ``max_num_tokens`` is gigabytes, which a GPU that the serving engine fills does not have.

        Args:
            longest: Tokens of the longest window.
        """
        return replace(
            self,
            max_batch_size=1,
            max_input_len=longest,
            # One new token is generated, because a request for none is refused.
            max_seq_len=longest + 1,
            max_num_tokens=max(longest, self.plugin_config.tokens_per_block),
            opt_num_tokens=None,
            gather_context_logits=True,
            speculative_decoding_mode=None,
            max_draft_len=0,
            lora=None,
            plugin_config=replace(self.plugin_config, lora_plugin=None),
        )

    def flags(self) -> list[str]:
        """Returns the ``trtllm-build`` arguments, without the checkpoint and output directories."""
        flags = [
            *("--max_batch_size", str(self.max_batch_size)),
            *("--max_input_len", str(self.max_input_len)),
            *("--max_seq_len", str(self.max_seq_len)),
            *("--max_num_tokens", str(self.max_num_tokens)),
            *("--max_beam_width", str(self.max_beam_width)),
            *("--kv_cache_type", self.kv_cache_type),
        ]
        if self.opt_num_tokens is not None:
            flags += ["--opt_num_tokens", str(self.opt_num_tokens)]
        if self.gather_context_logits:
            flags += ["--gather_context_logits"]
        if self.speculative_decoding_mode is not None:
            flags += ["--speculative_decoding_mode", self.speculative_decoding_mode]
            flags += ["--max_draft_len", str(self.max_draft_len)]
        if self.lora is not None:
            flags += ["--lora_target_modules", *self.lora.target_modules]
            flags += ["--max_lora_rank", str(self.lora.max_rank)]
        flags += self.plugin_config.flags()
        flags += ["--workers", str(self.workers)]
        if self.input_timing_cache:
            flags += ["--input_timing_cache", str(self.input_timing_cache)]
        if self.output_timing_cache:
            flags += ["--output_timing_cache", str(self.output_timing_cache)]
        return flags

    def as_dict(self) -> dict[str, Any]:
        """Returns the options that decide the engine, under upstream's names; no paths, no workers.

        They are values of JSON, nested as ``build_config`` of an engine's ``config.json`` is.
        """
        values = asdict(self)
        values["speculative_decoding_mode"] = SPECULATION[self.speculative_decoding_mode]
        for name in ("workers", "input_timing_cache", "output_timing_cache", "lora"):
            del values[name]
        if self.lora is not None:
            values["lora_config"] = {
                "lora_target_modules": list(self.lora.target_modules),
                "max_lora_rank": self.lora.max_rank,
            }
        return values


def _speculation(options: TensorRtSection) -> tuple[SpeculationName | None, int]:
    """How tokens are guessed, and how many for a sequence in a step."""
    if options.lookahead is not None:
        return "lookahead_decoding", options.lookahead.max_draft_len
    if options.draft is not None:
        return "draft_tokens_external", options.draft.max_draft_len
    return None, 0


def build_section(recipe: Recipe) -> dict[str, Any]:
    """Returns the part of the recipe that decides the engine, as JSON values for its cache key.

    ``workers`` is how many ranks are built at the same time: the engine is the same.
    """
    section = recipe.compile.read_by("tensorrt")
    del section["tensorrt"]["workers"]
    return {
        "compile": section,
        "quantize": recipe.quantize.model_dump(mode="json", include={"format", "kv_cache"}),
    }


def _plugin_value(value: str | bool | None) -> str:
    if isinstance(value, bool):
        return "enable" if value else "disable"
    return value or "disable"

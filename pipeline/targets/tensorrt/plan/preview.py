"""Says what ``trtllm-build`` would do before a GPU is touched.

Everything comes from the recipe and the model's ``config.json``, in milliseconds and on any
machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.environment import missing_to_build
from pipeline.targets.tensorrt.gpus import GIB, Gpu, find_gpu
from pipeline.targets.tensorrt.plan import features, rules
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.draft import check_draft, draft_memory
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts
from pipeline.targets.tensorrt.plan.lora import check_lora
from pipeline.targets.tensorrt.plan.memory import MemoryPlan, plan_memory
from pipeline.targets.tensorrt.plan.overrides import apply_overrides
from pipeline.targets.tensorrt.plan.quality import check_quality

ABILITIES = ("enable_kv_cache_reuse", "enable_chunked_context")
"""Keys of ``serve`` for what an engine may be able to do."""


@dataclass(frozen=True)
class Effective:
    """What a build configuration turns into.

    Attributes:
        config: The configuration that is really built.
        findings: Errors, warnings and notes, each with its reason and its remedy.
        kv_cache_reuse: Whether the engine can share KV blocks between prompts.
        chunked_context: Whether the engine can split a prompt over several steps.
    """

    config: BuildConfig
    findings: tuple[Finding, ...]
    kv_cache_reuse: bool
    chunked_context: bool


@dataclass(frozen=True)
class EnginePreview:
    """Everything known about an engine before it is built.

    Attributes:
        requested: What the recipe asks for.
        effective: What is built of it, with every finding.
        checkpoint: What is compiled.
        gpu: What it is compiled for; None when the recipe does not say.
        memory: The memory of the fullest rank.
        switched_off: Abilities of the engine that the recipe does not let a server use, as keys of
            ``serve``.
    """

    requested: BuildConfig
    effective: Effective
    checkpoint: CheckpointFacts
    gpu: Gpu | None
    memory: MemoryPlan
    switched_off: tuple[str, ...] = ()

    def served(self, key: str) -> str:
        """Says whether a server uses an ability of the engine.

        Args:
            key: ``enable_kv_cache_reuse`` or ``enable_chunked_context``.

        Returns:
            ``on``, ``not possible``, or ``off`` with the key of the recipe that says so.
        """
        if not getattr(self.effective, key.removeprefix("enable_")):
            return "not possible"
        return f"off (serve.{key})" if key in self.switched_off else "on"

    def as_dict(self) -> dict[str, Any]:
        """Returns the preview as JSON values; memory in bytes, flags as the recipe asks."""
        gpu = self.gpu
        return {
            "quant_algo": self.checkpoint.quant_algo,
            "kv_cache_quant_algo": self.checkpoint.kv_cache_algo,
            "world_size": self.checkpoint.world_size,
            "gpu": {"name": gpu.name, "sm": gpu.sm, "memory": gpu.memory} if gpu else None,
            "build_config": self.effective.config.as_dict(),
            "flags": self.requested.flags(),
            "kv_cache_reuse": self.effective.kv_cache_reuse,
            "chunked_context": self.effective.chunked_context,
            "switched_off": list(self.switched_off),
            "memory": asdict(self.memory),
            "findings": [asdict(finding) for finding in self.effective.findings],
        }


def predict_build(config: BuildConfig, checkpoint: CheckpointFacts, gpu: Gpu | None) -> Effective:
    """Predicts what ``trtllm-build`` makes of a configuration.

    Args:
        config: What is asked for.
        checkpoint: What is compiled.
        gpu: Where; None leaves out what depends on it.
    """
    effective, overridden = apply_overrides(config, checkpoint, gpu)
    findings = [
        *rules.check_format(checkpoint),
        *rules.check_gpu(checkpoint, gpu),
        *rules.check_plugins(config, checkpoint, gpu),
        *rules.check_inflight_batching(config),
        *rules.check_model_limits(config, checkpoint),
        *overridden,
    ]
    paged = effective.kv_cache_type == "paged" and effective.plugin_config.use_paged_context_fmha
    return Effective(
        config=effective,
        findings=tuple(findings),
        kv_cache_reuse=paged and not effective.gather_context_logits,
        chunked_context=paged,
    )


def preview_engine(recipe: Recipe, facts: ModelFacts) -> EnginePreview:
    """Carries out the whole pre-flight of a recipe.

    Raises:
        RecipeError: ``compile.gpu`` is not in the table.
    """
    gpu = find_gpu(recipe.compile.gpu, recipe.place("compile.gpu")) if recipe.compile.gpu else None
    checkpoint = CheckpointFacts.from_recipe(recipe, facts)
    requested = BuildConfig.from_recipe(recipe)
    effective = predict_build(requested, checkpoint, gpu)
    memory = plan_memory(
        effective.config, checkpoint, recipe.serve, gpu, draft=draft_memory(recipe)
    )
    findings = (
        *effective.findings,
        *rules.check_serving(recipe, effective.config),
        *features.check_features(recipe, checkpoint, effective.config, memory),
        *check_draft(recipe, checkpoint, effective.config, gpu),
        *check_lora(recipe, checkpoint, memory),
        *check_quality(recipe, checkpoint),
        *_check_memory(memory, checkpoint, effective.config, gpu),
    )
    order = ("error", "warning", "note")
    ordered = tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))
    effective = replace(effective, findings=ordered)
    switched_off = tuple(key for key in ABILITIES if not getattr(recipe.serve, key))
    return EnginePreview(requested, effective, checkpoint, gpu, memory, switched_off)


def preview_here(recipe: Recipe, facts: ModelFacts) -> EnginePreview:
    """Previews an engine, and adds what this machine lacks for users planning elsewhere.

    Raises:
        RecipeError: ``compile.gpu`` is not in the table.
    """
    preview = preview_engine(recipe, facts)
    missing = missing_to_build()
    if not missing:
        return preview
    finding = Finding(
        "note",
        "compile.target",
        "the compile stage cannot run on this machine",
        f"Here, {' and '.join(missing)}; the stages before it run, then the run ends with the "
        "command that writes a script to build the engine elsewhere",
        "Run on the GPU machine, build there with the script of plan --script, or set "
        "compile.target to openvino to serve on this one",
    )
    findings = (*preview.effective.findings, finding)
    return replace(preview, effective=replace(preview.effective, findings=findings))


def refuse_errors(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuses what cannot be built or served.

    Raises:
        RecipeError: ``compile.gpu`` is not in the table.
        UnsupportedError: Naming the recipe's key, the reason and the remedy.
    """
    errors = [f for f in preview_engine(recipe, facts).effective.findings if f.severity == "error"]
    if errors:
        first, *others = errors
        also = "".join(f". Also: {error.what} ({recipe.place(error.key)})" for error in others)
        raise UnsupportedError(
            first.what, where=recipe.place(first.key), why=first.why + also, fix=first.remedy
        )


def _check_memory(
    memory: MemoryPlan, checkpoint: CheckpointFacts, config: BuildConfig, gpu: Gpu | None
) -> Iterator[Finding]:
    if gpu is None or memory.sequences is None:
        return
    key, room = "compile.gpu", f"{gpu.name} has {gpu.memory_gib:.1f} GiB"
    needed = memory.weights + memory.kv_bytes_per_sequence
    if needed > gpu.memory:
        # Estimates decide nothing here: both summands are exact.
        yield Finding(
            "error",
            key,
            f"the engine does not fit {gpu.name}",
            f"Weights of {memory.weights / GIB:.1f} GiB and one sequence of max_seq_len, "
            f"{memory.kv_bytes_per_sequence / GIB:.1f} GiB, are for each of "
            f"{checkpoint.world_size} rank(s); {room}",
            "Raise compile.tensor_parallel, choose a smaller format, or lower compile.max_seq_len",
        )
    elif memory.sequences == 0:
        yield Finding(
            "warning",
            key,
            "the KV cache may not hold one sequence of max_seq_len, and then Triton refuses the "
            "engine",
            f"Beside weights and an estimate of activations {room} for "
            f"{memory.kv_tokens} tokens, max_seq_len is {config.max_seq_len}",
            "Lower compile.max_num_tokens and compile.max_batch_size, or raise "
            "compile.tensor_parallel",
        )
    elif memory.sequences < config.max_batch_size:
        yield Finding(
            "note",
            "compile.max_batch_size",
            f"{memory.sequences} of {config.max_batch_size} sequences fit at full length",
            f"The KV cache holds about {memory.kv_tokens} tokens; shorter sequences share it",
            "No action needed unless most sequences are that long",
        )

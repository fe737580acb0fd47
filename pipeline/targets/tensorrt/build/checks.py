"""Whether this machine and its GPU can build an engine, and whether they built the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.checkpoint import CheckpointConfig
from pipeline.errors import CompileError, UnsupportedError
from pipeline.formats import NO_QUANT
from pipeline.recipe.schema import Recipe
from pipeline.targets.tensorrt.build.command import build_elsewhere
from pipeline.targets.tensorrt.build.engine import world_size
from pipeline.targets.tensorrt.environment import Machine
from pipeline.targets.tensorrt.gpus import Gpu, find_gpu
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts
from pipeline.targets.tensorrt.plan.preview import Effective, predict_build
from pipeline.targets.tensorrt.toolchain import TENSORRT_LLM

# What a model's shape is made of. PretrainedConfig.to_dict of upstream's modeling_utils.py copies
# its attributes, so the engine's config.json has them under the checkpoint's names.
SHAPE = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
    "vocab_size",
)


def check_machine(machine: Machine, ranks: int, recipe: Recipe) -> None:
    """Refuses a machine without the GPUs; there is no building without them.

    Raises:
        UnsupportedError: There is none, or models are mixed; says how to build elsewhere.
    """
    if not machine.gpus:
        raise UnsupportedError(
            "an engine can only be built on a machine with the GPU it is for",
            why=f"There is none to use here: {machine.problem}",
            fix=build_elsewhere(recipe),
        )
    if len(machine.models) > 1:
        names = ", ".join(f"{name} (SM {sm})" for name, sm in machine.models)
        raise UnsupportedError(
            f"the visible GPUs are of different models: {names}",
            why=f"All {ranks} rank(s) must be built on the model that serves them",
            fix="Choose GPUs of one model with CUDA_VISIBLE_DEVICES",
        )


def predict_here(
    recipe: Recipe,
    wanted: BuildConfig,
    pretrained: CheckpointConfig,
    gpu: Gpu,
    has: str = "this machine has",
) -> Effective:
    """Predicts the build once more, from the checkpoint that was written and for a real GPU.

    Args:
        recipe: The recipe.
        wanted: What it asks for.
        pretrained: The checkpoint's configuration.
        gpu: The GPU that the engine is built on.
        has: What has this GPU, for the error.

    Raises:
        UnsupportedError: This GPU cannot run the checkpoint, or is not the one of the recipe.
    """
    if recipe.compile.gpu is not None:
        place = recipe.place("compile.gpu")
        named = find_gpu(recipe.compile.gpu, place)
        if named.sm != gpu.sm:
            raise UnsupportedError(
                f"the recipe is for {named.name} (SM {named.sm}), {has} {gpu.name} (SM {gpu.sm})",
                where=place,
                why="An engine runs only on the GPU model it was built on",
                fix="Build on that GPU, or change compile.gpu",
            )
    prediction = predict_build(wanted, CheckpointFacts.from_checkpoint(pretrained), gpu)
    error = next((found for found in prediction.findings if found.severity == "error"), None)
    if error:
        raise UnsupportedError(
            error.what, where=recipe.place(error.key), why=error.why, fix=error.remedy
        )
    return prediction


def other_model(recipe: Recipe, machine: Machine) -> str | None:
    """Says so where the recipe names another GPU of the same compute capability.

    It is no error: the engine is built for the GPU that is here, and its cache key says so.

    Args:
        recipe: The recipe.
        machine: Has a GPU.

    Returns:
        A remark; None where the recipe names no GPU or the one that is here.
    """
    if recipe.compile.gpu is None:
        return None
    named, here = find_gpu(recipe.compile.gpu, recipe.place("compile.gpu")), machine.gpus[0].model
    if named.is_like(here):
        return None
    return (
        f"the recipe is for {named.name} ({named.memory_gib:.1f} GiB), this machine has "
        f"{here.name} ({here.memory_gib:.1f} GiB): the engine is for the latter only, the memory "
        "plan was for the former"
    )


def check_same_model(
    config: dict[str, Any], pretrained: CheckpointConfig, tensorrt_llm: str, output: Path
) -> None:
    """Refuses an engine whose configuration is not that of the checkpoint.

    Raises:
        CompileError: Lists what differs.
    """
    written = config["pretrained_config"]
    quantization, mapping = (written.get(key) or {} for key in ("quantization", "mapping"))
    quantized, facts = pretrained.quantization, pretrained.facts
    pairs = {
        "version": (config["version"], tensorrt_llm),
        "world_size": (world_size(config), pretrained.world_size),
        # A missing size is 1, as TensorRT-LLM's Mapping has it.
        "tp_size": (mapping.get("tp_size", 1), pretrained.tp_size),
        "pp_size": (mapping.get("pp_size", 1), pretrained.pp_size),
        "quant_algo": (quantization.get("quant_algo") or NO_QUANT, quantized.algo),
        "kv_cache_quant_algo": (quantization.get("kv_cache_quant_algo"), quantized.kv_cache_algo),
        "dtype": (written.get("dtype"), pretrained.dtype),
        "architecture": (written.get("architecture"), facts.architecture),
        **{name: (written.get(name), getattr(facts, name)) for name in SHAPE},
    }
    if quantized.group_size is not None:
        pairs["group_size"] = (quantization.get("group_size"), quantized.group_size)
    wrong = [
        f"{key} is {found}, not {right}" for key, (found, right) in pairs.items() if found != right
    ]
    if wrong:
        raise CompileError(
            f"the engine is not of this checkpoint: {'; '.join(wrong)}",
            where=str(output / "config.json"),
            fix=f"Build with TensorRT-LLM {TENSORRT_LLM}; build.log shows what was loaded",
        )

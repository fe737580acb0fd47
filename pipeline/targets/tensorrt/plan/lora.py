"""Whether the recipe's LoRA adapters fit the model and the engine that is built for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.recipe.schema import Recipe
from pipeline.recipe.tensorrt import LoraSection
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.gpus import GIB
from pipeline.targets.tensorrt.lora.adapter import Adapter, AdapterError, misfits, read_adapter
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts
from pipeline.targets.tensorrt.plan.memory import MemoryPlan

ENGINE, ADAPTERS = "compile.tensorrt.lora", "serve.lora_adapters"
DTYPE = "float16"


def check_lora(
    recipe: Recipe, checkpoint: CheckpointFacts, memory: MemoryPlan
) -> Iterator[Finding]:
    """Finds what keeps the engine from being built with LoRA, or from loading an adapter.

    Args:
        recipe: Names the adapters and what the engine is built for.
        checkpoint: What is compiled.
        memory: Its memory plan.
    """
    lora, folders = recipe.compile.tensorrt.lora, recipe.serve.lora_adapters
    if lora is None:
        if folders:
            yield Finding(
                "error",
                ADAPTERS,
                "the engine is built without LoRA",
                "Only an engine with the LoRA plugin reads adapters",
                f"Add {ENGINE} with the adapters' target_modules and max_rank",
            )
        return
    yield from _check_engine(recipe, checkpoint, memory)
    for folder in folders:
        try:
            adapter = read_adapter(Path(folder))
        except AdapterError as error:
            yield _refused(folder, str(error))
            continue
        yield from _check_adapter(folder, adapter, lora, checkpoint)


def _check_engine(
    recipe: Recipe, checkpoint: CheckpointFacts, memory: MemoryPlan
) -> Iterator[Finding]:
    if not recipe.serve.lora_adapters:
        yield Finding(
            "warning",
            ENGINE,
            "the engine is built for adapters, and there are none",
            f"{ADAPTERS} is empty; clients would have to send the weights themselves",
            f"Name adapters in {ADAPTERS}, or leave {ENGINE} out",
        )
    if checkpoint.format.calibration == "smoothquant":
        yield Finding(
            "error",
            ENGINE,
            f"LoRA does not go with {checkpoint.quant_algo}",
            "trtllm-build refuses it (quantization/layers.py)",
            f"Leave {ENGINE} out, or choose another quantize.format",
        )
    if checkpoint.dtype != DTYPE:
        yield Finding(
            "error",
            ENGINE,
            f"LoRA needs a {DTYPE} model, and this one is {checkpoint.dtype}",
            "TensorRT-LLM takes adapters in the model's own dtype only "
            f"(runtime/loraUtils.cpp), and the wire contract has them in {DTYPE}",
            f"Set {recipe.dtype_key} to {DTYPE}, or leave {ENGINE} out",
        )
    if memory.gpu_memory is not None and memory.lora_cache < memory.lora_adapter:
        yield Finding(
            "error",
            f"{ENGINE}.max_rank",
            "the engine would not load: its cache does not hold one adapter of the largest rank",
            f"An adapter of rank {_section(recipe).max_rank} takes "
            f"{memory.lora_adapter / GIB:.2f} GiB, and the cache is 5 % of the free memory, "
            f"{memory.lora_cache / GIB:.2f} GiB",
            f"Lower {ENGINE}.max_rank, or name fewer target_modules",
        )


def _section(recipe: Recipe) -> LoraSection:
    assert recipe.compile.tensorrt.lora is not None
    return recipe.compile.tensorrt.lora


def _check_adapter(
    folder: str, adapter: Adapter, lora: LoraSection, checkpoint: CheckpointFacts
) -> Iterator[Finding]:
    if adapter.rank > lora.max_rank:
        yield Finding(
            "error",
            f"{ENGINE}.max_rank",
            f"the adapter {folder} has rank {adapter.rank}, and the engine takes {lora.max_rank}",
            "The executor refuses a larger rank (runtime/loraUtils.cpp)",
            f"Set {ENGINE}.max_rank to at least {adapter.rank}",
        )
    if missing := sorted(adapter.modules - set(lora.target_modules)):
        yield Finding(
            "error",
            f"{ENGINE}.target_modules",
            f"the adapter {folder} changes {', '.join(missing)}",
            "The engine is built for the modules of target_modules only",
            f"Add them to {ENGINE}.target_modules",
        )
    for problem in misfits(adapter, checkpoint.model):
        yield _refused(folder, problem)


def _refused(folder: str, why: str) -> Finding:
    return Finding(
        "error",
        ADAPTERS,
        f"the adapter {folder} cannot be served",
        why[:1].upper() + why[1:],
        "Name an adapter that was trained on this model and saved by PEFT, or merge it into the "
        "model",
    )

"""The LoRA adapters of a repository: files, parameters, and what the engine must have for them.

The backend loads every adapter when it starts, from the folder ``lora_prefetch_dir``, where each is
in a folder that is called like its task id (``PeftCacheManager::prefetchLoraWeights``). A request
then needs the id alone. An adapter leaves the cache when there is no room for all, and is not
loaded again; so there is room for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.errors import UnsupportedError
from pipeline.recipe.schema import Recipe
from pipeline.targets.tensorrt.lora.adapter import AdapterError
from pipeline.targets.tensorrt.plan.memory import LORA_GPU_FRACTION
from pipeline.targets.tensorrt.serve.engine_facts import TrtEngine
from pipeline.triton.parameters import ENGINE_FILES, MOUNT

FOLDER = "lora"
LEAST_HOST_CACHE = 1 << 30
"""The backend's own default, in bytes."""
# A margin: an adapter that was put out for want of room would not come back.
ROOM = 2


def task_ids(recipe: Recipe) -> range:
    """Gives the recipe's adapters the ids that requests name them by, from 1 in their order."""
    return range(1, len(recipe.serve.lora_adapters) + 1)


def adapter_files(recipe: Recipe) -> dict[str, Callable[[Path], bytes]]:
    """Returns the two files of each adapter by their place beside the engine's folder.

    A file is a function that makes its bytes, as ``EngineModel.files`` has them; it raises
    UnsupportedError for an adapter that cannot be served.
    """
    if not recipe.serve.lora_adapters:
        return {}
    from pipeline.targets.tensorrt.lora import convert

    where = recipe.place("serve.lora_adapters")
    made = (
        (convert.WEIGHTS_FILE, convert.weights_file),
        (convert.CONFIG_FILE, convert.config_file),
    )
    return {
        f"{FOLDER}/{id_}/{name}": partial(_converted, make, Path(folder), where)
        for id_, folder in zip(task_ids(recipe), recipe.serve.lora_adapters, strict=True)
        for name, make in made
    }


def adapter_parameters(recipe: Recipe, engine: TrtEngine) -> dict[str, str]:
    """Returns the backend's parameters about LoRA; its defaults where the engine has none.

    Args:
        recipe: Names the adapters.
        engine: The largest rank and the size of an adapter in the cache.
    """
    rank = engine.max_lora_rank or 64
    room = len(recipe.serve.lora_adapters) * engine.adapter_bytes * ROOM
    parameters = {
        # A page of the cache then holds a whole adapter of the largest rank.
        "lora_cache_optimal_adapter_size": str(rank if engine.lora_modules else 8),
        "lora_cache_max_adapter_size": str(rank),
        "lora_cache_gpu_memory_fraction": str(LORA_GPU_FRACTION),
        "lora_cache_host_memory_bytes": str(max(LEAST_HOST_CACHE, room)),
    }
    if recipe.serve.lora_adapters:
        parameters["lora_prefetch_dir"] = str(MOUNT / ENGINE_FILES / FOLDER)
    return parameters


def adapter_problems(recipe: Recipe, engine: TrtEngine) -> Iterator[str]:
    """Names what the engine lacks for the recipe's adapters."""
    lora = recipe.compile.tensorrt.lora
    wanted = lora.target_modules if lora else []
    if sorted(wanted) != sorted(engine.lora_modules):
        built = ", ".join(engine.lora_modules) or "no adapters"
        yield f"adapters may change {', '.join(wanted) or 'nothing'}, and it was built for {built}"
    elif lora and lora.max_rank != engine.max_lora_rank:
        yield f"adapters have a rank of up to {lora.max_rank}, and it has {engine.max_lora_rank}"


def missing_files(folder: Path) -> Iterator[str]:
    """Names what the backend would not find of the adapters, or leaves out.

    Args:
        folder: That of the engine model's version, in the repository.
    """
    tasks = [path for path in sorted((folder / FOLDER).glob("*")) if path.is_dir()]
    if not tasks:
        yield f"lora_prefetch_dir: {FOLDER} has no adapter"
    for task in tasks:
        if not task.name.isdecimal():
            yield f"lora_prefetch_dir: {task.name} is not a task id, so the backend leaves it out"
        for name in ("model.lora_weights.npy", "model.lora_config.npy"):
            if not (task / name).is_file():
                yield f"lora_prefetch_dir: {FOLDER}/{task.name}/{name} is missing"


def _converted(
    make: Callable[[Path], bytes], folder: Path, where: str, _tokenizer_dir: Path
) -> bytes:
    try:
        return make(folder)
    except AdapterError as error:
        raise UnsupportedError(
            f"the adapter {folder} cannot be served",
            where=where,
            why=str(error),
            fix="Name an adapter that was trained on this model and saved by PEFT",
        ) from error

"""Time and peak memory of quantizing models of 1B and 7B parameters, with random weights."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.gpu_check.task import Case, Cases, Task, case, recipe

FORMATS = ("int8_sq", "int4_awq")
TOKENS = (8, 512)  # samples, and tokens of each
# Weights, and half as much again for what calibration adds.
NEEDED = 1.5


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, as its config.json names them, and its parameters."""

    sizes: Mapping[str, int]

    @property
    def parameters(self) -> int:
        """Elements of all weights; norms are left out."""
        of = self.sizes
        head = of["hidden_size"] // of["num_attention_heads"]
        attention = of["hidden_size"] * head
        attention *= 2 * of["num_attention_heads"] + 2 * of["num_key_value_heads"]
        mlp = 3 * of["hidden_size"] * of["intermediate_size"]
        embeddings = 2 * of["vocab_size"] * of["hidden_size"]
        return of["num_hidden_layers"] * (attention + mlp) + embeddings


def _shape(*numbers: int) -> Shape:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return Shape(dict(zip((*names, "num_key_value_heads", "vocab_size"), numbers, strict=True)))


# Llama-3.2-1B and Llama-2-7B.
SHAPES = {
    "1B": _shape(2048, 8192, 16, 32, 8, 128256),
    "7B": _shape(4096, 11008, 32, 32, 32, 32000),
}


def cases(task: Task) -> Cases:
    """The smaller shape first, in both formats."""
    for name, shape in SHAPES.items():
        for wanted in filter(task.wants, FORMATS):
            title = f"{name} {wanted}"
            if obstacle := why_not(shape, task):
                yield case(title, "skipped", reason=obstacle)
            else:
                yield measure(title, shape, wanted, task)


def why_not(shape: Shape, task: Task) -> str | None:
    """What keeps a shape from being measured here."""
    if task.device != "cuda":
        return "needs a CUDA device"
    import torch

    needed, (free, _) = int(shape.parameters * 2 * NEEDED), torch.cuda.mem_get_info()
    if needed > free:
        return f"needs {needed >> 20} MiB of GPU memory, {free >> 20} MiB are free"
    disk = shutil.disk_usage(task.work).free
    if shape.parameters * 2 > disk:
        return f"needs {shape.parameters * 2 >> 20} MiB on the disk, {disk >> 20} MiB are free"
    return None


def measure(
    title: str, shape: Shape, wanted: str, task: Task, tokens: tuple[int, int] = TOKENS
) -> Case:
    """Calibrates and exports one model of random weights."""
    import torch

    from pipeline.models.facts import ModelFacts
    from pipeline.progress import Silent
    from pipeline.quantize.calibrate import calibrate
    from pipeline.quantize.export import export
    from pipeline.source.runtime import offline_and_quiet

    asked = recipe(wanted, task.device, samples=tokens[0], length=tokens[1])
    vocabulary = shape.sizes["vocab_size"]
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(vocabulary, tokens, generator=generator).tolist()
    on_cuda = task.device == "cuda"
    output = task.work / title.replace(" ", "-")
    with offline_and_quiet(Silent()):
        model, config = random_model(shape, task.device)
        if on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        calibrate(model, asked.quantize, [[row] for row in ids], Silent())
        calibrated = time.monotonic()
        output.mkdir(parents=True)
        export(model, ModelFacts.from_config(config, title), asked, output)
        exported = time.monotonic()
    written = sum(path.stat().st_size for path in output.iterdir())
    shutil.rmtree(output)
    peak = torch.cuda.max_memory_allocated() if on_cuda else None
    del model
    if on_cuda:
        torch.cuda.empty_cache()
    return case(
        title,
        "measured",
        parameters=shape.parameters,
        tokens=tokens[0] * tokens[1],
        seconds_calibrate=round(calibrated - started, 2),
        seconds_export=round(exported - calibrated, 2),
        peak_gpu_bytes=peak,
        # Of the process: no case can show less than the ones before it.
        peak_host_bytes_so_far=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        checkpoint_bytes=written,
    )


def random_model(shape: Shape, device: str) -> tuple[Any, dict[str, Any]]:
    """A float16 Llama made on the device itself, and its config.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape.sizes, max_position_embeddings=4096)
    config.architectures = ["LlamaForCausalLM"]
    torch.manual_seed(5)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    return model, config.to_dict()

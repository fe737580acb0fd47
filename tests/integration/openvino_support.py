"""Engines of the CPU target, run as plain models or through OpenVINO GenAI's batching pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from model_repo.tensorrt_llm.exactness import exact_properties
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.targets import get_target


def compile_engine(checkpoint: Path, output: Path, **openvino: Any) -> Path:
    """Compiles a checkpoint with the given execution options."""
    positions = json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"]
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "model": {"source": "test"},
            "quantize": {"format": "float16"},
            "compile": {"max_input_len": 32, "max_seq_len": positions, "openvino": openvino},
        }
    )
    output.mkdir(parents=True)
    get_target("openvino").compile(checkpoint, recipe, output, Silent())
    return output


@cache
def core() -> Any:
    """One OpenVINO core for all tests."""
    import openvino

    return openvino.Core()


def runtime(engine: Path) -> dict[str, str]:
    """The properties that the engine is opened with on this processor."""
    config = json.loads((engine / "config.json").read_text())
    properties: dict[str, str] = config["runtime"]
    if config["pretrained_config"]["quantization"]["quant_algo"] == "W8A8_SQ_PER_CHANNEL":
        properties |= processor()
    return properties


@cache
def processor() -> dict[str, str]:
    """The properties that this processor needs to multiply INT8 exactly."""
    import openvino

    return exact_properties(openvino)


def open_engine(engine: Path, **properties: str) -> Any:
    """The compiled model, in the engine's own properties unless told otherwise."""
    model = core().read_model(engine / "openvino_model.xml")
    return core().compile_model(model, "CPU", {**runtime(engine), **properties})


def logits(compiled: Any, ids: np.ndarray, prefill: int) -> np.ndarray:
    """Logits [batch, length, vocab_size]: ``prefill`` tokens at once, then one by one."""
    batch, length = ids.shape
    request = compiled.create_infer_request()
    parts = []
    spans = [(0, prefill), *((start, start + 1) for start in range(prefill, length))]
    for start, end in spans:
        inputs = {
            "input_ids": ids[:, start:end].astype(np.int64),
            "attention_mask": np.ones((batch, end), np.int64),
            "position_ids": np.tile(np.arange(start, end, dtype=np.int64), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        request.infer(inputs)
        parts.append(request.get_tensor("logits").data.copy())
    return np.concatenate(parts, axis=1)


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    """rms(found - expected) / rms(expected)."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def top1_agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of positions with the same most likely token."""
    return float((found.argmax(-1) == expected.argmax(-1)).mean())


def executed_nodes(compiled: Any) -> list[dict[str, Any]]:
    """What the CPU plugin runs: ``name``, ``type``, ``precision``, ``kernel`` and ``inputs``."""
    nodes = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        nodes.append(
            {
                "name": node.get_friendly_name(),
                "type": info["layerType"].astype(str),
                "precision": info["runtimePrecision"].astype(str),
                "kernel": info["primitiveType"].astype(str),
                "inputs": [port.get_element_type().get_type_name() for port in node.inputs()],
            }
        )
    return nodes


def greedy(
    engine: Path, prompts: Sequence[Sequence[int]], tokens: int, folder: Path, **properties: str
) -> list[list[int]]:
    """Greedy continuations of all prompts together, from OpenVINO GenAI's batching pipeline.

    Args:
        engine: An engine directory.
        prompts: Token ids.
        tokens: Tokens generated for each; no token ends a sequence.
        folder: An empty directory, which stands for the tokenizer that raw ids do not need.
    """
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    # Small enough that the longer prompts are cut over several steps.
    scheduler.max_num_batched_tokens = 32
    scheduler.num_kv_blocks = 64
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        engine,
        openvino_genai.Tokenizer(folder),
        scheduler,
        "CPU",
        **{**runtime(engine), **properties},
    )
    handles = []
    for number, prompt in enumerate(prompts):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        # The configuration is refused without an id, though none of them ends a sequence.
        config.set_eos_token_id(0)
        config.ignore_eos = True
        ids = openvino.Tensor(np.asarray(prompt, np.int64).reshape(1, -1))
        handles.append(pipeline.add_request(number, ids, config))
    found: list[list[int]] = [[] for _ in prompts]
    while pipeline.has_non_finished_requests():
        pipeline.step()
        for number, handle in enumerate(handles):
            while handle.can_read():
                for output in handle.read().values():
                    found[number] += output.generated_ids
    return found

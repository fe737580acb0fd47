"""A real engine of the demo model, a plain way to run it, and a listener for the engine loop."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from safetensors.numpy import load_file

from model_repo.tensorrt_llm.engine import Engine
from model_repo.tensorrt_llm.engine_loop import EngineLoop
from model_repo.tensorrt_llm.generation import Generation
from model_repo.tensorrt_llm.request import GenerationRequest, RequestError, Sampling
from model_repo.tensorrt_llm.settings import EngineSettings
from pipeline.checkpoint import Layer, Linear, Weights
from pipeline.models.facts import ModelFacts
from pipeline.targets.openvino.graph import build_model

PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
BUILD = {
    "max_batch_size": 32,
    "max_input_len": 384,
    "max_seq_len": 512,
    "max_num_tokens": 2048,
    "max_beam_width": 1,
    "tokens_per_block": 32,
    "kv_cache_type": "PAGED",
}


def write_engine(model: Path, output: Path) -> Path:
    """An unquantized engine, straight from a Hugging Face directory."""
    facts = ModelFacts.from_directory(model)
    tensors = {
        name: array.astype(np.float32)
        for name, array in load_file(model / "model.safetensors").items()
    }

    def linear(name: str, *parts: str) -> Linear:
        return Linear(
            name, "NO_QUANT", np.concatenate([tensors[f"{part}.weight"] for part in parts])
        )

    def layer(index: int) -> Layer:
        here, there = f"transformer.layers.{index}", f"model.layers.{index}"
        attention = [f"{there}.self_attn.{name}_proj" for name in "qkv"]
        return Layer(
            input_layernorm=tensors[f"{there}.input_layernorm.weight"],
            qkv=linear(f"{here}.attention.qkv", *attention),
            dense=linear(f"{here}.attention.dense", f"{there}.self_attn.o_proj"),
            post_layernorm=tensors[f"{there}.post_attention_layernorm.weight"],
            fc=linear(f"{here}.mlp.fc", f"{there}.mlp.gate_proj"),
            gate=linear(f"{here}.mlp.gate", f"{there}.mlp.up_proj"),
            proj=linear(f"{here}.mlp.proj", f"{there}.mlp.down_proj"),
        )

    head = "model.embed_tokens" if facts.tie_word_embeddings else "lm_head"
    weights = Weights(
        vocab_embedding=tensors["model.embed_tokens.weight"],
        layers=tuple(layer(index) for index in range(facts.num_hidden_layers)),
        ln_f=tensors["model.norm.weight"],
        lm_head=linear("lm_head", head),
    )
    ov.save_model(
        build_model(weights, facts), output / "openvino_model.xml", compress_to_fp16=False
    )
    config = {
        "target": "openvino",
        "pretrained_config": {
            "vocab_size": facts.vocab_size,
            "num_hidden_layers": facts.num_hidden_layers,
            "num_key_value_heads": facts.num_key_value_heads,
            "head_size": facts.head_size,
        },
        "build_config": BUILD,
        "runtime": PROPERTIES,
    }
    (output / "config.json").write_text(json.dumps(config))
    return output


def settings(engine_dir: Path, **changes: Any) -> EngineSettings:
    vocab_size = json.loads((engine_dir / "config.json").read_text())["pretrained_config"][
        "vocab_size"
    ]
    return EngineSettings(
        **{
            "engine_dir": engine_dir,
            "vocab_size": vocab_size,
            "max_batch_size": 32,
            "max_input_len": 384,
            "max_seq_len": 512,
            "num_kv_blocks": 512,
            "max_num_batched_tokens": 256,
            "properties": PROPERTIES,
            **changes,
        }
    )


class Plain:
    """What the engine generates for one prompt with nothing else running and nothing between."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[int, ...], list[int]] = {}
        self._ids = itertools.count()

    def __call__(self, prompt: list[int], tokens: int) -> list[int]:
        known = self._known.get(tuple(prompt), [])
        if len(known) < tokens:
            known = self._known[tuple(prompt)] = self._generate(prompt, tokens)
        return known[:tokens]

    def _generate(self, prompt: list[int], tokens: int) -> list[int]:
        pipeline, config = self._engine.pipeline, self._engine.genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.set_eos_token_id(0)
        config.ignore_eos = True
        ids = ov.Tensor(np.array([prompt], np.int64))
        handle = pipeline.add_request(next(self._ids), ids, config)
        generated: list[int] = []
        while pipeline.has_non_finished_requests():
            pipeline.step()
            while handle.can_read():
                for output in handle.read().values():
                    generated += output.generated_ids
        return generated


class Listener:
    """Keeps what one request generates; ``log`` notes which request got tokens, in order."""

    def __init__(self, name: int = 0, log: list[int] | None = None) -> None:
        self.ids: list[int] = []
        self.reused_blocks = -1
        self.log_probs: list[float] = []
        self.error: RequestError | None = None
        self._name, self._log = name, log
        self._first, self._done = threading.Event(), threading.Event()

    def scheduled(self, reused_blocks: int) -> None:
        self.reused_blocks = reused_blocks

    def prompt_scored(self, log_probs: list[float]) -> None:
        self.prompt_log_probs = log_probs

    def tokens(self, ids: list[int], log_probs: list[float], *, last: bool) -> None:
        assert not self._done.is_set(), "tokens after the end"
        self.ids += ids
        self.log_probs += log_probs
        if self._log is not None and ids:
            self._log.append(self._name)
        self._first.set()
        if last:
            self._done.set()

    def fail(self, error: RequestError) -> None:
        assert not self._done.is_set(), "an error after the end"
        self.error = error
        self._first.set()
        self._done.set()

    def wait_first(self) -> None:
        assert self._first.wait(60), "no token came"

    def result(self) -> list[int]:
        assert self._done.wait(60), f"not finished; {len(self.ids)} tokens so far"
        assert self.error is None, self.error
        return self.ids

    def failure(self) -> str:
        assert self._done.wait(60), "not finished"
        assert self.error is not None, "an answer instead of an error"
        return str(self.error)


class Stubborn:
    """A pipeline that goes wrong after some steps."""

    def __init__(self, pipeline: Any, steps: int) -> None:
        self._pipeline, self._steps = pipeline, steps

    def step(self) -> None:
        if self._steps == 0:
            raise RuntimeError("out of order")
        self._steps -= 1
        self._pipeline.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


class Front:
    """An engine loop with short calls for tests."""

    def __init__(
        self, engine: Engine, limits: EngineSettings, pipeline: Any = None, **options: Any
    ) -> None:
        self.engine = engine
        self.broken: list[Exception] = []
        self.loop = EngineLoop(
            pipeline or engine.pipeline,
            engine.genai,
            engine.tensor,
            limits,
            textless=engine.textless,
            broken=self.broken.append,
            **options,
        )
        self.loop.start()

    def submit(
        self,
        prompt: list[int],
        tokens: int,
        *,
        sampling: Sampling | None = None,
        listener: Listener | None = None,
        **request: Any,
    ) -> tuple[Generation, Listener]:
        made = GenerationRequest(
            np.array(prompt, np.int64), tokens, sampling or Sampling(), **request
        )
        listener = listener or Listener()
        return self.loop.submit(made, listener), listener

    def run(self, prompt: list[int], tokens: int, **request: Any) -> list[int]:
        return self.submit(prompt, tokens, **request)[1].result()

    def idle(self) -> None:
        """Waits until the engine holds nothing, and checks that every block was given back."""
        deadline = time.monotonic() + 60
        capacity, limits = self.loop._capacity, self.loop._settings
        while capacity.free_blocks != limits.num_kv_blocks:
            assert time.monotonic() < deadline, "blocks were not given back"
            time.sleep(0.002)
        assert not self.engine.pipeline.has_non_finished_requests()


@contextmanager
def front(engine_dir: Path, **changes: Any) -> Iterator[Front]:
    limits = settings(engine_dir, **changes)
    made = Front(Engine(limits), limits)
    yield made
    made.loop.close()

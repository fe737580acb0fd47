"""``LLM``: batches in flight, one token of each request a step."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .outputs import Logprob, RequestError, RequestOutput
from .sampling_params import SamplingParams
from .weights import open_folder

# Of TorchLlmArgs.
ARGUMENTS = frozenset(
    (
        "model",
        "tokenizer",
        "tokenizer_mode",
        "skip_tokenizer_init",
        "trust_remote_code",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "dtype",
        "revision",
        "backend",
        "max_batch_size",
        "max_input_len",
        "max_seq_len",
        "max_beam_width",
        "max_num_tokens",
        "kv_cache_config",
        "enable_chunked_prefill",
        "guided_decoding_backend",
        "scheduler_config",
        "cuda_graph_config",
        "sampler_type",
        "enable_iter_perf_stats",
        "enable_iter_req_stats",
        "print_iter_log",
        "disable_overlap_scheduler",
        "speculative_config",
        "lora_config",
        "stream_interval",
    )
)
CACHE = frozenset(
    (
        "enable_block_reuse",
        "max_tokens",
        "max_attention_window",
        "free_gpu_memory_fraction",
        "host_cache_size",
        "dtype",
        "tokens_per_block",
        "event_buffer_max_size",
    )
)


@dataclass(eq=False)
class Running:
    """A request in the batch."""

    output: RequestOutput
    params: SamplingParams
    generator: torch.Generator
    ids: list[int]
    prompt: int
    cache: Any = None
    aborted: threading.Event = field(default_factory=threading.Event)


class LLM:
    """The LLM API on a CPU."""

    def __init__(self, model: str, tokenizer: Any = None, **arguments: Any) -> None:
        unknown = set(arguments) - ARGUMENTS
        cache = arguments.get("kv_cache_config") or {}
        unknown |= {f"kv_cache_config.{name}" for name in set(cache) - CACHE}
        if unknown:
            raise ValueError(f"Extra inputs are not permitted: {sorted(unknown)}")
        if arguments.get("backend") not in (None, "pytorch"):
            raise ValueError("Invalid backend")
        self.tokenizer = tokenizer
        if not arguments.get("skip_tokenizer_init"):
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        torch.set_num_threads(1)
        self._model = open_folder(Path(model))
        self._max_batch = arguments.get("max_batch_size") or 2048
        self._max_seq = arguments.get("max_seq_len") or 2048
        self._torch_sampler = arguments.get("sampler_type", "auto") != "TRTLLMSampler"
        self._block = cache.get("tokens_per_block", 32)
        self._blocks = (cache.get("max_tokens") or self._max_batch * self._max_seq) // self._block
        self._stats: queue.Queue[dict[str, Any]] | None = None
        if arguments.get("enable_iter_perf_stats"):
            self._stats = queue.Queue(1000)
        self._global = torch.Generator().manual_seed(42)
        self._numbers = itertools.count()
        self._waiting: queue.Queue[Running | None] = queue.Queue()
        self._running: list[Running] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def generate_async(
        self, inputs: Any, sampling_params: SamplingParams | None = None, streaming: bool = False
    ) -> RequestOutput:
        """Begins a request; to be called inside an event loop."""
        params = sampling_params or SamplingParams()
        if params.end_id is None and self.tokenizer is None:
            raise ValueError(
                "tokenizer is required to reset end_id if it is None, or you can explicitly "
                "specify the end_id for sampling_params"
            )
        if params.use_beam_search or params.bad or params.bad_token_ids:
            raise ValueError("not in this stand-in")
        if isinstance(inputs, str):
            inputs = self.tokenizer.encode(inputs)
        if not streaming:
            raise ValueError("this stand-in streams alone")
        seed = params.seed or 0
        generator = torch.Generator().manual_seed(seed)
        aborted = threading.Event()
        output = RequestOutput(next(self._numbers), list(inputs), aborted.set)
        request = Running(output, params, generator, list(inputs), len(inputs), aborted=aborted)
        self._waiting.put(request)
        return output

    async def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[dict[str, Any]]:
        """What each iteration was, as far as nobody took it yet; ends when none comes in time."""
        if self._stats is None:
            raise RuntimeError("enable_iter_perf_stats is not set")
        until = time.monotonic() + (timeout or 0)
        while time.monotonic() < until:
            try:
                yield self._stats.get_nowait()
            except queue.Empty:
                await asyncio.sleep(0.01)

    def shutdown(self) -> None:
        """Ends the executor."""
        self._waiting.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            while len(self._running) < self._max_batch:
                try:
                    request = self._waiting.get(block=not self._running)
                except queue.Empty:
                    break
                if request is None:
                    return
                self._running.append(request)
            for request in list(self._running):
                try:
                    done = self._step(request)
                except Exception as error:  # noqa: BLE001  one request's failure is its own
                    request.output.respond(RequestError(str(error)))
                    done = True
                if done:
                    self._running.remove(request)
            self._say()

    def _say(self) -> None:
        if self._stats is None:
            return
        used = sum(-(-len(request.ids) // self._block) for request in self._running)
        if self._stats.full():
            self._stats.get_nowait()
        self._stats.put_nowait(
            {
                "numActiveRequests": len(self._running),
                "numQueuedRequests": self._waiting.qsize(),
                "gpuMemUsage": 1 << 30,
                "pinnedMemUsage": 1 << 20,
                "kvCacheStats": {
                    "maxNumBlocks": self._blocks,
                    "usedNumBlocks": used,
                    "freeNumBlocks": self._blocks - used,
                    "tokensPerBlock": self._block,
                    "reusedBlocks": 0,
                    "missedBlocks": 0,
                },
                "inflightBatchingStats": {"numPausedRequests": 0},
            }
        )

    @torch.inference_mode()
    def _step(self, request: Running) -> bool:
        params, new = request.params, len(request.ids) - request.prompt
        if request.aborted.is_set():
            request.output.respond(([], [], "cancelled", None))
            return True
        if request.prompt >= self._max_seq:
            raise ValueError("Assertion failed: mMaxNewTokens > 0")
        given = request.ids if request.cache is None else request.ids[-1:]
        made = self._model(torch.tensor([given]), past_key_values=request.cache, use_cache=True)
        request.cache = made.past_key_values
        scores = made.logits[0, -1].float()
        chosen = self._choose(request, scores.clone(), new)
        likely = torch.log_softmax(scores, -1)
        top = int(likely.argmax())
        log_probs = {top: Logprob(float(likely[top]), 1)}
        rank = int((likely > likely[chosen]).sum()) + 1
        log_probs[chosen] = Logprob(float(likely[chosen]), rank)
        request.ids.append(chosen)
        reason, stop = None, None
        if chosen == params.end_id and not params.ignore_eos:
            reason = "stop"
        elif chosen in (params.stop_token_ids or ()):
            reason, stop = "stop", (chosen, params.include_stop_str_in_output)
        elif new + 1 >= params.max_tokens or len(request.ids) >= self._max_seq:
            reason = "length"
        response = ([chosen], [log_probs] if params.logprobs else [], reason, stop)
        request.output.respond(response)
        return reason is not None

    def _choose(self, request: Running, scores: torch.Tensor, new: int) -> int:
        params = request.params
        if (params.min_tokens or 0) > new and not params.ignore_eos:
            scores[params.end_id] = -torch.inf
        if not self._torch_sampler:
            self._penalize(request, scores)
        if params.greedy:
            return int(scores.argmax())
        scores /= params.temperature or 1.0
        if params.top_k:
            scores[scores < torch.topk(scores, params.top_k).values[-1]] = -torch.inf
        probabilities = torch.softmax(scores, -1)
        if params.top_p and params.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            beyond = ordered.cumsum(-1) - ordered >= params.top_p
            probabilities[order[beyond]] = 0
        generator = self._global if self._torch_sampler else request.generator
        return int(torch.multinomial(probabilities, 1, generator=generator))

    def _penalize(self, request: Running, scores: torch.Tensor) -> None:
        params = request.params
        counts = Counter(request.ids)
        seen = torch.tensor(list(counts))
        times = torch.tensor(list(counts.values()), dtype=torch.float32)
        factor = params.repetition_penalty or 1.0
        old = scores[seen]
        old = torch.where(old < 0, old * factor, old / factor)
        old -= (params.presence_penalty or 0.0) + times * (params.frequency_penalty or 0.0)
        scores[seen] = old

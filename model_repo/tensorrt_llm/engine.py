"""Opens the compiled engine with openvino_genai; the only module that imports it."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from .exactness import exact_properties
from .finiteness import NO_NUMBERS, simple_prompt
from .guide_tokenizer import guide_tokenizer
from .request import GenerationRequest, RequestError
from .sampling import generation_config
from .settings import TOKENS_PER_BLOCK, EngineSettings
from .vocabulary import token_texts

SHAPES_KEPT = 64
"""Step lengths for which the plugin keeps what it has made to compute them, 0.3 to 1.4 MB each. Its
own limit is 5000, which is none: every length up to that of a whole step comes sooner or later.
What one takes to make anew comes from oneDNN's own cache, so the limit costs no time that could be
measured (benchmarks/README.md)."""


class Engine:
    """An opened pipeline and what is needed to feed it.

    Args:
        settings: Where the engine is and how its scheduler is set.

    Attributes:
        saturates: Whether INT8 is multiplied in float32, because this processor's own INT8
            products would not be exact.
        textless: Ids without a text, which no guide allows; empty without guided decoding.

    Raises:
        RuntimeError: OpenVINO cannot load the engine.
        ValueError: Guided decoding cannot follow this model's tokens.
        MemoryError: The machine has less memory than the KV cache takes.
    """

    def __init__(self, settings: EngineSettings) -> None:
        import openvino
        import openvino_genai

        self.genai: Any = openvino_genai
        self._openvino = openvino
        exact = exact_properties(openvino) if settings.int8_products else {}
        self.saturates = bool(exact)
        kept = {"CPU_RUNTIME_CACHE_CAPACITY": str(SHAPES_KEPT)}
        properties = {**kept, **(settings.properties or {}), **exact}
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = settings.max_num_batched_tokens
        # One more of each than requests get, for a question of the loop's own (finiteness.py).
        scheduler.max_num_seqs = settings.max_batch_size + 1
        scheduler.num_kv_blocks = settings.engine_kv_blocks
        scheduler.dynamic_split_fuse = settings.dynamic_split_fuse
        scheduler.enable_prefix_caching = settings.enable_prefix_caching
        self.textless: frozenset[int] = frozenset()
        if settings.guided_decoding:
            tokenizer = self._guide_tokenizer(settings)
        else:
            # Text never reaches the engine; it accepts a tokenizer made from an empty directory.
            with tempfile.TemporaryDirectory() as empty:
                tokenizer = openvino_genai.Tokenizer(empty)
        try:
            self.pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
                settings.engine_dir, tokenizer, scheduler, "CPU", **properties
            )
        except RuntimeError as error:
            if "total_available_memory" not in str(error):
                raise
            size = "more bytes" if not settings.kv_block_bytes else f"{settings.kv_bytes:,} bytes"
            raise MemoryError(
                f"the KV cache of {settings.num_kv_blocks} blocks of {TOKENS_PER_BLOCK} tokens "
                f"takes {size}, more than this machine's memory: lower "
                "serve.max_tokens_in_paged_kv_cache (config.pbtxt: max_tokens_in_paged_kv_cache), "
                "compile.max_batch_size or compile.max_seq_len"
            ) from error

    def _guide_tokenizer(self, settings: EngineSettings) -> Any:
        if settings.tokenizer is None or not settings.end_ids:
            raise ValueError(
                "guided decoding needs the model's tokenizer and an id that ends its texts; set "
                "serve.guided_decoding to null (config.pbtxt: guided_decoding_backend)"
            )
        texts = token_texts(settings.tokenizer, settings.vocab_size, settings.end_ids)
        # An end id ends a guided text whether the request has it as its end_id or as a stop word.
        textless = frozenset(id_ for id_, text in enumerate(texts) if not text)
        self.textless = textless - frozenset(settings.end_ids)
        return guide_tokenizer(self.genai, texts, min(settings.end_ids))

    def tensor(self, ids: npt.NDArray[np.int64]) -> Any:
        """The engine's tensor of int64 [1, n] token ids."""
        return self._openvino.Tensor(ids)

    def warm_up(self, settings: EngineSettings) -> None:
        """Generates two tokens: the weights are repacked for the processor at the first inference.

        Raises:
            RequestError: The engine did not generate them, or not by numbers.
        """
        request = GenerationRequest(simple_prompt(settings), max_new_tokens=2, log_probs=True)
        config = generation_config(self.genai, request)
        # The loop counts its ids from 0; this one must differ from all of them.
        handle = self.pipeline.add_request(2**63, self.tensor(request.prompt[None]), config)
        generated = 0
        while self.pipeline.has_non_finished_requests():
            try:
                self.pipeline.step()
            except RuntimeError as error:
                if "log_sum_exp" in str(error):  # that of a score that is NaN
                    raise RequestError(NO_NUMBERS) from error
                raise
            while handle.can_read():
                generated += sum(len(out.generated_ids) for out in handle.read().values())
        if generated != request.max_new_tokens:
            raise RequestError(f"the engine generated {generated} of 2 tokens while warming up")

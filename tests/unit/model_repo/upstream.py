"""The shapes in which upstream's models send their outputs, from upstream's sources alone.

``tensorrt_llm``: ``fillTritonResponse`` in triton_backend/inflight_batcher_llm/src/
model_instance_state.cc of TensorRT-LLM 1.2. ``OUTPUT``: all_models/inflight_batcher_llm/
postprocessing/1/model.py, a flat array of one text for each sequence and beam. ``text_output``:
``OUTPUT`` unchanged (tensorrt_llm_bls/1/lib/triton_decoder.py, ``_get_response``); everything else
there is passed on as the engine sends it.
"""

from __future__ import annotations

import numpy as np

# None is any size. A response is about one sequence, so that the batch dimension is 1.
_ONE = (1, 1)
_SHAPES: dict[str, tuple[int | None, ...]] = {
    "OUTPUT": (None,),
    "text_output": (None,),
    "output_ids": (1, None, None),
    "sequence_length": (1, None),
    "cum_log_probs": (1, None),
    "output_log_probs": (1, None, None),
    "context_logits": (1, None, None),
    "generation_logits": (1, None, None, None),
    "batch_index": _ONE,
    "sequence_index": _ONE,
    "kv_cache_alloc_new_blocks": _ONE,
    "kv_cache_reused_blocks": _ONE,
    "kv_cache_alloc_total_blocks": _ONE,
    "arrival_time_ns": _ONE,
    "first_scheduled_time_ns": _ONE,
    "first_token_time_ns": _ONE,
    "last_token_time_ns": _ONE,
    "acceptance_rate": _ONE,
    "total_accepted_draft_tokens": _ONE,
    "total_draft_tokens": _ONE,
    "num_input_tokens": _ONE,
    "num_output_tokens": _ONE,
}


def assert_shape(name: str, array: np.ndarray) -> None:
    """Fails on an output that upstream's clients would not find in the place they look at."""
    if name in _SHAPES:
        shape = _SHAPES[name]
        fits = array.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        assert fits, f"{name} has the shape {list(array.shape)}, upstream's is {list(shape)}"


def text_of(outputs: dict[str, np.ndarray]) -> str:
    """The text as end_to_end_grpc_client.py takes it from a response."""
    text: str = outputs["text_output"][0].decode("utf-8")
    return text

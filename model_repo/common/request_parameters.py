"""Refuses request parameters that nothing reads.

Triton's generate endpoint turns every key of the JSON body that is not an input into a parameter
of the request, so a misspelt input would be ignored without a word. An ensemble passes them on to
its steps.
"""

from __future__ import annotations

import json
from typing import Any

# Triton's own; it leaves them among the parameters or takes them out, depending on the protocol.
_TRITONS = frozenset(
    (
        "binary_data_output",
        "id",
        "priority",
        "sequence_end",
        "sequence_id",
        "sequence_start",
        "timeout",
    )
)
_TRITONS_PREFIX = "triton_"

# What clients send that upstream's models never read. "Streaming" goes with the stop request, and
# in older clients with every request: inflight_batcher_llm_client.py and
# e2e_grpc_speculative_decoding_client.py of triton_backend/inflight_batcher_llm/client in
# TensorRT-LLM, llms.py of langchain-nvidia-trt, utils.py of llama-index-llms-nvidia-triton.
# Spelt like that only: "streaming" is a misspelt input.
_IGNORED = frozenset(("Streaming",))

# Inputs that upstream renamed: all_models/inflight_batcher_llm/ensemble/config.pbtxt of
# tensorrtllm_backend has the old names, the same file in TensorRT-LLM 1.2 the new ones.
_RENAMED = {
    "min_length": "min_tokens",
    "random_seed": "seed",
    "return_kv_cache_reuse_stats": "return_perf_metrics",
}


def unknown_parameters(request: Any) -> str | None:
    """Why a ``pb_utils.InferenceRequest`` is refused, or None if it is not.

    A former name is taken beside the new one, whose value is the one that counts, here as upstream:
    so do clients that are to work with any release. Alone it would change the answer in silence.
    """
    try:
        names = json.loads(request.parameters() or "{}")
    except UnicodeDecodeError:
        # Triton's HTTP takes any bytes between quotes.
        return "invalid parameters: the name or the value of one is not valid UTF-8"
    # preprocessing has its inputs' names in capitals.
    given = {tensor.name().lower() for tensor in request.inputs()}
    unknown = sorted(
        name
        for name in names
        if name not in _TRITONS | _IGNORED
        and not name.startswith(_TRITONS_PREFIX)
        and _RENAMED.get(name) not in given
    )
    reasons = [
        f"invalid parameter {name}: this input is called {_RENAMED[name]}"
        for name in unknown
        if name in _RENAMED
    ]
    if others := [name for name in unknown if name not in _RENAMED]:
        reasons.append(
            f"invalid parameter {', '.join(others)}: there is no such input; check its spelling"
        )
    return "; ".join(reasons) or None

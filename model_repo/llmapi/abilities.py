"""What the LLM API's engine cannot do, by the inputs of ``tensorrt_llm`` that ask for it."""

from __future__ import annotations

ENGINE = "this server's engine, TensorRT-LLM's PyTorch backend,"
"""What refusals call it."""

_NOT_HERE = "the front of this repository does not hand it on; serve the tensorrt target"
WHY = {
    "LoRA": f"the LLM API wants an adapter's folder with the request, and {_NOT_HERE}, or merge "
    "the adapter into the model",
    "draft tokens": "the LLM API drafts by itself (speculative_config of model.yaml); leave it out",
    "lookahead decoding": "it is a part of TensorRT engines, and it would not change the text; "
    "leave it out, or serve the tensorrt target",
    "embedding bias": _NOT_HERE,
}

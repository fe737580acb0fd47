"""What the CPU engine cannot do, by the inputs of ``tensorrt_llm`` that ask for it."""

from __future__ import annotations

ENGINE = "the CPU engine"
"""What refusals call it."""

# Each of them was tried with openvino_genai 2026.4 (docs/features.md).
WHY = {
    "LoRA": "OpenVINO GenAI has one set of adapters for all its requests and ignores those of a "
    "single one; merge the adapter into the model, or serve the tensorrt target",
    "draft tokens": "OpenVINO GenAI takes none from a client, and its own draft models answer "
    "sampled requests wrongly; leave it out",
    "lookahead decoding": "OpenVINO GenAI does not do it, and it would not change the text; leave "
    "it out, or serve the tensorrt target",
}

"""vLLM: a checkpoint as a Hugging Face folder, and what serves it beside it.

Importing this package is cheap; NumPy is imported when something is compiled, and vLLM never: it
lives in an environment of its own.
"""

from pipeline.targets.vllm.target import VllmTarget

__all__ = ["VllmTarget"]

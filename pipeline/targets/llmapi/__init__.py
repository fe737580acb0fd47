"""NVIDIA's way out of TensorRT engines: TensorRT-LLM's LLM API (PyTorch backend) behind Triton.

Importing this package is cheap; NumPy and safetensors are imported when a folder is written.
"""

from pipeline.targets.llmapi.target import LlmApiTarget

__all__ = ["LlmApiTarget"]

"""From a Hugging Face checkpoint to a quantized, compiled and tested Triton model repository."""

__version__ = "0.1.0"

"""The names of ``tensorrt_llm`` that its LLM API consists of."""

from .llm import LLM
from .outputs import CompletionOutput, RequestError, RequestOutput
from .sampling_params import SamplingParams

__version__ = "1.2.1"
__all__ = ["LLM", "CompletionOutput", "RequestError", "RequestOutput", "SamplingParams"]

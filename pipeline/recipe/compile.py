"""``compile`` of the recipe: the engine's sizes, which every target reads.

Names are those of TensorRT-LLM's ``BuildConfig`` where they exist. The options of a target are in
the module that is called like it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from pipeline.recipe.edgellm import EdgeLlmSection
from pipeline.recipe.llamacpp import LlamaCppSection
from pipeline.recipe.llmapi import LlmApiSection
from pipeline.recipe.openvino import OpenVinoSection
from pipeline.recipe.section import Positive, ReadBy, Section, Unit, Whole
from pipeline.recipe.tensorrt import TensorRtSection
from pipeline.recipe.vllm import VllmSection


class CompileSection(Section):
    """What the engine is built for.

    Attributes:
        target: What compiles and runs the checkpoint.
        max_batch_size: Sequences that are decoded together.
        max_input_len: The longest prompt.
        max_seq_len: Prompt and generated tokens together, at most.
        max_num_tokens: The largest engine step, over all sequences.
        max_beam_width: Beams per sequence; there is no beam search.
        tokens_per_block: Size of a block of the paged KV cache; 32 for ``openvino``.
        tensor_parallel: How many ranks share each layer. The checkpoint is cut for them, and
            ``openvino`` puts it together again.
        pipeline_parallel: How many ranks share the layers among them; likewise.
        gpu: The GPU the engine is for, such as ``H100-80GB``; pre-flight and memory plan need it.
            None is the GPU of the machine that builds.
        llamacpp: The GGUF file of llama.cpp and Ollama.
        openvino: Execution options of the CPU target.
        edgellm: Options of TensorRT Edge-LLM.
        llmapi: Options of TensorRT-LLM's LLM API.
        tensorrt: Options of ``trtllm-build``.
        vllm: How the folder for vLLM is written and measured.
    """

    target: Literal["openvino", "tensorrt", "llamacpp", "ollama", "vllm", "llmapi", "edgellm"] = (
        "openvino"
    )
    max_batch_size: Annotated[Positive, Unit("sequences")] = 32
    max_input_len: Annotated[Positive, Unit("tokens")] = 1024
    max_seq_len: Annotated[Positive, Unit("tokens")] = 2048
    max_num_tokens: Annotated[Positive, Unit("tokens per step")] = 2048
    max_beam_width: Annotated[Literal[1], Whole, Unit("beams")] = 1
    tokens_per_block: Annotated[Literal[16, 32, 64, 128], Whole, Unit("tokens")] = 32
    tensor_parallel: Annotated[Positive, Unit("ranks")] = 1
    pipeline_parallel: Annotated[Positive, Unit("ranks")] = 1
    gpu: Annotated[str | None, ReadBy("tensorrt", "llmapi")] = None
    llamacpp: Annotated[LlamaCppSection, ReadBy("llamacpp", "ollama")] = LlamaCppSection()
    openvino: Annotated[OpenVinoSection, ReadBy("openvino")] = OpenVinoSection()
    edgellm: Annotated[EdgeLlmSection, ReadBy("edgellm")] = EdgeLlmSection()
    llmapi: Annotated[LlmApiSection, ReadBy("llmapi")] = LlmApiSection()
    tensorrt: Annotated[TensorRtSection, ReadBy("tensorrt")] = TensorRtSection()
    vllm: Annotated[VllmSection, ReadBy("vllm")] = VllmSection()

    @model_validator(mode="after")
    def _sizes(self) -> CompileSection:
        if self.max_input_len > self.max_seq_len:
            msg = (
                f"max_input_len {self.max_input_len} is larger than max_seq_len "
                f"{self.max_seq_len}, which counts prompt and generated tokens; "
                "raise max_seq_len or lower max_input_len"
            )
            raise ValueError(msg)
        if self.max_num_tokens < self.tokens_per_block:
            msg = (
                f"max_num_tokens {self.max_num_tokens} is below tokens_per_block "
                f"{self.tokens_per_block}; a step must hold at least one KV block"
            )
            raise ValueError(msg)
        if self.target == "openvino" and self.tokens_per_block != 32:
            msg = "the openvino target has KV blocks of 32 tokens; set tokens_per_block to 32"
            raise ValueError(msg)
        return self

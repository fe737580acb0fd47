"""The recipe: one YAML file that says everything a run depends on.

Names are the field's own: BuildConfig's for ``compile``, ModelOpt's for ``quantize`` and the
parameters of NVIDIA's ``inflight_batcher_llm`` configuration for ``serve``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from pipeline.formats import (
    DEFAULT_GROUP_SIZE,
    FORMATS,
    Dtype,
    FormatName,
    GroupSize,
    KvCacheName,
    canonical_format,
)
from pipeline.recipe_compile import CompileSection
from pipeline.recipe_section import FileName, Fraction, Positive, Section, Whole


class ModelSection(Section):
    """Which Hugging Face model to take.

    Attributes:
        source: A local directory or a Hub id.
        revision: Hub revision; a commit hash pins it.
        dtype: The precision of everything that is not quantized; the formats ``float16`` and
            ``bfloat16`` imply it.
        trust_remote_code: Runs Python from the Hub repository; ``revision`` must be a commit hash.
    """

    source: FileName
    revision: str | None = None
    dtype: Dtype = "float16"
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _pinned_code(self) -> ModelSection:
        commit = self.revision or ""
        if self.trust_remote_code and not (
            len(commit) == 40 and set(commit) <= set("0123456789abcdef")
        ):
            msg = "trust_remote_code needs revision to be a commit hash of 40 digits"
            raise ValueError(msg)
        return self


class Calibration(Section):
    """The text that quantization scales are measured on.

    Attributes:
        text: ``.txt`` (paragraphs) or ``.jsonl`` (objects with ``text``).
        samples: Texts used.
        sequence_length: Tokens per text, at most.
        batch_size: Texts per forward pass; AWQ is fastest with few large batches.
        seed: Chooses which texts are used.
    """

    text: FileName
    samples: Positive = 32
    sequence_length: Positive = 512
    batch_size: Positive = 16
    seed: int = 1234


class QuantizeSection(Section):
    """How the checkpoint is quantized.

    Attributes:
        format: The weight and activation format.
        group_size: Input features that share one INT4 scale.
        smoothquant_alpha: How much of the activation range moves into the weights (int8_sq).
        kv_cache: Precision of the KV cache; None keeps it in the model's dtype.
        device: Where calibration runs; ``auto`` is CUDA when there is one.
    """

    format: Annotated[FormatName, BeforeValidator(canonical_format)]
    group_size: Annotated[GroupSize, Whole] = DEFAULT_GROUP_SIZE
    smoothquant_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    kv_cache: KvCacheName | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    calibration: Calibration | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether a forward pass over text decides any tensor of the checkpoint."""
        return FORMATS[self.format].calibration is not None or self.kv_cache is not None

    @model_validator(mode="after")
    def _complete(self) -> QuantizeSection:
        if self.needs_calibration and self.calibration is None:
            msg = (
                f"format {self.format} needs quantize.calibration.text; "
                "name a .txt or .jsonl file of typical text there"
            )
            raise ValueError(msg)
        row = FORMATS[self.format]
        if self.kv_cache and not row.quantizes:
            # ModelOpt exports a KV-only quantization with quant_algo null, which TensorRT-LLM then
            # loads without the scales.
            msg = "kv_cache needs a quantized format; float16 and bfloat16 keep their own KV cache"
            raise ValueError(msg)
        if row.group_sizes and self.group_size not in row.group_sizes:
            sizes = " or ".join(map(str, row.group_sizes))
            msg = f"format {self.format} has groups of {sizes}, not group_size {self.group_size}"
            raise ValueError(msg)
        return self


class Gates(Section):
    """Limits that the written checkpoint must keep; None does not check.

    Attributes:
        perplexity_increase: Largest relative increase over the source model.
        top1_agreement: Smallest share of positions whose most likely token is the source's.
        kl_divergence: Largest mean KL divergence from the source, in nats per token.
    """

    perplexity_increase: Annotated[float, Field(ge=0.0)] | None = 0.02
    top1_agreement: Annotated[float, Field(ge=0.0, le=1.0)] | None = 0.95
    kl_divergence: Annotated[float, Field(ge=0.0)] | None = None


class EvaluateSection(Section):
    """Held-out text and the quality gate.

    Attributes:
        text: ``.txt`` (paragraphs) or ``.jsonl`` (objects with ``text``).
        tokens: Tokens scored, at most.
        sequence_length: Tokens per window, at most; the first of them is context only.
        dtype: ``float32`` computes the checkpoint in it; ``model`` rounds every activation to the
            checkpoint's own dtype, as a GPU does.
    """

    text: FileName
    tokens: Positive = 20000
    sequence_length: Annotated[int, Field(ge=2)] = 512
    dtype: Literal["float32", "model"] = "float32"
    gates: Gates = Gates()


class ServeSection(Section):
    """How the Triton repository serves the engine.

    Attributes:
        max_queue_size: Requests waiting for a slot before new ones are refused; 0 is no limit of
            the engine, while tensorrt_llm_bls takes at most max_batch_size + 256 of them at once.
        max_tokens_in_paged_kv_cache: Tokens the KV cache holds; None sizes it for max_batch_size
            sequences of max_seq_len on the CPU and leaves it to the free-memory fraction on a GPU.
        kv_cache_free_gpu_mem_fraction: Share of free GPU memory for the KV cache (GPU targets).
        enable_kv_cache_reuse: Shares KV blocks between prompts with a common prefix.
        enable_chunked_context: Splits long prompts over several steps.
        exclude_input_in_output: Returns generated tokens only.
        accumulate_tokens: Each response of a stream of tensorrt_llm_bls has the whole text so far,
            for clients that overwrite what they have, instead of what is new.
        include_stop_str_in_output: The text of tensorrt_llm_bls ends with the stop word that ended
            it, not before it.
        cancellation_check_period_ms: How often a running request is checked for cancellation.
        decoupled: Whether tensorrt_llm and tensorrt_llm_bls may answer a request many times, which
            streaming needs. False makes them answer once, as plain ``infer()`` calls need; ``both``
            keeps them and adds ``tensorrt_llm_bls_unary``, which answers once.
    """

    max_queue_size: Annotated[int, Field(ge=0)] = 256
    max_tokens_in_paged_kv_cache: Positive | None = None
    kv_cache_free_gpu_mem_fraction: Fraction = 0.9
    enable_kv_cache_reuse: bool = True
    enable_chunked_context: bool = True
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = (
        "guaranteed_no_evict"
    )
    exclude_input_in_output: bool = True
    accumulate_tokens: bool = False
    include_stop_str_in_output: bool = False
    cancellation_check_period_ms: Positive = 100
    decoupled: bool | Literal["both"] = True
    preprocessing_instance_count: Positive = 1
    postprocessing_instance_count: Positive = 1
    bls_instance_count: Positive = 1


class BenchSection(Section):
    """The load that the bench stage puts on the server.

    Attributes:
        concurrency: Streams kept open together, one measurement each.
        requests: Requests per measurement.
        output_tokens: Tokens generated per request.
    """

    concurrency: list[Positive] = Field(default=[1, 8], min_length=1)
    requests: Positive = 16
    output_tokens: Positive = 32


def nearest_place(key: str, places: Mapping[str, str]) -> str | None:
    """Where a dotted key, or the nearest key that encloses it, was set; None if nowhere."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        place = places.get(".".join(parts[:length]))
        if place:
            return place
    return None


def _output_folder(name: str) -> str:
    # Some file systems ignore case.
    if name.lower() == "store":
        msg = (
            f"{name} is the folder of the artifact store, which lies beside the outputs; "
            "choose another name"
        )
        raise ValueError(msg)
    return name


class Recipe(Section):
    """A whole recipe.

    Attributes:
        name: Names the output folder ``build/<name>``.
    """

    schema_version: Annotated[Literal[1], Whole, Field(alias="schema")] = 1
    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"),
        AfterValidator(_output_folder),
    ]
    model: ModelSection
    quantize: QuantizeSection
    evaluate: EvaluateSection | None = None
    compile: CompileSection = CompileSection()
    serve: ServeSection = ServeSection()
    bench: BenchSection = BenchSection()

    @model_validator(mode="after")
    def _one_dtype(self) -> Recipe:
        name = self.quantize.format
        own = FORMATS[name].dtype
        if own and "dtype" in self.model.model_fields_set and self.model.dtype != own:
            msg = (
                f"quantize.format {name} contradicts model.dtype {self.model.dtype}; "
                "leave model.dtype out, or make them equal"
            )
            raise ValueError(msg)
        return self

    @property
    def dtype(self) -> Dtype:
        """The precision of what is not quantized; an unquantized format is that precision."""
        return FORMATS[self.quantize.format].dtype or self.model.dtype

    @property
    def dtype_key(self) -> str:
        """The key that decides :attr:`dtype`."""
        return "quantize.format" if FORMATS[self.quantize.format].dtype else "model.dtype"

    _places: dict[str, str] = PrivateAttr(default_factory=dict)

    def place(self, key: str) -> str:
        """Where a key was set, as ``file:line (key)``; the nearest enclosing key if it was not.

        Args:
            key: Dotted key, such as ``compile.max_seq_len``.
        """
        place = nearest_place(key, self._places)
        return f"{place} ({key})" if place else key

    def section(self, *names: str) -> dict[str, Any]:
        """The named sections as plain JSON values, in a stable order."""
        whole = self.model_dump(mode="json", by_alias=True)
        return {name: whole[name] for name in names}

    def text_paths(self) -> dict[str, Path]:
        """The text files the recipe names, by dotted key."""
        paths = {}
        if self.quantize.calibration and self.quantize.needs_calibration:
            paths["quantize.calibration.text"] = Path(self.quantize.calibration.text)
        if self.evaluate:
            paths["evaluate.text"] = Path(self.evaluate.text)
        return paths

"""The recipe: one YAML file that says everything a run depends on.

Names are the field's own: BuildConfig's for ``compile``, ModelOpt's for ``quantize`` and the
parameters of NVIDIA's ``inflight_batcher_llm`` configuration for ``serve``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from pipeline.formats import (
    DEFAULT_GROUP_SIZE,
    FORMATS,
    Dtype,
    FormatName,
    GroupSize,
    KvCacheName,
    Precision,
    canonical_format,
)
from pipeline.models.quantized import Method
from pipeline.recipe.compile import CompileSection
from pipeline.recipe.evaluate import EvaluateSection
from pipeline.recipe.section import (
    ONE_LINE,
    FileName,
    Fraction,
    Positive,
    ReadBy,
    Section,
    Unit,
    Whole,
)
from pipeline.recipe.verify import VerifySection

PROMPTS_KEY = "verify.prompts"
HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:[/?#].*)?$"
)


def _with_aliases(schema: dict[str, Any]) -> None:
    own = {"enum": schema.pop("enum"), "type": schema.pop("type")}
    aliases = [alias for row in FORMATS.values() for alias in row.aliases]
    others = {"enum": aliases, "description": "Other names of the same formats."}
    schema["anyOf"] = [own, others]


class ModelSection(Section):
    """Which Hugging Face model to take.

    Attributes:
        source: A directory with ``config.json`` and ``*.safetensors``, relative to the
            recipe, or a Hub id such as ``Qwen/Qwen2.5-7B-Instruct``.
        revision: A branch, tag or commit hash on the Hub; a commit hash pins the model. None is the
            main branch.
        dtype: The precision of everything that is not quantized; the formats ``float16``,
            ``bfloat16`` and ``float32`` imply it.
        trust_remote_code: Whether Python code of the Hub repository is run; ``revision`` must then
            be a commit hash.
        at_once: What is in memory at a time: one decoder ``layer``, or the whole ``model``. The
            bytes are the same. Code of a Hub repository is always run as a whole.
    """

    source: FileName
    revision: str | None = None
    dtype: Dtype = "float16"
    trust_remote_code: bool = False
    at_once: Literal["layer", "model"] = "layer"

    @property
    def by_layer(self) -> bool:
        """Whether one decoder layer at a time is in memory."""
        return self.at_once == "layer" and not self.trust_remote_code

    @field_validator("source")
    @classmethod
    def _no_page(cls, value: str) -> str:
        found = HUB_PAGE.match(value)
        if found:
            msg = f"{value} is the address of a page; write {found[1]}"
            raise ValueError(msg)
        return value

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
        text: A ``.txt`` file (paragraphs between blank lines) or a ``.jsonl`` file, relative to the
            recipe. A line of it is an object with ``text``, with ``messages`` or with ``prompt``
            and ``completion``; conversations become what the model's own chat template makes of
            them (docs/quality.md, Chat data).
        samples: How many texts of the file are used, at most; AWQ uses 32 of them.
        sequence_length: The longest part of a text that is used.
        batch_size: Rows of text per forward pass; AWQ is fastest with few large batches.
        seed: Chooses which texts are used, where the file has more.
    """

    text: FileName
    samples: Annotated[Positive, Unit("texts")] = 32
    sequence_length: Annotated[Positive, Unit("tokens")] = 512
    batch_size: Annotated[Positive, Unit("rows")] = 16
    seed: int = 1234


class SearchSection(Section):
    """Which values are tried, and on how much text each is scored.

    Each is quantized and written, and the files are compared with the source model on texts of
    ``quantize.calibration.text`` that calibration does not use. The budget counts candidates and
    tokens, not seconds, so that a faster machine does not choose another value.

    Attributes:
        candidates: The values to try, in any order. None tries 0.5, 0.6 to 1.0 for
            ``smoothquant_alpha``, and for ``group_size`` each size that the shapes of the model
            allow.
        tokens: How much of the text each candidate is scored on. Fewer are an error.
    """

    candidates: Annotated[
        list[Annotated[float, Field(ge=0.0)]] | None, Field(min_length=1, max_length=100)
    ] = None
    tokens: Annotated[Positive, Unit("tokens")] = 4096


class QuantizeSection(Section):
    """How the checkpoint is quantized.

    Attributes:
        format: The format of weights and activations. Names from ``fp16`` on are other spellings of
            those before.
        group_size: Input features that share one INT4 scale (``int4_awq`` and ``int4_gptq``;
            ``w4a8_awq`` has groups of 128 alone). ``nf4`` has blocks of 64, whatever this key says.
        act_order: Whether ``int4_gptq`` rounds the input features of the largest activations first,
            instead of from left to right. The groups stay as they are, so that every target runs
            it. No other format reads it.
        portable: Whether the checkpoint has pre-quant scales of one, for targets that know none:
            they are moved into the norms and linears before, ahead of the rounding. ``int8_sq`` and
            ``int4_awq`` read it; the other formats have none, but for ``w4a8_awq``, which is
            refused.
        smoothquant_alpha: How much of the activations' range moves into the weights, from none (0)
            to all (1); ``int8_sq`` alone reads it. TensorRT-LLM's own examples take 0.5.
        search: Chooses ``smoothquant_alpha`` of ``int8_sq``, or ``group_size`` of ``int4_awq`` and
            ``int4_gptq``, by the smallest KL divergence from the source model, whatever that key
            says; ``{}`` does so with the defaults below. None takes the key as it is.
        stored: What wrote the model's files, where their weights are quantized already: then codes
            and scales are taken over as they are, and nothing is calibrated. A model on this
            machine says it itself, with ``format`` and ``group_size``, which may then be left out;
            the key is for models of the Hub. None quantizes a model in floating point.
        kv_cache: The format of the KV cache; None keeps it in the model's dtype. It needs a
            quantized ``format``.
        device: Where the model is calibrated and measured; ``auto`` is CUDA where there is a
            device.
        calibration: The text to calibrate on. All formats need it but ``float16``, ``bfloat16``,
            ``float32``, ``nf4`` and ``int8_wo``, which measure nothing.
    """

    format: Annotated[
        FormatName, BeforeValidator(canonical_format), Field(json_schema_extra=_with_aliases)
    ]
    group_size: Annotated[GroupSize, Whole, Unit("input features")] = DEFAULT_GROUP_SIZE
    act_order: bool = False
    portable: bool = False
    smoothquant_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    search: SearchSection | None = None
    stored: Method | None = None
    kv_cache: KvCacheName | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    calibration: Calibration | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether a forward pass over text decides any tensor of the checkpoint."""
        calibrated = FORMATS[self.format].calibration is not None or self.kv_cache is not None
        return calibrated and self.stored is None

    @model_validator(mode="after")
    def _complete(self) -> QuantizeSection:
        if self.needs_calibration and self.calibration is None:
            msg = (
                f"format {self.format} needs quantize.calibration.text; "
                "name a .txt or .jsonl file of typical text there"
            )
            raise ValueError(msg)
        row = FORMATS[self.format]
        if self.kv_cache and row.own:
            msg = (
                f"kv_cache needs a format that is calibrated; {self.format} is rounded without a "
                "text. Leave kv_cache out"
            )
            raise ValueError(msg)
        for key in ("search", "kv_cache", "act_order", "portable"):
            if self.stored and getattr(self, key):
                msg = (
                    f"{key} is decided when weights are quantized, and those of this model are "
                    f"already, by {self.stored}; leave quantize.{key} out"
                )
                raise ValueError(msg)
        if self.kv_cache and not row.quantizes:
            # ModelOpt exports a KV-only quantization with quant_algo null, which TensorRT-LLM then
            # loads without the scales.
            msg = "kv_cache needs a quantized format; floating point keeps its own KV cache"
            raise ValueError(msg)
        if row.group_sizes and self.group_size not in row.group_sizes:
            sizes = " or ".join(map(str, row.group_sizes))
            msg = f"format {self.format} has groups of {sizes}, not group_size {self.group_size}"
            raise ValueError(msg)
        if self.portable and row.divides_prequant:
            msg = (
                f"format {self.format} cannot be portable: its pre-quant scales are part of the "
                "FP8 activations, which no other target has; remove portable"
            )
            raise ValueError(msg)
        if self.search:
            self._check_search(self.search)
        return self

    def _check_search(self, search: SearchSection) -> None:
        row = FORMATS[self.format]
        if row.searched is None:
            others: dict[str, list[str]] = {}
            for other in FORMATS.values():
                if other.searched:
                    others.setdefault(other.searched, []).append(other.name)
            chosen = [f"{key} of {' or '.join(names)}" for key, names in others.items()]
            msg = (
                f"format {self.format} has nothing to search; search chooses "
                f"{', '.join(chosen)}. Remove quantize.search"
            )
            raise ValueError(msg)
        if search.candidates is None:
            return
        if len(set(search.candidates)) < len(search.candidates):
            msg = "search.candidates names a value twice; remove one of them"
            raise ValueError(msg)
        in_groups = row.searched == "group_size"
        allowed = " or ".join(map(str, row.group_sizes)) if in_groups else "a number from 0 to 1"
        for value in search.candidates:
            if value not in row.group_sizes if in_groups else value > 1.0:
                msg = (
                    f"search.candidates has {value:g}, but {row.searched} of {self.format} is "
                    f"{allowed}"
                )
                raise ValueError(msg)


class ServeSection(Section):
    """How the Triton repository serves the engine.

    Attributes:
        max_queue_size: Requests that wait for a slot before new ones are refused; 0 is no limit of
            the engine, while tensorrt_llm_bls takes at most max_batch_size + 256 of them at once.
        max_tokens_in_paged_kv_cache: What the KV cache holds; None sizes it for max_batch_size
            sequences of max_seq_len on the CPU and leaves it to the free-memory fraction on a GPU.
        kv_cache_free_gpu_mem_fraction: The share of the GPU memory left beside the engine that the
            KV cache takes.
        kv_cache_host_memory: Memory of the host, for each rank, that keeps KV blocks for reuse
            which the GPU has no room for; None keeps none. It needs ``enable_kv_cache_reuse``.
        enable_kv_cache_reuse: Whether prompts with a common beginning share its KV blocks. The CPU
            gives the log-probabilities of a prompt only without.
        enable_chunked_context: Whether a long prompt is spread over several engine steps.
        batch_scheduler_policy: ``guaranteed_no_evict`` starts a request when the KV cache can hold
            it to its end; ``max_utilization`` starts more and may have to compute some again.
        exclude_input_in_output: Whether an answer that is not streamed leaves out the prompt, where
            the request does not say.
        add_special_tokens: Whether a text gets what the tokenizer puts around it, such as bos,
            where the request does not say. ``auto`` leaves out what would be put in front where the
            text itself begins with it, as a rendered chat template does.
        accumulate_tokens: Whether each response of a stream of tensorrt_llm_bls has the whole text
            so far, for clients that overwrite what they have, instead of what is new.
        include_stop_str_in_output: Whether the text of tensorrt_llm_bls ends with the stop word
            that ended it, not before it.
        cancellation_check_period_ms: How often running requests are checked for clients that have
            gone away.
        max_token_hold_ms: The longest that a token of a stream may wait for the next ones, so that
            several leave in one response. They wait only where many streams share few processors,
            which responses of one token would keep from the engine; a first token, a last one, and
            those of a single stream never do. 0 sends each token at once.
        decoupled: Whether tensorrt_llm and tensorrt_llm_bls may answer a request many times, which
            streaming needs. False makes them answer once, as plain ``infer()`` calls need; ``both``
            keeps them and adds ``tensorrt_llm_bls_unary``, which answers once.
        guided_decoding: What keeps a text to the JSON schema, regular expression or grammar of its
            request (``guided_decoding_guide``); None refuses such requests.
        cuda_graphs: How many CUDA graphs of generation steps are kept, which start faster than
            their kernels one by one; there is one for each number of running sequences, so
            ``max_batch_size`` is the most. 0 uses none.
        lora_adapters: LoRA adapters of Hugging Face's PEFT, each a folder with
            ``adapter_config.json`` and ``adapter_model.safetensors``, relative to the recipe.
            A request chooses one by ``lora_task_id``: 1 is the first of this list. It needs
            ``compile.tensorrt.lora``.
        draft_repository: The Triton repository of a smaller model with the same tokenizer, made by
            a recipe of its own, such as ``../build/small/repository``. Its engine is served beside
            this one and guesses tokens for requests with ``num_draft_tokens``. It needs
            ``compile.tensorrt.draft``.
        preprocessing_instance_count: Processes of the model that makes tokens of text.
        postprocessing_instance_count: Processes of the model that makes text of tokens for
            ``ensemble``.
        bls_instance_count: Processes of ``tensorrt_llm_bls``, each of which serves many requests at
            a time.
    """

    max_queue_size: Annotated[int, Field(ge=0), Unit("requests")] = 256
    max_tokens_in_paged_kv_cache: Annotated[Positive | None, Unit("tokens")] = None
    kv_cache_free_gpu_mem_fraction: Annotated[
        Fraction, Unit("share of free GPU memory"), ReadBy("tensorrt", "llmapi")
    ] = 0.9
    kv_cache_host_memory: Annotated[
        Annotated[float, Field(gt=0.0)] | None, Unit("GiB"), ReadBy("tensorrt", "llmapi")
    ] = None
    enable_kv_cache_reuse: bool = True
    enable_chunked_context: bool = True
    batch_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = (
        "guaranteed_no_evict"
    )
    exclude_input_in_output: bool = True
    add_special_tokens: bool | Literal["auto"] = "auto"
    accumulate_tokens: bool = False
    include_stop_str_in_output: bool = False
    cancellation_check_period_ms: Annotated[Positive, Unit("milliseconds")] = 100
    max_token_hold_ms: Annotated[
        Annotated[int, Field(ge=0, le=10_000)], Unit("milliseconds"), ReadBy("openvino")
    ] = 300
    decoupled: bool | Literal["both"] = True
    guided_decoding: Literal["xgrammar"] | None = None
    cuda_graphs: Annotated[int, Field(ge=0), Unit("graphs"), ReadBy("tensorrt", "llmapi")] = 0
    lora_adapters: Annotated[list[FileName], ReadBy("tensorrt")] = Field(default=[])
    draft_repository: Annotated[FileName | None, ReadBy("tensorrt")] = None
    preprocessing_instance_count: Annotated[Positive, Unit("processes")] = 1
    postprocessing_instance_count: Annotated[Positive, Unit("processes")] = 1
    bls_instance_count: Annotated[Positive, Unit("processes")] = 1


class BenchSection(Section):
    """The load that the bench stage puts on the server.

    Attributes:
        concurrency: How many streams are kept open together; one measurement for each number.
        requests: How many requests a measurement takes, all rounds together; at least one for each
            stream is sent in every round.
        rounds: How often each number of streams is measured, in turns; intervals come from the
            differences between rounds, so one round has none.
        output_tokens: How much each request generates.
    """

    concurrency: Annotated[list[Positive], Unit("streams")] = Field(default=[1, 8], min_length=1)
    requests: Annotated[Positive, Unit("requests")] = 40
    rounds: Annotated[Positive, Unit("rounds")] = 5
    output_tokens: Annotated[Positive, Unit("tokens")] = 32


class CostSection(Section):
    """What a machine costs, for the price of a million tokens. It changes nothing that is built.

    Attributes:
        price_per_hour: What the machine, or the GPUs that the engine takes, cost for an hour; None
            shows no prices.
        currency: How prices are written.
        utilization: The share of the time in which the machine is asked for tokens.
    """

    price_per_hour: Annotated[Annotated[float, Field(gt=0.0)] | None, Unit("currency")] = None
    currency: Annotated[str, Field(min_length=1, max_length=8, pattern=ONE_LINE)] = "USD"
    utilization: Annotated[Fraction, Unit("share of the time")] = 0.5


class ConstraintsSection(Section):
    """What a format must keep to be recommended by ``compare``; None does not ask for it.

    Attributes:
        max_perplexity_increase: The largest increase of perplexity over the source model.
        max_accuracy_loss: The largest loss of accuracy in each of ``evaluate.tasks``.
        max_time_to_first_token_ms: The longest median wait for a first token.
        max_inter_token_latency_ms: The longest median time between tokens of a stream.
        min_tokens_per_second: The least throughput.
        concurrency: The number of streams at which latency and throughput count; None is the
            largest that is measured.
    """

    max_perplexity_increase: Annotated[
        float | None, Field(ge=0.0), Unit("share of the source's perplexity")
    ] = None
    max_accuracy_loss: Annotated[float | None, Field(ge=0.0, le=1.0), Unit("share")] = None
    max_time_to_first_token_ms: Annotated[float | None, Field(gt=0.0), Unit("milliseconds")] = None
    max_inter_token_latency_ms: Annotated[float | None, Field(gt=0.0), Unit("milliseconds")] = None
    min_tokens_per_second: Annotated[float | None, Field(gt=0.0), Unit("tokens/s")] = None
    concurrency: Annotated[Positive | None, Unit("streams")] = None


def nearest_place(key: str, places: Mapping[str, str]) -> str | None:
    """Finds where a dotted key, or the nearest key that encloses it, was set; None if nowhere."""
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
        schema_version: The version of this schema, written ``schema: 1``.
        name: Names the output folder, ``build/<name>``; letters, digits, ``.``, ``_`` and ``-``,
            and not ``store``.
        model: The Hugging Face model to take.
        quantize: How the checkpoint is quantized.
        evaluate: Held-out text and the quality gate; None measures nothing.
        compile: What the engine is built for.
        serve: How the Triton repository serves the engine.
        verify: What the conformance checks ask of the served repository.
        bench: The load that the bench stage puts on the server.
        cost: What a machine costs, for the price of a million tokens.
        constraints: What a format must keep to be recommended by ``compare``.
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
    verify: VerifySection = VerifySection()
    bench: BenchSection = BenchSection()
    cost: CostSection = CostSection()
    constraints: ConstraintsSection = ConstraintsSection()

    @model_validator(mode="after")
    def _one_dtype(self) -> Recipe:
        name = self.quantize.format
        own = FORMATS[name].dtype
        if own and "dtype" in self.model.model_fields_set and self.model.dtype != own:
            msg = (
                f"quantize.format {name} contradicts model.dtype {self.model.dtype}; "
                f"leave model.dtype out, or make them equal: --set model.dtype={own}"
            )
            raise ValueError(msg)
        return self

    @property
    def dtype(self) -> Precision:
        """The precision of what is not quantized; an unquantized format is that precision."""
        return FORMATS[self.quantize.format].dtype or self.model.dtype

    @property
    def dtype_key(self) -> str:
        """The key that decides :attr:`dtype`."""
        return "quantize.format" if FORMATS[self.quantize.format].dtype else "model.dtype"

    _places: dict[str, str] = PrivateAttr(default_factory=dict)
    _arguments: str = PrivateAttr(default="RECIPE")

    _notices: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notices(self) -> tuple[str, ...]:
        """What was decided while this recipe was read that its user may want to know."""
        return self._notices

    @property
    def arguments(self) -> str:
        """The file and the ``--set`` of this recipe, quoted for a shell; RECIPE without a file."""
        return self._arguments

    def built_in(self, build_dir: Path) -> Recipe:
        """Returns this recipe with ``--build-dir`` among its arguments."""
        copy = self.model_copy()
        copy._arguments += f" --build-dir {shlex.quote(str(build_dir))}"
        return copy

    def within(self, directory: Path) -> Recipe:
        """Returns this recipe with ``--directory`` among its arguments."""
        copy = self.model_copy()
        copy._arguments += f" --directory {shlex.quote(str(directory))}"
        return copy

    def place(self, key: str) -> str:
        """Says where a key, or the nearest one that encloses it, was set: ``file:line (key)``.

        Args:
            key: Dotted key, such as ``compile.max_seq_len``.
        """
        place = nearest_place(key, self._places)
        return f"{place} ({key})" if place else key

    def section(self, *names: str) -> dict[str, Any]:
        """Returns the named sections as plain JSON values, in a stable order."""
        whole = self.model_dump(mode="json", by_alias=True)
        return {name: whole[name] for name in names}

    def text_paths(self) -> dict[str, Path]:
        """Lists the files of texts and of prompts that the recipe names, by dotted key."""
        paths = {}
        if self.quantize.calibration and self.quantize.needs_calibration:
            paths["quantize.calibration.text"] = Path(self.quantize.calibration.text)
        if self.evaluate:
            paths["evaluate.text"] = Path(self.evaluate.text)
        if self.verify.prompts:
            paths[PROMPTS_KEY] = Path(self.verify.prompts)
        return paths

"""What a request deserves, by the rules that the documentation tells users.

docs/clients.md ("What every request must hold", "What a client can rely on"), docs/sampling.md and
docs/features.md, TensorRT-LLM's word lists, and Triton's own rules of tensors (KServe's protocol).
Nothing here is taken from model_repo: a rule that is wrong there shows as a finding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tests.fuzz.case import Case, Field
from tests.fuzz.schema import Model
from tests.fuzz.values import GUIDES

VALID, INVALID, EITHER = "valid", "invalid", "either"
TEXT_MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm_bls_unary")
HTTP_GENERATE = ("generate", "generate_stream")
HTTP = (*HTTP_GENERATE, "infer", "infer_binary")
LONGEST_TO_TOKENIZE = 20_000
"""Bytes; a longer text has more tokens than any of the engines here takes."""

# Names of preprocessing and of tensorrt_llm, as the text models call the same thing.
_TEXT_NAMES = {
    "query": "text_input",
    "decoder_query": "decoder_text_input",
    "request_output_len": "max_tokens",
    "bad_words_dict": "bad_words",
    "stop_words_dict": "stop_words",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "len_penalty": "length_penalty",
    "streaming": "stream",
}
# docs/sampling.md: "refused"; one element or more asks for it.
_REFUSED_BY_ENGINE = frozenset(
    (
        "embedding_bias",
        "draft_input_ids",
        "draft_logits",
        "draft_acceptance_threshold",
        "prompt_embedding_table",
        "encoder_input_features",
        "cross_attention_mask",
        "skip_cross_attn_blocks",
        "mrope_rotary_cos_sin",
        "lora_task_id",
        "lora_weights",
        "lora_config",
        "lookahead_window_size",
        "lookahead_ngram_size",
        "lookahead_verification_set_size",
        "context_phase_params",
        "retention_token_range_starts",
        "retention_decode_priority",
        "runtime_top_p_min",
        "runtime_top_p_decay",
        "runtime_top_p_reset_ids",
        "num_return_sequences",
        "early_stopping",
    )
)
# The documents say nothing of these by themselves.
_UNSAID = frozenset(
    (
        "decoder_input_ids",
        "decoder_input_lengths",
        "encoder_output_lengths",
        "prompt_table_extra_ids",
        "prompt_vocab_size",
        "mrope_position_deltas",
        "retention_token_range_ends",
        "retention_token_range_priorities",
        "retention_token_range_durations_ms",
        "retention_decode_duration_ms",
    )
)
# What is declared optional, so that preprocessing can say itself what is missing.
_NEEDED = {
    "preprocessing": {"QUERY", "REQUEST_OUTPUT_LEN"},
    "ensemble": {"text_input", "max_tokens"},
}
_TRITONS_PARAMETERS = frozenset(
    ("priority", "timeout", "sequence_id", "sequence_start", "sequence_end")
)
_FORMER = {
    "random_seed": "seed",
    "min_length": "min_tokens",
    "return_kv_cache_reuse_stats": "return_perf_metrics",
}
_RANGES = {
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
    "UINT64": (0, 2**64 - 1),
    "UINT8": (0, 255),
}


@dataclass(frozen=True)
class Limits:
    """What the engine was compiled for, as docs/recipe.md names it."""

    vocab_size: int
    max_input_len: int
    max_seq_len: int


@dataclass
class Verdict:
    """Why a request is wrong, and why that is open."""

    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        """``valid``, ``invalid`` or ``either``."""
        return INVALID if self.problems else EITHER if self.doubts else VALID

    @property
    def why(self) -> str:
        """The reasons in words."""
        return "; ".join(self.problems or self.doubts)


class Oracle:
    """Judges requests to one server.

    Args:
        models: What the server says of its models.
        tokenizer: The model's own, opened by the tokenizers library.
    """

    def __init__(self, models: Mapping[str, Model], tokenizer: Tokenizer, limits: Limits) -> None:
        self._models, self._tokenizer, self._limits = models, tokenizer, limits
        bls = models["tensorrt_llm_bls"].parameters
        engine = models["tensorrt_llm"].parameters
        self.guides = bool(bls.get("guided_decoding_backend"))
        self.scores_prompts = engine.get("enable_kv_cache_reuse", "true") == "false"

    def judge(self, case: Case) -> Verdict:
        """What ``case`` deserves."""
        verdict = Verdict()
        model = self._models[case.model]
        if case.way in HTTP_GENERATE:
            case = _shaped(case, model)
        self._on_the_wire(case, model, verdict)
        self._shapes(case, model, verdict)
        if verdict.problems:
            return verdict
        engine = case.model == "tensorrt_llm"
        if engine and _first(case, "stop"):
            # "taken with any request parameters"; nothing else of it counts.
            if "\0" in case.request_id:
                verdict.doubts.append("Triton's HTTP ends an id at a NUL")
            elif not case.request_id:
                verdict.problems.append("stop without the id of a request")
            _check_engine_outputs(case, verdict)
            return verdict
        self._parameters(case, verdict)
        if case.model == "postprocessing":
            self._postprocessing(case, verdict)
            return verdict
        rows = list(_rows(case))
        for row in rows:
            if engine:
                self._engine_row(row, len(rows), verdict)
            else:
                self._text_row(case.model, row, verdict)
        if engine:
            _check_engine_outputs(case, verdict)
        if not model.decoupled and case.model != "preprocessing":
            if any(row.get("stream") for row in rows):
                verdict.problems.append("a stream of a model that answers once")
            if len(rows) > 1:
                verdict.problems.append("several prompts for a model that answers once")
        if case.way == "generate" and (len(rows) > 1 or any(row.get("stream") for row in rows)):
            verdict.doubts.append("generate takes one response only")
        return verdict

    def _on_the_wire(self, case: Case, model: Model, verdict: Verdict) -> None:
        wrong, open_ = FAULTS
        for fault in case.faults:
            if fault in wrong:
                verdict.problems.append(f"fault {fault}")
            elif fault in open_:
                verdict.doubts.append(f"fault {fault}")
        if case.version not in ("", "1"):
            # Triton reads the number that the text begins with; a negative one is the latest.
            loose = case.version in ("-1", "1 ")
            (verdict.doubts if loose else verdict.problems).append("no such version")
        unary = case.way in ("unary", "infer", "infer_binary")
        if unary and model.decoupled:
            verdict.problems.append("a unary call of a decoupled model")
        names = [entry.name for entry in case.fields]
        if len(set(names)) < len(names):
            verdict.problems.append("an input twice")
        if case.way not in HTTP_GENERATE:
            verdict.problems += [f"no output {n}" for n in case.outputs if n not in model.outputs]
            if len(set(case.outputs)) < len(case.outputs):
                verdict.doubts.append("an output twice")
        if any(name.endswith("_logits") for name in case.outputs):
            verdict.doubts.append("logits asked for without the input that makes them")

    def _shapes(self, case: Case, model: Model, verdict: Verdict) -> None:
        given = {entry.name for entry in case.fields}
        needed = {name for name, declared in model.inputs.items() if not declared.optional}
        for name in sorted((needed | _NEEDED.get(case.model, set())) - given):
            # Triton counts inputs and does not look which they are, and a single prompt has its
            # length in its shape, as in TensorRT-LLM's backend.
            loose = name == "input_lengths"
            (verdict.doubts if loose else verdict.problems).append(f"{name} is missing")
        batches = set()
        for entry in case.fields:
            declared = model.inputs.get(entry.name)
            if declared is None:
                verdict.problems.append(f"no input {entry.name}")
                continue
            if case.way in HTTP_GENERATE:
                self._json_values(entry, declared.datatype, verdict)
                if len(declared.dims) > 1:
                    verdict.doubts.append(f"{entry.name}: generate has no such shape")
                    continue
            elif entry.datatype != declared.datatype:
                verdict.problems.append(f"{entry.name} is {entry.datatype}")
                continue
            if math.prod(entry.shape) != len(entry.values) or min(entry.shape, default=0) < 0:
                verdict.problems.append(f"{entry.name}: shape and elements disagree")
                continue
            dims = (-1, *declared.dims)
            fits = len(dims) == len(entry.shape) and all(
                want in (-1, have) for want, have in zip(dims, entry.shape, strict=False)
            )
            if not fits:
                verdict.problems.append(f"{entry.name} has the shape {entry.shape}")
            elif 0 in entry.shape[1:]:
                verdict.doubts.append(f"{entry.name} is empty")
            batches.add(entry.shape[0] if entry.shape else None)
        if len(batches) > 1:
            verdict.problems.append("inputs of several batch sizes")
        if any(not size or size > model.max_batch_size for size in batches):
            verdict.problems.append(f"a batch of {batches}")

    def _json_values(self, entry: Field, want: str, verdict: Verdict) -> None:
        """What the JSON of generate can say: true, 1, 1.5 and "text", and no types."""
        for value in entry.values:
            if want == "BYTES":
                if not isinstance(value, bytes):
                    verdict.problems.append(f"{entry.name} is no text")
                elif not _is_text(value):
                    verdict.problems.append(f"{entry.name} is no UTF-8, which JSON must be")
            elif want == "BOOL":
                if not isinstance(value, bool):
                    verdict.problems.append(f"{entry.name} is neither true nor false")
            elif isinstance(value, bytes | bool):
                verdict.problems.append(f"{entry.name} is no number")
            elif want.startswith("FP"):
                continue  # NaN and Infinity too, which Triton's parser knows
            elif isinstance(value, float):
                # 2.0 is a whole number to JSON; who reads 2.5 as one loses something.
                whole = value.is_integer()
                (verdict.doubts if whole else verdict.problems).append(
                    f"{entry.name} is no whole number"
                )
            elif not _RANGES[want][0] <= value <= _RANGES[want][1]:
                verdict.problems.append(f"{entry.name} does not fit into {want}")

    def _parameters(self, case: Case, verdict: Verdict) -> None:
        if case.model == "postprocessing":
            # It reads none and needs none.
            if case.parameters:
                verdict.doubts.append("parameters of a model that looks at none")
            return
        given = {canonical(entry.name) for entry in case.fields}
        for name, value in case.parameters:
            if name in _TRITONS_PARAMETERS:
                whole = isinstance(value, int) and not isinstance(value, bool)
                if name == "timeout" or not whole or value < 0:
                    verdict.doubts.append(f"parameter {name}")
                elif name.startswith("sequence"):
                    verdict.doubts.append("no model here has sequences")
            elif name == "Streaming":
                continue
            elif name in _FORMER:
                if _FORMER[name] not in given:
                    verdict.problems.append(f"{name} is the former name of {_FORMER[name]}")
            elif name in ("binary_data_output", "id") or name.startswith("triton_"):
                verdict.doubts.append(f"parameter {name} is Triton's")
            else:
                verdict.problems.append(f"no parameter {name!r}")

    def _text_row(self, model: str, row: Mapping[str, Any], verdict: Verdict) -> None:
        problems, doubts = verdict.problems, verdict.doubts
        alone = model == "preprocessing"
        bls = model.startswith("tensorrt_llm_bls")
        max_tokens = row["max_tokens"]
        _sampling(row, verdict, adds_top_k=bls, penalties=alone)
        _tokens_asked(row, verdict)
        self._prompt(row, max_tokens, verdict, to_engine=not alone)
        if row.get("decoder_text_input"):
            problems.append("a decoder_text_input")
        if row.get("prompt_table_extra_id"):
            problems.append("a prompt_table_extra_id")
        for name in ("bad_words", "stop_words", "embedding_bias_words"):
            words = row.get(f"{name}[]", ())
            problems += [f"{name} is no UTF-8" for word in words if not _is_text(word)]
            if len(words) > 1024:
                problems.append(f"{name} has {len(words)} words")
            if sum(map(len, words)) > LONGEST_TO_TOKENIZE:
                doubts.append(f"{name} is long")
        if not alone and any(row.get("bad_words[]", ())):
            problems.append("bad_words on the CPU")
        words, weights = row.get("embedding_bias_words[]"), row.get("embedding_bias_weights[]")
        if (words is None) != (weights is None):
            problems.append("a bias of words without weights, or the other way")
        elif words is not None:
            if len(words) != len(weights):
                problems.append("words and weights are not as many")
            if not alone:
                problems.append("an embedding bias on the CPU")
            elif not all(map(math.isfinite, weights)):
                doubts.append("an infinite embedding bias")
        if row.get("beam_width") not in (None, 1):
            problems.append("beams")
        if row.get("return_generation_logits"):
            problems.append("generation logits")
        if alone:
            return
        if row.get("return_context_logits"):
            problems.append("context logits")
        sequences = row.get("num_return_sequences")
        if sequences is not None and (sequences != 1 or not bls):
            problems.append("num_return_sequences")
        self._end_id(row, verdict)
        for name in ("prompt_embedding_table", "lora_weights", "lora_config", "lora_task_id"):
            if f"{name}[]" in row:
                (problems if row[f"{name}[]"] else doubts).append(name)
        if row.get("num_draft_tokens") or row.get("use_draft_logits"):
            problems.append("draft tokens")
        if "prompt_vocab_size" in row:
            doubts.append("prompt_vocab_size alone")
        self._guide(row, verdict, end_id_is_own=bls)

    def _engine_row(self, row: Mapping[str, Any], rows: int, verdict: Verdict) -> None:
        problems, doubts = verdict.problems, verdict.doubts
        _sampling(row, verdict, adds_top_k=False, penalties=False)
        _tokens_asked(row, verdict)
        ids = row.get("input_ids[]")
        if ids is None:
            problems.append("no input_ids")
            ids = ()
        length = row.get("input_lengths", len(ids))
        if rows > 1 and "input_lengths" not in row:
            problems.append("no input_lengths for a batch")
        if rows == 1 and length != len(ids):
            problems.append("input_lengths is not the length of input_ids")
        if not 0 < length <= len(ids):
            problems.append("input_lengths is outside input_ids")
            length = len(ids)
        ids = ids[:length]
        if any(not 0 <= token < self._limits.vocab_size for token in ids):
            problems.append("a token that the model has not")
        if len(ids) > self._limits.max_input_len:
            problems.append("more tokens than max_input_len")
        if len(ids) + row["max_tokens"] > self._limits.max_seq_len:
            problems.append("more tokens than max_seq_len")
        for name in ("stop_words_list", "bad_words_list"):
            words = _word_list(row.get(f"{name}[]", ()))
            if words is None:
                problems.append(f"{name} is no word list")
            elif words and name == "bad_words_list":
                problems.append("bad_words on the CPU")
            elif any(not 0 <= token < self._limits.vocab_size for word in words for token in word):
                doubts.append("a stop word of no token")
        problems += [f"{name} on the CPU" for name in _REFUSED_BY_ENGINE if row.get(f"{name}[]")]
        doubts += [f"{name} is not spoken of" for name in _UNSAID if f"{name}[]" in row]
        if row.get("beam_width") not in (None, 1):
            problems.append("beams")
        if row.get("return_context_logits") or row.get("return_generation_logits"):
            problems.append("logits")
        if row.get("return_prompt_log_probs"):
            if not self.scores_prompts:
                problems.append("prompt log probabilities beside KV cache reuse")
            elif "guided_decoding_guide" in row:
                problems.append("prompt log probabilities of a guided text")
        self._end_id(row, verdict)
        self._guide(row, verdict, end_id_is_own=False)

    def _prompt(
        self, row: Mapping[str, Any], max_tokens: int, verdict: Verdict, *, to_engine: bool
    ) -> None:
        text = row["text_input"]
        if not _is_text(text):
            verdict.problems.append("the prompt is no UTF-8")
            return
        if len(text) > LONGEST_TO_TOKENIZE:
            verdict.problems.append("the prompt is far too long")
            return
        encoded = self._tokenizer.encode(text.decode(), add_special_tokens=True)
        own = sum(1 for special in encoded.special_tokens_mask if not special)
        most = own + (len(encoded.ids) - own) * (row.get("add_special_tokens") is not False)
        if not text:
            most = len(encoded.ids) * (row.get("add_special_tokens") is not False)
        if most == 0:
            verdict.problems.append("a prompt of no tokens")
        # Of what the tokenizer adds, and the text begins with, auto leaves something out.
        least = most - 2
        for tokens, limit in (
            *(((0, self._limits.max_input_len),) if to_engine else ()),
            (max_tokens, self._limits.max_seq_len),
        ):
            if least + tokens > limit:
                verdict.problems.append(f"prompt and tokens above {limit}")
            elif most + tokens > limit:
                exact = row.get("add_special_tokens") is not None or not _begins_specially(text)
                (verdict.problems if exact else verdict.doubts).append(
                    f"prompt and tokens at {limit}"
                )
        if not to_engine and most > self._limits.max_input_len:
            verdict.doubts.append("preprocessing does not hold a prompt to max_input_len")

    def _end_id(self, row: Mapping[str, Any], verdict: Verdict) -> None:
        end_id = row.get("end_id")
        if end_id is not None and not -1 <= end_id < self._limits.vocab_size:
            verdict.problems.append("an end_id of no token")

    def _guide(self, row: Mapping[str, Any], verdict: Verdict, *, end_id_is_own: bool) -> None:
        kind, guide = row.get("guided_decoding_guide_type"), row.get("guided_decoding_guide")
        if not kind:
            if guide:
                verdict.problems.append("a guide without its type")
            return
        if not self.guides:
            verdict.problems.append("guides are not served")
            return
        if row.get("min_tokens"):
            verdict.problems.append("a guide beside min_tokens")
        if "end_id" in row:
            (verdict.problems if end_id_is_own else verdict.doubts).append("a guide beside end_id")
        known = kind.decode(errors="replace"), (guide or b"").decode(errors="replace")
        if known[0] == "json" and (guide is None or _is_text(guide)):
            return
        if known not in GUIDES:
            verdict.doubts.append("a guide of unknown merit")
        elif not GUIDES[known]:
            verdict.problems.append("a guide that cannot be followed")

    def _postprocessing(self, case: Case, verdict: Verdict) -> None:
        tokens, lengths = case.field("TOKENS_BATCH"), case.field("SEQUENCE_LENGTH")
        assert tokens is not None
        assert lengths is not None
        batch, beams, width = tokens.shape
        if lengths.shape != (batch, beams):
            verdict.problems.append("one length for each text is missing")
            return
        for place, length in enumerate(lengths.values):
            if not 0 <= length <= width:
                verdict.problems.append(f"a length of {length!r} in a row of {width}")
                return
            ids = tokens.values[place * width : place * width + int(length)]
            if min(ids, default=0) < 0:
                verdict.problems.append("a negative token")
            elif max(ids, default=0) >= self._limits.vocab_size:
                verdict.doubts.append("a token that the tokenizer has not; engines may have more")


# Faults that every server must refuse, and those that it may take.
FAULTS = (
    frozenset(
        (
            "raw_short",
            "raw_long",
            "raw_missing",
            "raw_and_contents",
            "prefix_huge",
            "prefix_short",
            "no_model",
            "garbage",
            "json_cut",
            "json_comma",
            "json_garbage",
            "json_empty",
            "json_array",
            "json_deep",
            "binary_size_huge",
            "binary_size_text",
            "header_length_huge",
            "header_length_text",
            "header_length_short",
            "method_get",
            "method_put",
            "path_unknown",
            "encoding_unknown",
        )
    ),
    frozenset(
        (
            "id_bytes",
            "raw_extra",
            "json_duplicate",
            "chunked",
            "chunked_cut",
            "length_short",
            "length_long",
            "gzip_wrong",
            "json_surrogate",
            "nul_name",
        )
    ),
)


def _sampling(
    row: Mapping[str, Any], verdict: Verdict, *, adds_top_k: bool, penalties: bool
) -> None:
    rules: Mapping[str, Callable[[float], bool]] = {
        "temperature": lambda v: v >= 0,
        "top_k": lambda v: v >= 0,
        "length_penalty": lambda v: v >= 0,
        "beam_search_diversity_rate": lambda v: v >= 0,
        "top_p": lambda v: 0 <= v <= 1,
        "repetition_penalty": lambda v: v > 0,
        "presence_penalty": lambda v: penalties or v == 0,
        "frequency_penalty": lambda v: penalties or v == 0,
    }
    for name, holds in rules.items():
        value = row.get(name)
        if value is not None and not (math.isfinite(value) and holds(value)):
            verdict.problems.append(f"{name} {value}")
    alone = row.get("temperature") == 0 and row.get("top_p") and row.get("top_k") is None
    if alone and not adds_top_k:
        verdict.problems.append("temperature 0 with top_p and no top_k")


def _tokens_asked(row: Mapping[str, Any], verdict: Verdict) -> None:
    max_tokens, min_tokens = row["max_tokens"], row.get("min_tokens") or 0
    if max_tokens < 1:
        verdict.problems.append(f"max_tokens {max_tokens}")
    if not 0 <= min_tokens <= max(0, max_tokens):
        verdict.problems.append(f"min_tokens {min_tokens} of {max_tokens}")


def _check_engine_outputs(case: Case, verdict: Verdict) -> None:
    """The C++ backend wants both, and so does this one, with its words and its code."""
    if case.way in HTTP_GENERATE or not case.outputs:
        return
    if not {"output_ids", "sequence_length"} <= set(case.outputs):
        if _first(case, "stop"):
            return
        verdict.problems.append("output_ids and sequence_length must be asked for")


def _word_list(values: tuple[Any, ...]) -> list[tuple[int, ...]] | None:
    """The words of a list [2, n]; None where the ends do not rise within the ids."""
    half = len(values) // 2
    ids, ends = values[:half], list(values[half:])
    while ends and ends[-1] == -1:
        ends.pop()
    places = [0, *ends]
    if any(high <= low for low, high in pairwise(places)) or places[-1] > half:
        return None
    return [tuple(ids[low:high]) for low, high in pairwise(places)]


def _rows(case: Case) -> Iterator[dict[str, Any]]:
    """Each prompt's inputs by the text models' names; ``name[]`` has all elements."""
    batch = max((entry.shape[0] for entry in case.fields), default=0)
    for index in range(batch):
        row: dict[str, Any] = {}
        for entry in case.fields:
            width = len(entry.values) // batch
            values = tuple(
                float(np.float32(value)) if entry.datatype == "FP32" else value
                for value in entry.values[index * width : (index + 1) * width]
            )
            name = canonical(entry.name)
            row[f"{name}[]"] = values
            if width == 1:
                row[name] = values[0]
        yield row


def canonical(name: str) -> str:
    short = name.lower()
    return _TEXT_NAMES.get(short, short)


def _shaped(case: Case, model: Model) -> Case:
    """The shapes that Triton gives to JSON, which has none: a list of an input that has one element
    is a batch."""
    fields = []
    for entry in case.fields:
        declared = model.inputs.get(entry.name)
        count = len(entry.values)
        batch = declared is not None and declared.dims == (1,)
        fields.append(replace(entry, shape=(count, 1) if batch else (1, count)))
    return case.but(fields=tuple(fields))


def _first(case: Case, name: str) -> Any:
    entry = case.field(name)
    return bool(entry and entry.values and entry.values[0])


def _is_text(value: Any) -> bool:
    try:
        value.decode()
    except (UnicodeDecodeError, AttributeError):
        return False
    return True


def _begins_specially(text: bytes) -> bool:
    return text.lstrip().startswith(b"<")


def is_json(text: bytes) -> bool:
    """Whether Python's own reader takes it for JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True

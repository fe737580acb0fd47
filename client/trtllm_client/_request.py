"""A request for text and its answer, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

from trtllm_client._errors import InvalidRequest
from trtllm_client._metrics import PerfMetrics

INT32_MAX = 2**31 - 1
# Numbers travel as 32-bit floats.
FLOAT32_MAX = (2 - 2**-23) * 2.0**127

GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar")
"""What a text can be kept to, by TensorRT-LLM's names."""

# Not any sequence: a text is one of its own letters.
Words = tuple[str, ...] | list[str]


@dataclass(frozen=True)
class GenerateRequest:
    """What to generate; every name but ``prompt`` is that of a tensor of the wire contract.

    None leaves a value to the server.

    Attributes:
        prompt: The text to continue; bytes must be UTF-8. An empty one works where the tokenizer
            begins every text with a token of its own (bos).
        max_tokens: Tokens to generate, at most.
        temperature: Divides the logits; 0 and top_k 1 are greedy.
        top_k: Samples from the k most likely tokens.
        top_p: Samples from the most likely tokens that hold this probability mass, 0 to 1.
        stop_words: Ends the text at the first of these. Whether it is part of the text is the
            model's to say: its parameter ``include_stop_str_in_output``.
        bad_words: Texts that must not be generated.
        seed: Makes sampling repeatable.
        repetition_penalty: Divides the score of tokens already used; 1 is none.
        presence_penalty: Subtracted once from the score of tokens already used, also in the
            prompt; refused on the CPU (docs/sampling.md).
        frequency_penalty: Subtracted per use, likewise.
        length_penalty: Exponent of the length in beam search.
        min_tokens: Tokens to generate before the end token counts.
        end_id: The token that ends the text; -1 is none.
        pad_id: The token that fills unused places.
        guided_decoding_guide_type: What kind of guide the text must follow: ``json`` (any object or
            array), ``json_schema``, ``regex`` or ``ebnf_grammar``. The server needs guided
            decoding.
        guided_decoding_guide: The schema as JSON, the expression, or the grammar, whose first rule
            is called root; not for ``json``.
        lora_task_id: The LoRA adapter that answers, by its number in the recipe's list; None is the
            model alone.
        num_draft_tokens: How many tokens a draft model guesses at a time, which changes no text;
            None guesses none. The server needs a draft model.
        add_special_tokens: Whether the prompt gets what the tokenizer puts around a text, such as
            bos; false for a text that has all of it, as a rendered chat template does. None is the
            server's setting. Servers with NVIDIA's own preprocessing have no such input and refuse
            it.
        exclude_input_in_output: Whether the answer leaves out the prompt.
        return_log_probs: Whether the answer has the log probability of each token.
        return_num_tokens: Whether the answer has the number of prompt and generated tokens.
        return_perf_metrics: Whether the answer has what the request cost.
        request_id: Names the request in the server's log; must be unique among those running. None
            lets the client choose one.
    """

    prompt: str | bytes
    max_tokens: int | None = 64
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop_words: Words = ()
    bad_words: Words = ()
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    min_tokens: int | None = None
    end_id: int | None = None
    pad_id: int | None = None
    guided_decoding_guide_type: str | None = None
    guided_decoding_guide: str | bytes | None = None
    lora_task_id: int | None = None
    num_draft_tokens: int | None = None
    add_special_tokens: bool | None = None
    exclude_input_in_output: bool | None = None
    return_log_probs: bool = False
    return_num_tokens: bool = True
    return_perf_metrics: bool = False
    request_id: str | None = None

    def validate(self) -> None:
        """Refuses what no server could answer.

        Raises:
            InvalidRequest: Naming the field, its value and the values allowed.
        """
        _check_text("prompt", self.prompt)
        _check_int("max_tokens", self.max_tokens, 1, INT32_MAX, required=True)
        _check_int("min_tokens", self.min_tokens, 0, self.max_tokens or 0)
        _check_int("top_k", self.top_k, 0, INT32_MAX)
        _check_int("seed", self.seed, 0, 2**64 - 1)
        _check_int("end_id", self.end_id, -1, INT32_MAX)
        _check_int("pad_id", self.pad_id, -1, INT32_MAX)
        _check_float("temperature", self.temperature, 0.0, math.inf)
        _check_float("top_p", self.top_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, math.inf)
        if self.repetition_penalty == 0:
            raise InvalidRequest("repetition_penalty must be above 0, not 0; 1 is no penalty")
        _check_float("length_penalty", self.length_penalty, 0.0, math.inf)
        for name in ("presence_penalty", "frequency_penalty"):
            _check_float(name, getattr(self, name), -math.inf, math.inf)
        _check_words("stop_words", self.stop_words)
        _check_words("bad_words", self.bad_words)
        _check_int("lora_task_id", self.lora_task_id, 0, 2**64 - 1)
        _check_int("num_draft_tokens", self.num_draft_tokens, 0, INT32_MAX)
        if self.add_special_tokens not in (None, True, False):
            raise InvalidRequest(
                f"add_special_tokens must be true or false, not {self.add_special_tokens!r}"
            )
        _check_guide(self.guided_decoding_guide_type, self.guided_decoding_guide, self.min_tokens)
        if self.request_id is not None:
            if not isinstance(self.request_id, str) or not self.request_id:
                raise InvalidRequest(f"request_id must be a text, not {self.request_id!r}")
            _check_text("request_id", self.request_id)


class SamplingOptions(TypedDict, total=False):
    """The fields of :class:`GenerateRequest` after its prompt, as keyword arguments."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    stop_words: Words
    bad_words: Words
    seed: int | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    length_penalty: float | None
    min_tokens: int | None
    end_id: int | None
    pad_id: int | None
    guided_decoding_guide_type: str | None
    guided_decoding_guide: str | bytes | None
    lora_task_id: int | None
    num_draft_tokens: int | None
    add_special_tokens: bool | None
    exclude_input_in_output: bool | None
    return_log_probs: bool
    return_num_tokens: bool
    return_perf_metrics: bool
    request_id: str | None


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the texts of all pieces joined are the whole text.

    Attributes:
        text: The new text; may be empty while a character or a stop word is undecided.
        index: 0 for the first piece.
        is_final: Whether the server said that this is the last one. A server may say so in a
            message of its own without text, so the end of the iteration is what counts.
        cum_log_probs: Sum of the log probabilities (natural logarithm) so far, if asked for.
        output_log_probs: Log probabilities of the tokens new with this piece, if asked for.
        num_input_tokens: Tokens of the prompt, if asked for.
        num_output_tokens: Tokens new with this piece, if asked for.
        perf_metrics: What the request has cost by now, if asked for.
        finish_reason: Why the text ended, with the last piece of a server that says it; Triton's
            models do not.
    """

    text: str
    index: int
    is_final: bool
    cum_log_probs: float | None = None
    output_log_probs: tuple[float, ...] | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    perf_metrics: PerfMetrics | None = None
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer.

    Attributes:
        text: The generated text.
        request_id: The id the request ran under.
        finish_reason: ``length`` when max_tokens were generated, ``stop`` when the text ended
            before (end token or stop word), None when the server did not count tokens.
        cum_log_probs: Sum of the log probabilities (natural logarithm), if asked for.
        output_log_probs: Log probability of each generated token, if asked for.
        num_input_tokens: Tokens of the prompt, if asked for.
        num_output_tokens: Tokens generated, if asked for.
        perf_metrics: What the request cost, if asked for.
    """

    text: str
    request_id: str
    finish_reason: Literal["stop", "length"] | None = None
    cum_log_probs: float | None = None
    output_log_probs: tuple[float, ...] | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    perf_metrics: PerfMetrics | None = None


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str | bytes):
        raise InvalidRequest(f"{name} must be text, not {type(value).__name__}")
    try:
        if isinstance(value, bytes):
            value.decode()
        else:
            value.encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InvalidRequest(
            f"{name} is not valid UTF-8",
            why=f"{error.reason} at position {error.start}",
            fix="Convert the text to UTF-8 first, for example with iconv",
        ) from error


def _check_words(name: str, words: object) -> None:
    if isinstance(words, str | bytes):
        raise InvalidRequest(f"{name} must be a list of texts, not one text")
    # They are read twice, here and when they are sent, which a generator would not survive.
    if not isinstance(words, tuple | list):
        raise InvalidRequest(f"{name} must be a list of texts, not {type(words).__name__}")
    for word in words:
        _check_text(name, word)
        if not word:
            raise InvalidRequest(f"{name} has an empty text", fix="Leave it out")


def _check_guide(kind: object, guide: object, min_tokens: object) -> None:
    """Refuses a guide that a server would leave out, or could not follow.

    TensorRT-LLM's backend takes no notice of a type that it does not know, nor of a guide without
    one (``getGuidedDecodingParamsFromTensors``).
    """
    if kind is None:
        if guide is not None:
            raise InvalidRequest(
                "guided_decoding_guide needs guided_decoding_guide_type",
                fix=f"Set it to one of {', '.join(GUIDE_TYPES)}",
            )
        return
    if kind not in GUIDE_TYPES:
        known = ", ".join(GUIDE_TYPES)
        raise InvalidRequest(f"guided_decoding_guide_type must be one of {known}, not {kind!r}")
    if kind == "json":
        if guide is not None:
            raise InvalidRequest(
                "guided_decoding_guide means nothing for the type json",
                fix="Use the type json_schema for a schema",
            )
    else:
        _check_text("guided_decoding_guide", guide)
        if not guide:
            raise InvalidRequest(f"guided_decoding_guide is empty; {kind} needs one")
    if min_tokens:
        raise InvalidRequest(
            "min_tokens does not go with a guide, which decides where the text may end",
            fix="Leave one of them out",
        )


def _check_int(name: str, value: object, low: int, high: int, *, required: bool = False) -> None:
    if value is None and not required:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"{name} must be a whole number, not {value!r}")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}")


def _check_float(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    # Written so that NaN is refused too.
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not abs(value) <= FLOAT32_MAX
    ):
        raise InvalidRequest(f"{name} must be a finite 32-bit number, not {value!r}")
    if not low <= value <= high:
        limits = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise InvalidRequest(f"{name} must be {limits}, not {value:g}")

"""What a check is and what it gets to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.engine_client.connect import connect_async, speaks_openai
from pipeline.engine_client.interface import AsyncTextClient, TextClient
from pipeline.source.probes import Probes
from pipeline.triton.contract import (
    BLS,
    BLS_UNARY,
    CPP_BACKEND,
    ENGINE,
    ENSEMBLE,
    PREPROCESSING,
    answering_model,
)
from pipeline.verify.requests import NO_END
from trtllm_client import Chunk, Completion, InvalidRequest, Tls

if TYPE_CHECKING:
    from pipeline.engine_client.openai_client import OpenAiClient
    from trtllm_client import Client

Details = dict[str, Any]
Result = TypeVar("Result")
TRUE = ("true", "yes", "1", "t")
_FEWEST = 16
_UNLIMITED = 2**31

DECODES_PIECES = "the ensemble decodes each piece of a stream by itself, as NVIDIA's does"


class CheckFailed(Exception):  # noqa: N818 -- not an error of the program
    """The server does not do what the check proves."""

    def __init__(self, reason: str, **details: Any) -> None:
        super().__init__(reason)
        self.details = details


class CheckSkipped(Exception):  # noqa: N818 -- not an error of the program
    """The check could not be exercised on this server."""


PLAIN = (
    "Once upon a time",
    "The old man looked at the sea and",
    "My friend has a dog. The dog",
    "In the morning the sun",
)


@dataclass(frozen=True)
class Plan:
    """What the checks ask for.

    Attributes:
        prompts: Their greedy continuations are compared.
        multibyte_prompts: Prompts that lead to characters of several bytes.
        plain_prompts: Texts without special tokens, for what a chat template's output cannot show.
        numbered: By prompt, two others like it; those of other prompts have a number behind them.
        closing: What the chat template puts behind an answer; empty where none is used.
        said: What is asked, in words, for reports.
        max_tokens: Tokens per answer where the length does not matter.
        long_tokens: Tokens of a request that must still run while others come and go.
        streams: Streams that are open together.
        patience: Seconds until a request counts as hanging.
    """

    prompts: tuple[str, ...] = PLAIN
    multibyte_prompts: tuple[str, ...] = (
        "😀 😃 😄 😀 😃 😄 😀 😃",
        "é è ü ö ñ é è ü ö ñ é è",
        "漢字 漢字 漢字 漢字",
        "“Très bien!” said Zoë. “Très",
    )
    plain_prompts: tuple[str, ...] = PLAIN
    numbered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    closing: str = ""
    said: str = "plain texts"
    max_tokens: int = 32
    long_tokens: int = 400
    streams: int = 32
    patience: float = 120.0

    def varied(self, prompt: str, number: int = 0) -> str:
        """Returns another prompt like one of the prompts, a little longer: the first or second."""
        return self.numbered[prompt][number] if prompt in self.numbered else f"{prompt} {number}"

    @property
    def longest_prompts(self) -> tuple[str, ...]:
        """The prompts as a check lengthens them."""
        return tuple(map(self.varied, self.prompts))


@dataclass(frozen=True)
class Context:
    """A server under test.

    Attributes:
        url: Its address.
        model: The Triton model that takes the requests.
        plan: What to ask for.
        client: Connected to it; does not check requests, so that the server has to.
        tls: Certificates.
        headers: gRPC metadata sent with every call.
        probes: What the model's own tokenizer gives for some texts; None where it is not known.
        accumulates: Whether each response of a stream was seen to hold the whole text so far.
        tolerance: How much a log probability may differ between two right runs of one request;
            None where their texts must be equal.
        longest_prompt: Of all that a check makes of the prompts, the one of most tokens.
        near_ties: Where texts differed and that was allowed; filled by the checks.
        http: The server's HTTP address; empty where it is not known.
        metrics: The address of its metrics; empty where it is not known.
    """

    url: str
    model: str
    plan: Plan
    client: TextClient
    tls: Tls | None = None
    headers: Mapping[str, str] | None = None
    probes: Probes | None = None
    accumulates: bool = False
    tolerance: float | None = None
    longest_prompt: str = ""
    near_ties: list[str] = field(default_factory=list)
    http: str = ""
    metrics: str = ""

    @property
    def on_triton(self) -> bool:
        """Whether it is a Triton server; otherwise one with OpenAI's API."""
        return not speaks_openai(self.url)

    @property
    def triton(self) -> Client:
        """The client of a Triton server, for what only tensors can say."""
        return cast("Client", self.client)

    @property
    def openai(self) -> OpenAiClient:
        """The client of a server with OpenAI's API, for what only such a server is asked."""
        return cast("OpenAiClient", self.client)

    @property
    def tokenizes(self) -> bool:
        """Whether the server says which tokens a text has."""
        return not self.on_triton or self.has(PREPROCESSING)

    @property
    def slots(self) -> int | None:
        """Requests that the engine generates at once; None where the server does not say."""
        if self.on_triton and not self.has(ENGINE):
            return None
        engine = self.client.model_metadata(ENGINE if self.on_triton else None)
        return engine.max_batch_size or None

    def greedy(self, prompt: str, max_tokens: int | None = None, **fields: Any) -> Completion:
        """The most likely continuation, in one response."""
        return self.client.generate(
            prompt,
            max_tokens=max_tokens or self.plan.max_tokens,
            **{"top_k": 1, **self.scores, **fields},
        )

    def streamed(self, prompt: str, max_tokens: int | None = None, **fields: Any) -> list[Chunk]:
        """The pieces of the most likely continuation."""
        asked = {"top_k": 1, **self.scores, **fields}
        with self.client.stream(
            prompt, max_tokens=max_tokens or self.plan.max_tokens, **asked
        ) as stream:
            return list(stream)

    @property
    def scores(self) -> dict[str, bool]:
        """What asks for log probabilities, where texts are not compared letter by letter."""
        return {"return_log_probs": True} if self.tolerance is not None else {}

    def has(self, model: str) -> bool:
        """Whether the server has a model."""
        try:
            self.client.model_metadata(model)
        except InvalidRequest:
            return False
        return True

    def decoupled(self, model: str | None = None) -> bool:
        """Whether a request to a model, the one under test if none is named, may be streamed."""
        return self.client.model_metadata(answering_model(model or self.model)).decoupled

    def text_models(self) -> list[str]:
        """The text models of the server by name, the one under test first."""
        names = dict.fromkeys((self.model, BLS, ENSEMBLE, BLS_UNARY))
        return [name for name in names if self.has(name)]

    def declared(self, parameter: str, model: str | None = None) -> str | None:
        """A parameter from a model's ``config.pbtxt``, the one under test if none is named."""
        return dict(self.client.model_metadata(model).parameters).get(parameter)

    @property
    def most_requests(self) -> int:
        """Prompts that the model under test takes at once; each of a batch counts."""
        declared = self.declared("max_concurrent_requests") or ""
        return int(declared) if declared.isdecimal() else _UNLIMITED

    @property
    def normalizes_log_probs(self) -> bool:
        """Whether log probabilities are relative to the tokens that could be sampled.

        The C++ backend does so where its config.pbtxt does not say (model_instance_state.cc).
        """
        if not self.has(ENGINE):
            return False
        engine = self.client.model_metadata(ENGINE)
        default = "true" if engine.backend == CPP_BACKEND else "false"
        return dict(engine.parameters).get("normalize_log_probs", default).lower() in TRUE

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest answer that the server gives to any prompt, up to the plan's.

        A server may refuse more, or cut the answer short.

        Raises:
            CheckSkipped: It refuses an answer of 16 tokens.
        """

        def ask(tokens: int) -> int:
            answer = self.greedy(
                self.longest_prompt or self.plan.longest_prompts[0], tokens, end_id=NO_END
            )
            return min(answer.num_output_tokens or tokens, tokens)

        return as_long_as_accepted(self.plan.long_tokens, ask)

    @cached_property
    def answers_once(self) -> bool:
        """Whether the model gives one response per request, so that nothing can be streamed."""
        return self.has(answering_model(self.model)) and not self.decoupled()

    def needs_streams(self) -> None:
        """Skips the check on a model that answers once."""
        if self.answers_once:
            raise CheckSkipped(
                f"{self.model} answers once per request (serve.decoupled), so it cannot stream"
            )

    def async_client(self) -> AsyncTextClient:
        """A second connection, for many streams at once."""
        return connect_async(
            self.url,
            model=self.model,
            timeout=self.plan.patience,
            stall_timeout=self.plan.patience,
            tls=self.tls,
            headers=self.headers,
            validate=False,
            accumulate_tokens=self.accumulates,
        )

    @property
    def is_bare(self) -> bool:
        """Whether wrong values reach TensorRT-LLM's executor, which some of them end for everyone.

        A ``beam_width`` above the engine's fails there inside a step, which ends all that run
        (``changeBeamWidth`` in batch_manager/trtGptModelInflightBatching.cpp). NVIDIA's own
        ``preprocessing`` has no such input; this project's has, and refuses it.
        """
        if not self.on_cpp_backend:
            return False
        if not self.has(PREPROCESSING):
            return True
        inputs = self.client.model_metadata(PREPROCESSING).inputs
        return "BEAM_WIDTH" not in {tensor.name for tensor in inputs}

    @property
    def on_cpp_backend(self) -> bool:
        """Whether the server says that TensorRT-LLM's C++ backend runs the engine."""
        return self.has(ENGINE) and self.client.model_metadata(ENGINE).backend == CPP_BACKEND

    def needs_bls(self, reason: str) -> None:
        """Skips the check on other models than ``tensorrt_llm_bls`` and its twin."""
        if not self.is_bls:
            raise CheckSkipped(reason)

    @property
    def is_bls(self) -> bool:
        """Whether the model is ``tensorrt_llm_bls``, its twin that answers once, or one that keeps
        texts whole as they do."""
        return not self.on_triton or self.model in (BLS, BLS_UNARY)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: Its name in reports.
        asks: What is asked of the server, in words.
        proves: What holds when it passes, as a sentence.
        run: Returns what it saw; raises CheckFailed, CheckSkipped or a ClientError.
        thorough: Whether it takes long or loads the server, so that it only runs when all are
            asked for, or it by its name.
        tensors: Whether it is about Triton's models and their tensors, which a server with
            OpenAI's API does not have.
    """

    name: str
    asks: str
    proves: str
    run: Callable[[Context], Details]
    thorough: bool = False
    tensors: bool = False


def check(
    proves: str, *, asks: str, thorough: bool = False, tensors: bool = False
) -> Callable[[Callable[[Context], Details]], Check]:
    """Makes a check of a function, under its own name; see :class:`Check`."""

    def make(function: Callable[[Context], Details]) -> Check:
        return Check(function.__name__, asks, proves, function, thorough, tensors)

    return make


def as_long_as_accepted(tokens: int, ask: Callable[[int], Result], fewest: int = _FEWEST) -> Result:
    """Asks for so many tokens, and for half as many for as long as the server refuses that.

    Raises:
        CheckSkipped: It refuses even ``fewest``.
    """
    if tokens < fewest:
        raise CheckSkipped(f"not exercised: the engine accepts no answer of {fewest} tokens")
    try:
        return ask(tokens)
    except InvalidRequest:
        return as_long_as_accepted(tokens // 2, ask, fewest)


def first_difference(expected: str, got: str) -> str:
    """Where two texts part, for a failure's reason."""
    place = next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    start = max(place - 12, 0)
    return (
        f"at character {place}: expected {expected[start : place + 12]!r}, "
        f"got {got[start : place + 12]!r}"
    )

"""What a recipe says of the conformance checks."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from pipeline.recipe.section import FileName, Section, Unit

# As pipeline.verify has them, which brings the client; a plan can do without that.
CheckName = Literal[
    "readiness",
    "wire_contract",
    "own_tokenizer",
    "begins_once",
    "output_shapes",
    "greedy_determinism",
    "stream_equals_whole",
    "utf8_across_tokens",
    "ensemble_equals_bls",
    "max_tokens",
    "border",
    "batch_of_two",
    "empty_prompt",
    "accumulate_tokens",
    "end_token",
    "end_ids",
    "stop_words",
    "stop_word_kept",
    "log_probs",
    "perf_metrics",
    "interleaved_streams",
    "cancel_frees_slot",
    "stop_request",
    "unary_call",
    "request_parameters",
    "old_names",
    "bad_inputs",
]


class VerifySection(Section):
    """What the conformance checks ask of the served repository.

    Attributes:
        only: The checks to run, by the names that every report of them has; an empty list runs
            all. The others count as skipped.
        skip: The checks to leave out, by name. Reports list them as skipped, never as passed.
        prompts: Prompts in the place of the built-in ones: a file with a prompt a line, or a
            ``.jsonl`` file of objects with ``prompt`` or ``messages``, relative to the recipe. Two
            different ones at least.
        tolerance: How close the log probabilities of two tokens are where texts may part; None is
            0.25 with TensorRT-LLM's backend, and demands equal texts of any other.
        strict: Whether equal texts are demanded of any server.
    """

    only: list[CheckName] = Field(default=[])
    skip: list[CheckName] = Field(default=[])
    prompts: FileName | None = None
    tolerance: Annotated[
        Annotated[float, Field(gt=0.0)] | None, Unit("difference of natural logarithms")
    ] = None
    strict: bool = False

    @model_validator(mode="after")
    def _something_to_check(self) -> VerifySection:
        if self.strict and self.tolerance is not None:
            msg = "strict and tolerance exclude each other; remove one: strict demands equal texts"
            raise ValueError(msg)
        if not set(self.only or get_args(CheckName)) - set(self.skip):
            msg = "no check is left to run; name one in only that is not skipped, or skip fewer"
            raise ValueError(msg)
        return self

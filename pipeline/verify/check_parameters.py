"""Does each model take each of its inputs, and refuse what is wrong with it by its name?"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.triton.contract import (
    BLS,
    BLS_UNARY,
    ENGINE,
    ENSEMBLE,
    MODELS,
    PREPROCESSING,
    Tensor,
    scoring_prompts,
)
from pipeline.verify.cases import (
    ASKED_TOKENS,
    ENGINE_ALONE,
    ENGINE_CASES,
    ON_ENGINE,
    TEXT_CASES,
    Case,
    Got,
)
from pipeline.verify.check import Check, CheckFailed, CheckSkipped, Context, Details
from pipeline.verify.requests import Value, engine_inputs, number_of, text_inputs, text_of
from pipeline.verify.tokens import generated_ids, token_ids
from trtllm_client import ClientError, InvalidRequest, Tensors, new_message

_CODES = {
    "INT32": "i", "INT64": "q", "UINT64": "Q", "UINT8": "B", "FP32": "f", "FP16": "e", "BOOL": "?",
}  # fmt: skip
_ANOTHER_TYPE = {"INT32": "INT64", "FP16": "FP32"}
_ATTEMPTS = 3
# Other names, on the engine, of inputs that go with one that has the same name everywhere.
_HERE = {"top_k": "runtime_top_k"}
_NOT_HERE = "no input of it"
Inputs = Mapping[str, tuple[Sequence[Value], Sequence[int]]]


@dataclass
class _Tally:
    """What became of one group of inputs.

    Attributes:
        seen: By model and input, what was said to the right value and to wrong ones.
        wrong: What was not as it must be.
        left: Why a right value was not put to the test, or not taken.
        right: How many right values were.
    """

    seen: dict[str, dict[str, Any]]
    wrong: list[str]
    left: dict[str, None]
    right: int = 0


def parameter_checks() -> Iterator[Check]:
    """Makes a check for each input of the text models, and for those of the engine alone."""
    for name, case in TEXT_CASES.items():
        on_engine = ON_ENGINE.get(name, (name,))
        wrong = "; ".join(("another type", *(_shown(values) for values in case.bad)))
        yield Check(
            f"input_{name}",
            f"{_value(case)} on the text models and the engine; {wrong}",
            f"{name}: {case.must}; wrong ones are refused by name",
            partial(_run, (name,), on_engine),
            thorough=True,
            tensors=True,
        )
    for name, tensors in ENGINE_ALONE.items():
        yield Check(
            f"engine_{name}",
            f"{', '.join(tensors)} of tensorrt_llm; another type of each",
            f"{name}: answered, or refused with a reason; another type is refused by name",
            partial(_run, (), tensors),
            thorough=True,
            tensors=True,
        )


def _value(case: Case) -> str:
    if callable(case.good):
        return "one made of the answer"
    return _shown(case.good) if case.good else "the prompt"


def _shown(values: Sequence[Value]) -> str:
    return ", ".join(repr(value) for value in values)


def _run(text: Sequence[str], engine: Sequence[str], context: Context) -> Details:
    """Each input on each model that has it."""
    tally = _Tally({}, [], {})
    for model in (BLS, ENSEMBLE, BLS_UNARY):
        for name in text if context.has(model) else ():
            _try(context, model, TEXT_CASES[name], tally)
    if context.has(ENGINE) and context.has(PREPROCESSING):
        for name in engine:
            _try(context, ENGINE, ENGINE_CASES[name], tally)
    elif engine:
        tally.left[f"the server has no {ENGINE} and {PREPROCESSING}"] = None
    if tally.wrong:
        raise CheckFailed("; ".join(tally.wrong), models=tally.seen)
    if not tally.right:
        first, *others = tally.left
        more = f" (and {len(others)} reasons more like it)" if others else ""
        raise CheckSkipped(f"not exercised: {first}{more}")
    return {"models": tally.seen}


def _try(context: Context, model: str, case: Case, tally: _Tally) -> None:
    """A right value, another type and the wrong values of one input of one model."""
    seen = tally.seen.setdefault(model, {})
    declared = {tensor.name for tensor in context.client.model_metadata(model).inputs}
    if case.name not in declared:
        tally.left[f"{model} has no input {case.name}"] = None
        seen[case.name] = _NOT_HERE
        return
    bare = context.is_bare or (model == ENGINE and context.on_cpp_backend)
    said: dict[str, Any] = {"right": _right(context, model, case, tally, bare=bare)}
    tensor = _tensors(model)[case.name]
    another = _ANOTHER_TYPE.get(_type(tensor), "INT32")
    shape = _shape(tensor)
    values = [1] * math.prod(shape)
    plain = _plain_inputs(context, model)
    wrong = {f"as {another}": (plain | {case.name: (values, shape)}, {case.name: another})}
    if not (bare and case.guarded):
        for value in case.bad:
            wrong[_shown(value)] = (plain | {case.name: (value, [1, len(value)])}, {})
    said["wrong"] = {}
    for what, (inputs, types) in wrong.items():
        where = f"{model}: {case.name} {what}"
        try:
            got = _ask(context, model, inputs, types)
        except InvalidRequest as error:
            said["wrong"][what] = error.what
            # What TensorRT-LLM's own assertions say is not this repository's to word.
            if case.name not in str(error) and not bare:
                tally.wrong.append(f"{where}: the refusal does not name it: {error.what}")
        except ClientError as error:
            said["wrong"][what] = error.what
            if not bare:
                tally.wrong.append(f"{where}: {type(error).__name__}: {error.what}")
        else:
            tally.wrong.append(f"{where} was answered with {got.text!r}")
    seen[case.name] = said


def _right(context: Context, model: str, case: Case, tally: _Tally, *, bare: bool) -> str:
    """What became of the right value; where texts may part at a near tie it gets three chances."""
    if case.risky and bare:
        why = f"{model}: {case.name} may end everybody's requests there, so it was not sent"
        tally.left[why] = None
        return why
    if case.name in ("stream", "streaming") and not context.decoupled(model):
        tally.left[f"{model} answers once per request (serve.decoupled)"] = None
        return "answers once"
    for _ in range(1 if context.tolerance is None else _ATTEMPTS):
        plain = _plain(context, model)
        inputs = _right_inputs(context, model, case, plain)
        if inputs is None:
            why = f"the answer {plain.text!r} has no value for {case.name}"
            tally.left[why] = None
            return why
        try:
            got = _ask(context, model, inputs) if inputs else plain
            expected = _ask(context, model, inputs) if case.twice else plain
        except InvalidRequest as error:
            if case.offered:
                tally.wrong.append(f"{model}: {case.name} was refused: {error.what}")
            else:
                tally.left[f"{model}: {error.what}"] = None
            return f"refused: {error.what}"
        except ClientError as error:
            tally.wrong.append(f"{model}: {case.name}: {type(error).__name__}: {error.what}")
            return error.what
        pieces_only = model == ENSEMBLE and case.name == "stream"  # each decoded by itself
        if case.holds(expected, got) or (pieces_only and got.text):
            tally.right += 1
            return f"answered: {case.must}"
    tally.wrong.append(
        f"{model}: {case.name} must be so that {case.must}, but the answer is {got.text!r}, and "
        f"{expected.text!r} {'the first time' if case.twice else 'without it'}"
    )
    return "answered otherwise"


def _right_inputs(context: Context, model: str, case: Case, plain: Got) -> Inputs | None:
    """The request with the right value; empty where it is the plain one, None if none is known."""
    tensors = _tensors(model)
    given = {case.name: case.good, **case.beside}
    inputs = dict(_plain_inputs(context, model))
    for name, value in given.items():
        values = value(plain) if callable(value) else value
        if values is None:
            return None
        if not values:
            return {}
        shape = case.shape if name == case.name else None
        here = name if name in tensors else _HERE.get(name, name)
        if here in tensors:
            inputs[here] = (values, list(shape or [1, len(values)]))
    return inputs


def _plain_inputs(context: Context, model: str) -> dict[str, tuple[Sequence[Value], Sequence[int]]]:
    prompt = context.plan.prompts[0]
    if model == ENGINE:
        inputs = engine_inputs(
            token_ids(context, prompt),
            ASKED_TOKENS,
            stream=False,
            exclude_input_in_output=True,
            return_num_output_tokens=True,
        )
    else:
        inputs = text_inputs([prompt], ASKED_TOKENS, stream=False, return_num_output_tokens=True)
    return {name: (values, [1, len(values)]) for name, values in inputs.items()}


def _plain(context: Context, model: str) -> Got:
    got = _ask(context, model, _plain_inputs(context, model))
    if model != ENGINE and context.has(ENGINE) and context.has(PREPROCESSING):
        ids = generated_ids(context, context.plan.prompts[0], ASKED_TOKENS)
        return replace(got, ids=tuple(ids))
    return got


def _ask(
    context: Context, model: str, inputs: Inputs, types: Mapping[str, str] | None = None
) -> Got:
    message = new_message(model)
    tensors = _tensors(model)
    for name, (values, shape) in inputs.items():
        datatype = (types or {}).get(name) or _type(tensors[name])
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(_raw(datatype, values))
    responses = list(context.triton.responses(message, timeout=context.plan.patience))
    return _got(model, responses, accumulates=context.accumulates)


def _got(model: str, responses: list[Tensors], *, accumulates: bool) -> Got:
    counts = [
        number_of(one, "num_output_tokens") for one in responses if "num_output_tokens" in one
    ]
    count = sum(counts) if counts else None
    if model != ENGINE:
        texts = [text_of(one) for one in responses]
        whole = next(filter(None, reversed(texts)), "") if accumulates else "".join(texts)
        return Got(whole, count, responses)
    ids: list[int] = []
    for one in responses:
        length = number_of(one, "sequence_length")
        ids += [int(token) for token in one["output_ids"].values[:length]] if length else []
    return Got(" ".join(map(str, ids)), len(ids), responses, tuple(ids))


def _tensors(model: str) -> dict[str, Tensor]:
    contract = MODELS.get(model, MODELS[BLS])
    if model == ENGINE:
        contract = scoring_prompts(contract)
    return {tensor.name: tensor for tensor in contract.inputs}


def _type(tensor: Tensor) -> str:
    return tensor.data_type.removeprefix("TYPE_").replace("STRING", "BYTES")


def _shape(tensor: Tensor) -> list[int]:
    return [1, *(1 if size < 0 else size for size in tensor.dims)]


def _raw(datatype: str, values: Sequence[Value]) -> bytes:
    if datatype != "BYTES":
        return struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)
    encoded = [value.encode() if isinstance(value, str) else bytes(value) for value in values]  # type: ignore[arg-type]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)

"""Does what arrives have the types and shapes that NVIDIA's clients read?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from pipeline.triton.contract import ENGINE, MODELS, POSTPROCESSING, PREPROCESSING
from pipeline.verify.check import CheckFailed, Context, Details, check
from pipeline.verify.requests import (
    ALL_DETAILS,
    Value,
    decoding_request,
    engine_inputs,
    request,
    text_inputs,
)
from pipeline.verify.tokens import token_ids
from trtllm_client import PERF_METRICS, Tensors

_TOKENS = 6
# As they leave upstream's models, batch dimension included: a text is one element of one dimension
# (postprocessing/1/model.py, tensorrt_llm_bls), everything else has a batch and a beam in front
# (model_instance_state.cc, fillTritonResponse). -1 is any size.
_SHAPES: Mapping[str, tuple[int, ...]] = {
    "text_output": (1,),
    "OUTPUT": (1,),
    "output_ids": (1, 1, -1),
    "output_log_probs": (1, 1, -1),
    "INPUT_ID": (1, -1),
}
_ONE = (1, 1)
_WITH_EVERY_RESPONSE = (
    "cum_log_probs",
    "output_log_probs",
    "num_input_tokens",
    "num_output_tokens",
)
_PREPROCESSED = ("INPUT_ID", "REQUEST_INPUT_LEN", "REQUEST_OUTPUT_LEN", "OUT_END_ID", "OUT_PAD_ID")
_TIMES = (
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
)


@check(
    "every output arrives with the type and the shape that upstream's models give it",
    asks="one short answer, whole and streamed, of the text model and of the models behind it",
    tensors=True,
)
def output_shapes(context: Context) -> Details:
    """Raw responses of the text model and of the models behind it, streamed and whole."""
    problems: dict[str, None] = {}
    seen = 0
    for model, ask in _askers(context).items():
        for stream in (False, True) if context.decoupled(model) else (False,):
            needed = (
                ("text_output",) if model == context.model else ("output_ids", "sequence_length")
            )
            for tensors in ask(stream):
                seen += 1
                problems |= dict.fromkeys(_wrong(model, tensors, (*needed, *_WITH_EVERY_RESPONSE)))
    if context.has(PREPROCESSING):
        asked: dict[str, Sequence[Value]] = {
            "QUERY": [context.plan.prompts[0]],
            "REQUEST_OUTPUT_LEN": [_TOKENS],
        }
        tensors = context.triton.infer_tensors(request(PREPROCESSING, asked))
        kept = {name: tensor for name, tensor in tensors.items() if name in _PREPROCESSED}
        problems |= dict.fromkeys(_wrong(PREPROCESSING, kept, _PREPROCESSED))
    if context.has(PREPROCESSING) and context.has(POSTPROCESSING):
        ids = token_ids(context, context.plan.prompts[0])
        tensors = context.triton.infer_tensors(decoding_request([ids]))
        problems |= dict.fromkeys(_wrong(POSTPROCESSING, tensors, ("OUTPUT",)))
    if problems:
        raise CheckFailed("; ".join(list(problems)[:6]), problems=list(problems))
    return {"responses": seen}


@check(
    "return_perf_metrics gives all ten values with each response, and they are plausible",
    asks="a short answer with return_perf_metrics, of the text model and of the engine",
    tensors=True,
)
def perf_metrics(context: Context) -> Details:
    """What ``end_to_end_grpc_client.py --return-perf-metrics`` reads, streamed and whole.

    Upstream's executor puts the metrics into every response (``LlmRequest::createResult``), and
    NVIDIA's clients read all ten of each without asking whether they are there.
    """
    last: dict[str, float] = {}
    for model, ask in _askers(context).items():
        for stream in (False, True) if context.decoupled(model) else (False,):
            where = f"{model}, {'streamed' if stream else 'whole'}"
            started = time.monotonic()
            responses = ask(stream)
            elapsed = time.monotonic() - started
            for number, tensors in enumerate(responses, 1):
                missing = [n for n in PERF_METRICS if n not in tensors or not tensors[n].values]
                if missing:
                    raise CheckFailed(
                        f"{where}: response {number} of {len(responses)} lacks {', '.join(missing)}"
                    )
            last = {name: float(responses[-1][name].values[0]) for name in PERF_METRICS}
            if problem := _implausible(last, elapsed):
                raise CheckFailed(f"{where}: {problem}", metrics=last)
    return {"metrics": last}


def _askers(context: Context) -> dict[str, Callable[[bool], list[Tensors]]]:
    """By model: asks for everything a response may have, as a stream or not."""
    prompt = context.plan.prompts[0]

    def of_text(stream: bool) -> list[Tensors]:
        inputs = text_inputs([prompt], _TOKENS, stream=stream, **ALL_DETAILS)
        return list(context.triton.responses(request(context.model, inputs)))

    def of_engine(stream: bool) -> list[Tensors]:
        ids = token_ids(context, prompt)
        inputs = engine_inputs(ids, _TOKENS, stream=stream, **ALL_DETAILS)
        return list(context.triton.responses(request(ENGINE, inputs)))

    if context.has(ENGINE) and context.has(PREPROCESSING):
        return {context.model: of_text, ENGINE: of_engine}
    return {context.model: of_text}


def _wrong(model: str, tensors: Tensors, needed: tuple[str, ...]) -> list[str]:
    contract = MODELS.get(model)
    types = {tensor.name: tensor.data_type for tensor in contract.outputs} if contract else {}
    problems = [f"{model}: a response lacks {name}" for name in needed if name not in tensors]
    for name, tensor in tensors.items():
        datatype = types.get(name, "").removeprefix("TYPE_").replace("STRING", "BYTES")
        if datatype and tensor.datatype != datatype:
            problems.append(f"{model}: {name} arrived as {tensor.datatype}, not {datatype}")
        shape = _SHAPES.get(name, _ONE)
        fits = len(shape) == len(tensor.shape) and all(
            want in (-1, got) for want, got in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            shown = str(list(shape)).replace("-1", "n")
            problems.append(
                f"{model}: {name} arrived in the shape {list(tensor.shape)}, not {shown}"
            )
    return problems


def _implausible(metrics: Mapping[str, float], elapsed: float) -> str | None:
    """Why the metrics of a finished request cannot be right.

    Args:
        elapsed: Seconds from before the request was sent until after its end was read.
    """
    for earlier, later in pairwise(_TIMES):
        if not 0 < metrics[earlier] <= metrics[later]:
            return f"{earlier} {metrics[earlier]:.0f} is not before {later} {metrics[later]:.0f}"
    took = (metrics["last_token_time_ns"] - metrics["arrival_time_ns"]) / 1e9
    if took > elapsed:
        return f"{took:.3f} s from arrival to the last token, but the answer took {elapsed:.3f} s"
    new, reused, total = (
        metrics[f"kv_cache_{name}_blocks"] for name in ("alloc_new", "reused", "alloc_total")
    )
    if min(new, reused) < 0 or total + reused < 1 or new > total:
        return f"KV cache blocks: {new:.0f} new, {reused:.0f} reused, {total:.0f} allocated"
    accepted, drafted = metrics["total_accepted_draft_tokens"], metrics["total_draft_tokens"]
    if not 0 <= accepted <= drafted or not 0 <= metrics["acceptance_rate"] <= 1:
        return f"{accepted:.0f} of {drafted:.0f} draft tokens accepted"
    return None

"""Runs the checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from pipeline.engine_client.connect import connect, speaks_openai
from pipeline.engine_client.interface import TextClient
from pipeline.source.lines import Line
from pipeline.source.probes import Probes
from pipeline.triton.contract import BLS, CPP_BACKEND, ENGINE
from pipeline.verify.accumulation import seen_to_accumulate
from pipeline.verify.catalogue import CHECKS
from pipeline.verify.check import (
    Check,
    CheckFailed,
    CheckSkipped,
    Context,
    Plan,
    as_long_as_accepted,
)
from pipeline.verify.near_tie import TOLERANCE
from pipeline.verify.prompts import NO_TEMPLATE, built_in, fitting, given, template_of
from pipeline.verify.report import CheckResult, Report
from pipeline.verify.requests import NO_END
from pipeline.verify.selection import chosen_checks
from trtllm_client import Client, ClientError, InvalidRequest, Tls

_FIRST = "readiness"
_FEWEST_TOKENS = 8
Length = Callable[[str], int | None]
_UNREADY = "the server is not ready"
_NO_TENSORS = "it is about Triton's models and tensors, and this server has OpenAI's API"


def run_conformance(
    url: str,
    *,
    model: str = BLS,
    plan: Plan | None = None,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    thorough: bool = False,
    tolerance: float | None = None,
    strict: bool = False,
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    prompts: Sequence[Line] | None = None,
    left_out: str = "",
    http: str = "",
    metrics: str = "",
    probes: Probes | None = None,
    on_result: Callable[[CheckResult], None] = lambda _result: None,
) -> Report:
    """Runs the conformance checks against a server.

    Two runs of one greedy request must give the same text. Only where the server says that
    TensorRT-LLM's C++ backend runs the engine (``backend`` in the configuration of its model) may
    they part at a near tie; see :mod:`pipeline.verify.near_tie`.

    Args:
        url: ``host:port``, ``grpc://host:port`` or ``grpcs://host:port`` of Triton; ``http://`` or
            ``https://`` of a server with OpenAI's API.
        model: The model that takes the requests: ``tensorrt_llm_bls`` or ``ensemble``; with
            OpenAI's API the first of them stands for the server's only one.
        plan: What to ask for.
        only: Names of the checks to run; none is all, but for the thorough ones.
        skip: Names of the checks to leave out.
        thorough: Whether the thorough ones run too where none is named.
        tolerance: How much a log probability may differ between two right runs, natural logarithm;
            None is 0.25 with the C++ backend, and equal texts with any other.
        strict: Demands equal texts of every server.
        tls: Certificates.
        headers: gRPC metadata sent with every call.
        prompts: What to ask, texts and conversations; None asks the plan's own, or questions where
            the server says its chat template.
        left_out: Why the checks that are not chosen are left out, which the report then lists as
            skipped; an empty text leaves them out of the report.
        http: The server's HTTP address, such as ``http://127.0.0.1:8000``, where it is known.
        metrics: The address of its metrics, likewise.
        probes: What the model's own tokenizer gives for some texts; without it that is not checked.
        on_result: Called after each check.

    Raises:
        ConnectionFailed: Nothing answers at the address.
        UsageError: There is no check of a name in ``only`` or ``skip``, or a conversation among
            the prompts is one that the server's chat template does not take.
    """
    plan = plan or Plan()
    checks = chosen_checks(only, skip, thorough=thorough)

    def client_of(*, accumulates: bool) -> TextClient:
        return connect(
            url,
            model=model,
            timeout=plan.patience,
            stall_timeout=plan.patience,
            tls=tls,
            headers=headers,
            validate=False,
            # Not what the model says about itself: that is for a check of its own.
            accumulate_tokens=accumulates,
        )

    with client_of(accumulates=False) as client:
        server = client.metadata()
        model = client.model
        if not strict and tolerance is None and _differs_by_batch(client):
            tolerance = TOLERANCE
        # A server that is not ready is not asked for text.
        ready = client.is_ready()
        fitted, longest = _settled(plan, client, prompts) if ready else (plan, "")
        accumulates = (
            ready and isinstance(client, Client) and seen_to_accumulate(client, fitted.prompts[0])
        )
    with client_of(accumulates=accumulates) as client:
        context = Context(
            url,
            model,
            fitted,
            client,
            tls,
            headers,
            probes,
            accumulates,
            None if strict else tolerance,
            longest,
            http=http.rstrip("/"),
            metrics=metrics,
        )
        report = Report(
            client.url,
            model,
            f"{server.name} {server.version}",
            (),
            context.tolerance,
            prompts=fitted.said if ready else "",
        )
        results: list[CheckResult] = []
        for check in CHECKS.values():
            if check not in checks:
                if left_out and not check.thorough:
                    results.append(_skipped(check, left_out))
                continue
            unready = any(r.name == _FIRST and r.status == "failed" for r in results)
            if check.tensors and not context.on_triton:
                result = _skipped(check, _NO_TENSORS)
            else:
                result = _skipped(check, _UNREADY) if unready else _run(check, context)
            results.append(result)
            on_result(result)
    return replace(report, results=tuple(results))


def _differs_by_batch(client: TextClient) -> bool:
    """Whether the server says that its engine may compute the same in different ways.

    llama.cpp's own server says so of itself: logits are not guaranteed to be bit for bit identical
    for different batch sizes (tools/server/README.md, ``cache_prompt``).
    """
    if speaks_openai(client.url):
        return True
    try:
        return client.model_metadata(ENGINE).backend == CPP_BACKEND
    except ClientError:
        return False


def _settled(plan: Plan, client: TextClient, prompts: Sequence[Line] | None) -> tuple[Plan, str]:
    """What to ask of this server, as far as its engine has room, and the prompt of most tokens.

    Prompts of one's own are not left out; the checks say what the server says to them.
    """
    template, without = template_of(client)
    length: Length = cache(partial(_prompt_tokens, client))
    if prompts is not None:
        return _fitted(given(plan, prompts, template, without), client, length)[:2]
    if plan.prompts != Plan.prompts:
        return _fitted(plan, client, length)[:2]
    if template is not None:
        questions = fitting(built_in(plan, template), length)
        asked, longest, room = _fitted(questions, client, length)
        if room >= plan.max_tokens:
            return asked, longest
        without = "the server's chat template leaves too little room for answers"
    if without != NO_TEMPLATE:
        plan = replace(plan, said=f"{plan.said}: {without}")
    return _fitted(fitting(plan, length), client, length)[:2]


def _fitted(plan: Plan, client: TextClient, length: Length) -> tuple[Plan, str, int]:
    """The plan with answers as long as the engine has room, its longest prompt, and their length.

    The length is 0 where the server refuses even short ones; the checks say what it says to them.
    """
    longest = max(plan.longest_prompts, key=lambda prompt: length(prompt) or len(prompt))

    def ask(tokens: int) -> int:
        answer = client.generate(longest, max_tokens=tokens, top_k=1, end_id=NO_END)
        return min(answer.num_output_tokens or tokens, tokens)

    try:
        tokens = as_long_as_accepted(plan.max_tokens, ask, _FEWEST_TOKENS)
    except (CheckSkipped, ClientError):
        return plan, longest, 0
    return replace(plan, max_tokens=max(tokens, 1)), longest, tokens


def _prompt_tokens(client: TextClient, prompt: str) -> int | None:
    """How many tokens a prompt has, its length if that is not told, None if it is refused."""
    try:
        return client.generate(prompt, max_tokens=1, top_k=1).num_input_tokens or len(prompt)
    except InvalidRequest:
        return None
    except ClientError:
        return len(prompt)


def _skipped(check: Check, why: str) -> CheckResult:
    return CheckResult(check.name, check.proves, "skipped", 0.0, why)


def _run(check: Check, context: Context) -> CheckResult:
    started = time.monotonic()
    context.near_ties.clear()

    def result(status: str, reason: str | None = None, **details: object) -> CheckResult:
        seconds = round(time.monotonic() - started, 3)
        if context.near_ties:
            details["near_ties"] = list(context.near_ties)
        return CheckResult(check.name, check.proves, status, seconds, reason, details)  # type: ignore[arg-type]

    try:
        return result("passed", **check.run(context))
    except CheckFailed as failure:
        return result("failed", str(failure), **failure.details)
    except CheckSkipped as skip:
        return result("skipped", str(skip))
    except ClientError as error:
        return result("failed", str(error))

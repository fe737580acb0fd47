"""Runs the checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from pipeline.source.probes import Probes
from pipeline.triton.contract import BLS, CPP_BACKEND, ENGINE
from pipeline.verify.accumulation import seen_to_accumulate
from pipeline.verify.check import (
    Check,
    CheckFailed,
    CheckSkipped,
    Context,
    Plan,
    as_long_as_accepted,
)
from pipeline.verify.near_tie import TOLERANCE
from pipeline.verify.report import CheckResult, Report
from pipeline.verify.requests import NO_END
from pipeline.verify.selection import chosen_checks
from trtllm_client import Client, ClientError, InvalidRequest, Tls

_FIRST = "readiness"
_FEWEST_TOKENS = 8


def run_conformance(
    url: str,
    *,
    model: str = BLS,
    plan: Plan | None = None,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    tolerance: float | None = None,
    strict: bool = False,
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    probes: Probes | None = None,
    on_result: Callable[[CheckResult], None] = lambda _result: None,
) -> Report:
    """Runs the conformance checks against a server.

    Two runs of one greedy request must give the same text. Only where the server says that
    TensorRT-LLM's C++ backend runs the engine (``backend`` in the configuration of its model) may
    they part at a near tie; see :mod:`pipeline.verify.near_tie`.

    Args:
        url: ``host:port``, ``grpc://host:port`` or ``grpcs://host:port``.
        model: The Triton model that takes the requests: ``tensorrt_llm_bls`` or ``ensemble``.
        plan: What to ask for.
        only: Names of the checks to run; none is all.
        skip: Names of the checks to leave out.
        tolerance: How much a log probability may differ between two right runs, natural logarithm;
            None is 0.25 with the C++ backend, and equal texts with any other.
        strict: Demands equal texts of every server.
        tls: Certificates.
        headers: gRPC metadata sent with every call.
        probes: What the model's own tokenizer gives for some texts; without it that is not checked.
        on_result: Called after each check.

    Raises:
        ConnectionFailed: Nothing answers at the address.
        UsageError: There is no check of a name in ``only`` or ``skip``.
    """
    plan = plan or Plan()
    checks = chosen_checks(only, skip)

    def client_of(*, accumulates: bool) -> Client:
        return Client(
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
        if not strict and tolerance is None and _differs_by_batch(client):
            tolerance = TOLERANCE
        # A server that is not ready is not asked for text.
        ready = client.is_ready()
        accumulates = ready and seen_to_accumulate(client, plan.prompts[0])
        fitted, longest = _fitted(plan, client) if ready else (plan, "")
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
        )
        report = Report(client.url, model, f"{server.name} {server.version}", (), context.tolerance)
        results: list[CheckResult] = []
        for check in checks:
            unready = any(r.name == _FIRST and r.status == "failed" for r in results)
            result = _skipped(check) if unready else _run(check, context)
            results.append(result)
            on_result(result)
    return replace(report, results=tuple(results))


def _differs_by_batch(client: Client) -> bool:
    """Whether the server says that its engine may compute the same in different ways."""
    try:
        return client.model_metadata(ENGINE).backend == CPP_BACKEND
    except ClientError:
        return False


def _fitted(plan: Plan, client: Client) -> tuple[Plan, str]:
    """The plan as far as the engine has room for it, and its prompt of most tokens.

    Prompts of one's own are not left out; the checks say what the server says to them.
    """
    lengths = {prompt: _prompt_tokens(client, prompt) for prompt in plan.longest_prompts}
    fits = tuple(p for p, longer in zip(plan.prompts, lengths, strict=True) if lengths[longer])
    if plan.prompts == Plan.prompts and len(fits) > 1:
        plan = replace(plan, prompts=fits)
    longest = max(plan.longest_prompts, key=lambda prompt: lengths[prompt] or len(prompt))

    def ask(tokens: int) -> int:
        answer = client.generate(longest, max_tokens=tokens, top_k=1, end_id=NO_END)
        return min(answer.num_output_tokens or tokens, tokens)

    try:
        tokens = as_long_as_accepted(plan.max_tokens, ask, _FEWEST_TOKENS)
    except (CheckSkipped, ClientError):
        return plan, longest  # the checks will say what the server says
    return replace(plan, max_tokens=max(tokens, 1)), longest


def _prompt_tokens(client: Client, prompt: str) -> int | None:
    """How many tokens a prompt has, its length if that is not told, None if it is refused."""
    try:
        return client.generate(prompt, max_tokens=1, top_k=1).num_input_tokens or len(prompt)
    except InvalidRequest:
        return None
    except ClientError:
        return len(prompt)


def _skipped(check: Check) -> CheckResult:
    return CheckResult(check.name, check.proves, "skipped", 0.0, "the server is not ready")


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

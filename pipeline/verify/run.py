"""Runs the checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from pipeline.errors import UsageError
from pipeline.source.probes import Probes
from pipeline.triton.contract import BLS
from pipeline.verify.accumulation import seen_to_accumulate
from pipeline.verify.catalogue import CHECKS
from pipeline.verify.check import Check, CheckFailed, CheckSkipped, Context, Plan
from pipeline.verify.report import CheckResult, Report
from trtllm_client import Client, ClientError, Tls

_FIRST = "readiness"


def run_conformance(
    url: str,
    *,
    model: str = BLS,
    plan: Plan | None = None,
    only: Sequence[str] = (),
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    probes: Probes | None = None,
    on_result: Callable[[CheckResult], None] = lambda _result: None,
) -> Report:
    """Runs the conformance checks against a server.

    Args:
        url: ``host:port``, ``grpc://host:port`` or ``grpcs://host:port``.
        model: The Triton model that takes the requests: ``tensorrt_llm_bls`` or ``ensemble``.
        plan: What to ask for.
        only: Names of the checks to run; none is all.
        tls: Certificates.
        headers: gRPC metadata sent with every call.
        probes: What the model's own tokenizer gives for some texts; without it that is not checked.
        on_result: Called after each check.

    Raises:
        ConnectionFailed: Nothing answers at the address.
        UsageError: There is no check of a name in ``only``.
    """
    plan = plan or Plan()
    for name in only:
        if name not in CHECKS:
            raise UsageError(f"there is no check {name}", fix=f"Checks: {', '.join(CHECKS)}")

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
        # A server that is not ready is not asked for text.
        accumulates = client.is_ready() and seen_to_accumulate(client, plan.prompts[0])
    with client_of(accumulates=accumulates) as client:
        context = Context(url, model, plan, client, tls, headers, probes, accumulates)
        results: list[CheckResult] = []
        for check in CHECKS.values():
            if only and check.name not in only:
                continue
            unready = any(r.name == _FIRST and r.status == "failed" for r in results)
            result = _skipped(check) if unready else _run(check, context)
            results.append(result)
            on_result(result)
    return Report(client.url, model, f"{server.name} {server.version}", tuple(results))


def _skipped(check: Check) -> CheckResult:
    return CheckResult(check.name, check.proves, "skipped", 0.0, "the server is not ready")


def _run(check: Check, context: Context) -> CheckResult:
    started = time.monotonic()

    def result(status: str, reason: str | None = None, **details: object) -> CheckResult:
        seconds = round(time.monotonic() - started, 3)
        return CheckResult(check.name, check.proves, status, seconds, reason, details)  # type: ignore[arg-type]

    try:
        return result("passed", **check.run(context))
    except CheckFailed as failure:
        return result("failed", str(failure), **failure.details)
    except CheckSkipped as skip:
        return result("skipped", str(skip))
    except ClientError as error:
        return result("failed", str(error))

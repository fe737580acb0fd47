"""Starts the real server on the repository and runs the conformance checks over gRPC."""

from __future__ import annotations

import json
from typing import Any

from pipeline.client_errors import client_errors
from pipeline.dependencies import versions
from pipeline.recipe.schema import Recipe
from pipeline.stages.base import Stage, StageContext
from pipeline.stages.served import CLIENT, LOG_NAME, TOOLS, code_digest, needs
from pipeline.store.artifact import Artifact

JSON_NAME = "verify.json"
JUNIT_NAME = "verify.xml"


def material(_recipe: Recipe) -> dict[str, Any]:
    """Gathers the digest of checks and contract, and the versions of server and client."""
    code = code_digest(CLIENT, "verify", "triton", "source/probes.py", "source/special_tokens.py")
    return {"code": code, "tools": versions(TOOLS)}


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``verify.json``, ``verify.xml`` (JUnit) and the server's log.

    Raises:
        ServerError: The server did not start.
        UnsupportedError: This machine cannot serve the target.
        MissingDependencyError: nvidia-pytriton or tritonclient is not installed.
    """
    from pipeline.serving import open_server
    from pipeline.source.probes import known_probes
    from pipeline.verify import CHECKS, CheckResult, run_conformance, to_json, to_junit

    repository = context.inputs["repository"]
    target = str(repository.facts["target"])
    with (
        client_errors(),
        open_server(repository.path, context.output / LOG_NAME, target=target) as server,
    ):
        ready_seconds = server.ready_s
        with context.progress.task("conformance checks", len(CHECKS)) as task:

            def note(result: CheckResult) -> None:
                task.advance()
                if result.status != "passed":
                    context.progress.note(f"{result.name} {result.status}: {result.reason}")

            report = run_conformance(
                server.grpc_url, probes=known_probes(repository.path), on_result=note
            )
    content = to_json(report)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (context.output / JSON_NAME).write_text(f"{text}\n", encoding="utf-8")
    (context.output / JUNIT_NAME).write_text(to_junit(report), encoding="utf-8")
    return {
        "server": content["server"],
        "ready_seconds": None if ready_seconds is None else round(ready_seconds, 3),
        **{name: content[name] for name in ("passed", "failed", "skipped", "seconds")},
        "checks": [
            {key: result[key] for key in ("name", "proves", "status", "seconds", "reason")}
            for result in content["checks"]
        ],
    }


def check(_recipe: Recipe, artifact: Artifact) -> None:
    """Stops the run when a check failed.

    Raises:
        VerificationError: Naming the checks and why; the artifact stays in the store.
    """
    failures = [
        (result["name"], result["reason"])
        for result in artifact.facts["checks"]
        if result["status"] == "failed"
    ]
    if failures:
        # The checks bring the client, which a plan of what passed can do without.
        from pipeline.verify.report import raise_for_failures

        raise_for_failures(str(artifact.path / JSON_NAME), failures)


STAGE = Stage(
    name="verify",
    version=2,
    title="test the repository with the real server over gRPC",
    inputs=("repository",),
    run=run,
    section=lambda _recipe: {},
    material=material,
    check=check,
    needs=needs,
)

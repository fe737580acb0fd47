"""Starts the real server on the repository and runs the conformance checks over gRPC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.client_errors import client_errors
from pipeline.dependencies import versions
from pipeline.recipe.paths import without_paths
from pipeline.recipe.schema import PROMPTS_KEY, Recipe
from pipeline.source.texts import text_digest
from pipeline.stages.base import Stage, StageContext
from pipeline.stages.served import CLIENT, LOG_NAME, TOOLS, code_digest, needs, own_server
from pipeline.store.artifact import Artifact

JSON_NAME = "verify.json"
JUNIT_NAME = "verify.xml"
SOURCES = (
    "source/lines.py",
    "source/probes.py",
    "source/prompts.py",
    "source/special_tokens.py",
)
LEFT_OUT = "left out by verify.only or verify.skip of the recipe"


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns what is checked; a file of prompts counts by its contents."""
    settings = recipe.verify
    return without_paths(settings, settings.model_dump(mode="json"))


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers the digests of checks, contract and prompts, and the versions of server and client.

    Raises:
        RecipeError: The file of prompts cannot be read.
    """
    code = code_digest(CLIENT, "verify", "triton", *SOURCES)
    prompts = text_digest(recipe, PROMPTS_KEY)
    return {"code": code, "tools": versions(TOOLS), "prompts": prompts, **own_server(recipe)}


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``verify.json``, ``verify.xml`` (JUnit) and the server's log.

    Raises:
        ServerError: The server did not start.
        UnsupportedError: This machine cannot serve the target.
        MissingDependencyError: nvidia-pytriton or tritonclient is not installed.
    """
    from pipeline.serving import open_server
    from pipeline.source.probes import known_probes
    from pipeline.source.prompts import read_prompts
    from pipeline.verify import CheckResult, chosen_checks, run_conformance, to_json, to_junit

    settings = context.recipe.verify
    chosen = chosen_checks(settings.only, settings.skip)
    repository = context.inputs["repository"]
    target = str(repository.facts["target"])
    with (
        client_errors(),
        open_server(repository.path, context.output / LOG_NAME, target=target) as server,
    ):
        ready_seconds = server.ready_s
        with context.progress.task("conformance checks", len(chosen)) as task:

            def note(result: CheckResult) -> None:
                task.advance()
                if result.status != "passed":
                    context.progress.note(f"{result.name} {result.status}: {result.reason}")

            report = run_conformance(
                server.url,
                only=settings.only,
                skip=settings.skip,
                tolerance=settings.tolerance,
                strict=settings.strict,
                prompts=read_prompts(Path(settings.prompts)) if settings.prompts else None,
                left_out=LEFT_OUT,
                probes=known_probes(repository.path),
                on_result=note,
            )
    content = to_json(report)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (context.output / JSON_NAME).write_text(f"{text}\n", encoding="utf-8")
    (context.output / JUNIT_NAME).write_text(to_junit(report), encoding="utf-8")
    return {
        "server": content["server"],
        "prompts": content["prompts"],
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
    section=section,
    material=material,
    check=check,
    needs=needs,
)

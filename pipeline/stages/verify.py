"""Starts the real server on the repository and runs the conformance checks over gRPC."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from pipeline.dependencies import Requirements, check_installed
from pipeline.digests import digest_of, file_digest, files_below
from pipeline.errors import client_errors
from pipeline.recipe import Recipe
from pipeline.stages.base import Artifact, Stage, StageContext
from pipeline.targets import get_target
from pipeline.toolchain import versions

JSON_NAME = "verify.json"
JUNIT_NAME = "verify.xml"
LOG_NAME = "triton.log"
TOOLS = ("nvidia-pytriton", "tritonclient", "grpcio")
CLIENT = "trtllm_client"


def code_digest(*packages: str) -> str:
    """One digest over the Python files of packages of the pipeline, and of the client.

    What is asked, and how, decides what a server answers; so the asking code is part of the key.

    Args:
        packages: Folders below ``pipeline/``, or the client's name.
    """
    folders = {package: _folder(package) for package in packages}
    return digest_of(
        {
            f"{package}/{name}": file_digest(folder / name)
            for package, folder in folders.items()
            for name in files_below(folder)
            if name.endswith(".py")
        }
    )


def _folder(package: str) -> Path:
    if package != CLIENT:
        return Path(__file__).resolve().parents[1] / package
    check_installed([(CLIENT, "client")])
    # Found and not imported: a plan needs no gRPC.
    spec = importlib.util.find_spec(CLIENT)
    assert spec
    assert spec.origin
    return Path(spec.origin).resolve().parent


def material(_recipe: Recipe) -> dict[str, Any]:
    """The checks and the versions of the server and the client."""
    return {"code": code_digest(CLIENT, "verify"), "tools": versions(TOOLS)}


def needs(recipe: Recipe) -> Requirements:
    """The client's package and those that the target is served with."""
    return [("tritonclient", "client"), *get_target(recipe.compile.target).needs]


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``verify.json``, ``verify.xml`` (JUnit) and the server's log.

    Raises:
        ServerError: The server did not start.
        UnsupportedError: This machine cannot serve the target.
        MissingDependencyError: nvidia-pytriton or tritonclient is not installed.
    """
    from pipeline.probes import known_probes
    from pipeline.serving import open_server
    from pipeline.verify import CHECKS, CheckResult, run_conformance, to_json, to_junit

    repository = context.inputs["repository"]
    target = str(repository.facts.get("target", "openvino"))
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
    from pipeline.verify.report import raise_for_failures

    failures = [
        (result["name"], result["reason"])
        for result in artifact.facts["checks"]
        if result["status"] == "failed"
    ]
    raise_for_failures(str(artifact.path / JSON_NAME), failures)


STAGE = Stage(
    name="verify",
    version=1,
    title="test the repository with the real server over gRPC",
    inputs=("repository",),
    run=run,
    section=lambda _recipe: {},
    material=material,
    check=check,
    needs=needs,
)

"""The Job that builds the repository in the cluster, and puts it into the volume."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from pipeline.manifests.deployed import BUILD, Deployed
from pipeline.manifests.inputs import INPUTS, RECIPE
from pipeline.manifests.objects.common import (
    READ_BY_ALL,
    Document,
    account,
    confined,
    metadata,
    powerless,
    resources,
)
from pipeline.manifests.objects.policies import build_policy
from pipeline.manifests.objects.server import TEMPORARY, affinity
from pipeline.manifests.tree import Chosen, Raw, When, Why, words

VOLUME, WORK, RECIPES = "/repo", "/work", "/recipe"
DIGEST, NAME = "REPOSITORY_DIGEST", "BUILD_NAME"


def steps(*, verified: bool) -> str:
    """Writes what the Job's container runs.

    Args:
        verified: Whether it has the GPUs to serve what it built, and so to verify it.
    """
    until, found = ("", "") if verified else (" --until repository", "/repository.unverified")
    return f"""\
# Whoever applies the manifests again gets a Job that has nothing to do.
if [ -e "{VOLUME}/${DIGEST}/artifact.json" ]; then
    echo "{VOLUME}/${DIGEST} is there"
    exit 0
fi
trtllm-pipeline run {RECIPES}/{RECIPE} --build-dir {WORK}/build{until}
# Copied beside, compared, and renamed: no server ever sees a part of it.
exec trtllm-pipeline store publish "{WORK}/build/${NAME}{found}" --to {VOLUME} --expect "${DIGEST}"
"""


def documents(deployed: Deployed) -> Iterator[Document]:
    """Yields the recipe, the Job and its NetworkPolicy; nothing where the recipe is not known."""
    if deployed.inputs.recipe is None:
        return
    enabled, network = deployed.chosen("build.enabled"), deployed.chosen("network.enabled")
    for tree in (_recipe(deployed), _job(deployed)):
        yield Document("build", tree, enabled.value, enabled.expression)
    yield Document(
        "build",
        build_policy(deployed),
        enabled.value and network.value,
        f"and {enabled.expression} {network.expression}",
    )


def _recipe(deployed: Deployed) -> dict[str, Any]:
    inputs = deployed.inputs
    travel = {name: base64.b64encode(content).decode() for name, content in inputs.files.items()}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(deployed, deployed.named("-recipe"), BUILD),
        "data": {RECIPE: Raw(inputs.recipe or "")},
        **({"binaryData": Why(travel, "The texts that the recipe names.")} if travel else {}),
    }


def _job(deployed: Deployed) -> dict[str, Any]:
    digest = deployed.chosen("repository.digest")
    short = Chosen(digest.value[:12], f"trunc 12 {digest.expression}")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(
            deployed,
            words(deployed.chosen("name"), "-build-", short),
            BUILD,
        ),
        "spec": {
            "backoffLimit": Why(
                1, "What failed twice is no accident: a gate that closed stays closed."
            ),
            "ttlSecondsAfterFinished": Why(604_800, "Its log is there for a week."),
            "template": {"metadata": {"labels": deployed.labels(BUILD)}, "spec": _pod(deployed)},
        },
    }


def _pod(deployed: Deployed) -> dict[str, Any]:
    claim, tolerations = deployed.chosen("build.inputs_claim"), deployed.chosen("tolerations")
    selector, runtime = deployed.chosen("node_selector"), deployed.chosen("gpu.runtime_class")
    product = deployed.chosen("gpu.product")
    where: dict[str, Any] = {}
    if deployed.layout.gpus:
        where = {
            "runtimeClassName": When(runtime.value is not None, runtime.expression, runtime),
            "affinity": When(product.value is not None, product.expression, affinity(product)),
        }
    missing = "; ".join(
        f"{place} is {key} of the recipe" for key, (place, _) in deployed.inputs.missing.items()
    )
    volumes: list[Any] = [
        {
            "name": "repository",
            "persistentVolumeClaim": Why(
                {"claimName": deployed.claim}, "Nobody else has it to write to."
            ),
        },
        {
            "name": "recipe",
            "configMap": {"name": deployed.named("-recipe"), "defaultMode": READ_BY_ALL},
        },
        {
            "name": "work",
            "emptyDir": {"sizeLimit": deployed.chosen("build.scratch")},
        },
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        {"name": "temporary", "emptyDir": {"sizeLimit": "8Gi"}},
        When(
            claim.value is not None,
            claim.expression,
            Why(
                {
                    "name": "inputs",
                    "persistentVolumeClaim": {"claimName": claim, "readOnly": True},
                },
                f"To be filled before: {missing or 'nothing that the recipe names is missing'}.",
            ),
        ),
    ]
    return {
        **account(deployed),
        "restartPolicy": "Never",
        "securityContext": confined(),
        **where,
        "nodeSelector": When(bool(selector.value), selector.expression, selector),
        "tolerations": When(bool(tolerations.value), tolerations.expression, tolerations),
        "containers": [_container(deployed)],
        "volumes": volumes,
    }


def _container(deployed: Deployed) -> dict[str, Any]:
    claim, token = deployed.chosen("build.inputs_claim"), deployed.chosen("build.token_secret")
    gpus = deployed.layout.gpus
    return {
        "name": BUILD,
        "image": Why(
            deployed.chosen("build.image"),
            f"Made by {deployed.contained.builder}; nobody publishes it."
            + (
                " It stands on the image that serves, so that engine and server have one TensorRT."
                if gpus
                else ""
            ),
        ),
        "command": ["/bin/sh", "-ec", Raw(steps(verified=not deployed.group))],
        "env": [
            {"name": DIGEST, "value": deployed.chosen("repository.digest")},
            {"name": NAME, "value": str(deployed.build.recipe.get("name", deployed.name))},
            {"name": "HOME", "value": TEMPORARY},
            {"name": "HF_HOME", "value": f"{WORK}/hub"},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
            When(
                token.value is not None,
                token.expression,
                {
                    "name": "HF_TOKEN",
                    "valueFrom": {"secretKeyRef": {"name": token, "key": "token"}},
                },
            ),
        ],
        "resources": resources(
            deployed,
            "build.resources",
            gpus,
            "Memory: three times the model in 16 bit, which is read, quantized and compared."
            + (" No pod has all GPUs, so nothing is verified here." if deployed.group else ""),
        ),
        "securityContext": powerless(),
        "volumeMounts": [
            {"name": "repository", "mountPath": VOLUME},
            {"name": "recipe", "mountPath": RECIPES, "readOnly": True},
            {"name": "work", "mountPath": WORK},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "temporary", "mountPath": TEMPORARY},
            When(
                claim.value is not None,
                claim.expression,
                {"name": "inputs", "mountPath": INPUTS, "readOnly": True},
            ),
        ],
    }

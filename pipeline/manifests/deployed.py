"""The typed description of what is deployed, from which every kind is written."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

from pipeline._version import __version__
from pipeline.errors import RepositoryError, UnsupportedError, UsageError, cause
from pipeline.manifests.build import Build
from pipeline.manifests.inputs import Inputs, inputs_of
from pipeline.manifests.measured import CLEAR_UP_S, Measured, measured
from pipeline.manifests.tree import Chosen, Words, words
from pipeline.manifests.values import LONGEST_NAME, Resources, Values
from pipeline.reading.json_text import read_json
from pipeline.targets import get_target
from pipeline.targets.base import Contained
from pipeline.triton.compose import INSIDE_PORTS
from pipeline.triton.parameters import ENGINE_DIR

HTTP, GRPC, METRICS = (INSIDE_PORTS[f"{name}_port"] for name in ("http", "grpc", "metrics"))
GATEWAY = 9000
"""The port of the gateway inside."""

SERVER, GATEWAY_PART, BUILD = "server", "gateway", "build"
"""What the label app.kubernetes.io/component says of an object."""

EXIT_TIMEOUT = "EXIT_TIMEOUT_SECONDS"
"""The variable of a server's container that says how long it waits for requests in flight."""

GATEWAY_IMAGE = "trtllm-pipeline-gateway"
GROUP_IMAGE = "trtllm-pipeline-multinode"
GATEWAY_DOCKERFILE = "docker/gateway.Dockerfile"
GROUP_DOCKERFILE = "docker/multinode.Dockerfile"
GIB = 1 << 30
KEPT = 4
"""Repositories that the volume has room for."""


@dataclass(frozen=True)
class Layout:
    """How the ranks of an engine are spread over pods.

    Attributes:
        tensor_parallel: As the engine says.
        pipeline_parallel: Likewise.
        pods: Of one server; more than one is a LeaderWorkerSet.
        gpus: Of each pod; 0 on the CPU.
    """

    tensor_parallel: int
    pipeline_parallel: int
    pods: int
    gpus: int


@dataclass(frozen=True)
class Deployed:
    """What is deployed, and how.

    Attributes:
        build: What was built and measured.
        values: What the operator chose, with everything else filled in from the build.
        contained: How its server runs in a container.
        measured: What the report says of its speed.
        layout: Pods and GPUs of one server.
        inputs: What the recipe reads that the cluster has to be given.
    """

    build: Build
    values: Values
    contained: Contained
    measured: Measured
    layout: Layout
    inputs: Inputs

    @property
    def name(self) -> str:
        """What the names of all objects begin with."""
        assert self.values.name
        return self.values.name

    @property
    def namespace(self) -> str | None:
        """Where the objects go; None leaves it to kubectl or helm."""
        return self.values.namespace

    @property
    def group(self) -> bool:
        """Whether one server takes several pods."""
        return self.layout.pods > 1

    def named(self, suffix: str) -> Words:
        """Names an object of this deployment, such as ``NAME-server``."""
        return words(self.chosen("name"), suffix)

    @property
    def claim(self) -> Words:
        """The name of the volume's claim."""
        default = f"{self.name}-repository"
        expression = '.Values.repository.claim | default (printf "%s-repository" .Values.name)'
        return words(Chosen(self.values.repository.claim or default, expression))

    def chosen(self, key: str) -> Chosen:
        """Returns a value of the operator's by its dotted key, as :class:`Values` has it."""
        value: Any = self.values
        path = []
        for part in key.split("."):
            field = type(value).model_fields[part]
            path.append(field.alias or part)
            value = getattr(value, part)
        return Chosen(value, ".Values." + ".".join(path))

    def labels(self, component: str) -> dict[str, Any]:
        """Returns the labels of an object, by which its pods are selected too."""
        return {
            "app.kubernetes.io/name": "trtllm-pipeline",
            "app.kubernetes.io/instance": self.chosen("name"),
            "app.kubernetes.io/component": component,
        }


def describe(build: Build, values: Values) -> Deployed:
    """Fills in from a build what an operator left open.

    Args:
        build: The build.
        values: What was chosen.

    Raises:
        RepositoryError: The engine does not say its sizes.
        UsageError: A choice is for engines of a GPU, and this one is none.
        UnsupportedError: No known image can read the engine, or its ranks cannot be spread over
            nodes of that many GPUs.
    """
    contained = get_target(build.target).contained(build.repository, f"$({EXIT_TIMEOUT})")
    sizes, mapping = _engine(build)
    layout = _layout(contained, mapping, values.gpu.per_node)
    if not layout.gpus and (values.gpu.product or values.gpu.runtime_class):
        raise UsageError(
            "gpu.product and gpu.runtimeClass are for engines of a GPU",
            where=str(build.repository),
            why="This one runs on the CPU, and nothing would come of them",
            fix="Leave them out; nodeSelector chooses nodes for either",
        )
    speed = measured(build, sizes)
    inputs = inputs_of(build)
    open_ = Deployed(build, values, contained, speed, layout, inputs)
    return replace(open_, values=_settled(open_))


def _engine(build: Build) -> tuple[dict[str, Any], dict[str, int]]:
    path = build.repository / ENGINE_DIR / "config.json"
    try:
        config = read_json(path)
        sizes, mapping = config["build_config"], config["pretrained_config"]["mapping"]
        for key in ("max_seq_len", "max_batch_size"):
            int(sizes[key])
        return sizes, {key: int(mapping[key]) for key in ("tp_size", "pp_size")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(
            "the engine does not say its sizes",
            where=str(path),
            why=cause(error),
            fix="Run the recipe again, or copy the repository again from where it was built",
        ) from error


def _layout(contained: Contained, mapping: dict[str, int], per_node: int) -> Layout:
    ranks, sizes = contained.gpus, (mapping["tp_size"], mapping["pp_size"])
    if not ranks:
        return Layout(*sizes, pods=1, gpus=0)
    # As few nodes as possible, with the same number of ranks on each.
    pods = next(n for n in range(math.ceil(ranks / per_node), ranks + 1) if ranks % n == 0)
    if pods > 1 and contained.spread is None:
        raise UnsupportedError(
            f"an engine of {ranks} ranks does not fit a node of {per_node} GPUs",
            fix="Compile it for fewer, or set gpu.perNode",
        )
    return Layout(*sizes, pods=pods, gpus=ranks // pods)


def _settled(deployed: Deployed) -> Values:
    """All that can be said, said."""
    values, build, contained = deployed.values, deployed.build, deployed.contained
    speed, layout, inputs = deployed.measured, deployed.layout, deployed.inputs
    name = values.name or object_name(build.name)
    ours = f":{__version__}"
    repository, gateway, job = values.repository, values.gateway, values.build
    usual = _resources(build, contained, speed, layout)
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    return values.model_copy(
        update={
            "name": name,
            "image": values.image or _image(contained, layout, ours),
            "resources": _filled(values.resources, usual),
            "tolerations": values.tolerations or ([toleration] if layout.gpus else []),
            "repository": repository.model_copy(
                update={
                    "digest": repository.digest or build.digest,
                    "size": repository.size or f"{max(1, math.ceil(KEPT * build.bytes / GIB))}Gi",
                }
            ),
            "startup": values.startup.model_copy(
                update={"failure_threshold": values.startup.failure_threshold or speed.looks}
            ),
            "drain": values.drain.model_copy(
                update={
                    "exit_timeout_seconds": values.drain.exit_timeout_seconds
                    or speed.exit_timeout_s
                }
            ),
            "gateway": gateway.model_copy(
                update={
                    "image": gateway.image or GATEWAY_IMAGE + ours,
                    "resources": _filled(gateway.resources, type(gateway)().resources),
                }
            ),
            "build": job.model_copy(
                update={
                    "enabled": inputs.complete if job.enabled is None else job.enabled,
                    "image": job.image or f"{builder_image(contained)}{ours}",
                    "inputs_claim": job.inputs_claim
                    or (None if inputs.complete else f"{name}-inputs"),
                    "resources": _filled(job.resources, _build_resources(build, layout)),
                    "scratch": job.scratch or f"{_scratch_gib(build)}Gi",
                }
            ),
        }
    )


def object_name(text: str) -> str:
    """Makes a name of objects (:data:`pipeline.manifests.values.DNS_LABEL`) of a build's."""
    name = text if text[:1].isalpha() else f"m-{text}"
    if len(name) <= LONGEST_NAME:
        return name
    # What tells two long names apart is often their end.
    told = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9].rstrip('-')}-{told}"


def _image(contained: Contained, layout: Layout, ours: str) -> str:
    if layout.pods > 1:
        return f"{GROUP_IMAGE}{ours}"
    return contained.image + (ours if contained.dockerfile else "")


def builder_image(contained: Contained) -> str:
    """Names the image that the builder's Dockerfile makes, as its head says."""
    file = contained.builder.rpartition("/")[2].partition(".")[0]
    return f"trtllm-pipeline-{file}"


def _filled(given: Resources, usual: Resources) -> Resources:
    return Resources(cpu=given.cpu or usual.cpu, memory=given.memory or usual.memory)


def _resources(build: Build, contained: Contained, speed: Measured, layout: Layout) -> Resources:
    """What a server gets; see the comments in what is written."""
    if layout.gpus:
        share = build.bytes / layout.pods
        memory = 16 * layout.gpus + math.ceil(1.25 * share / GIB)
        return Resources(cpu=str(4 * layout.gpus), memory=f"{memory}Gi")
    # /dev/shm is memory of the container, too.
    taken = 1.5 * (speed.memory or 4 * build.bytes + GIB) + contained.shared_memory
    return Resources(cpu=str(speed.cpus or 4), memory=f"{math.ceil(taken / (1 << 20))}Mi")


def _build_resources(build: Build, layout: Layout) -> Resources:
    # The source in 16 bit, the checkpoint and what calibrating takes beside them.
    source = build.section("model").get("bytes_16bit") or 4 * build.bytes
    memory = math.ceil(3 * source / GIB) + 4
    return Resources(cpu=str(max(4, 4 * layout.gpus)), memory=f"{memory}Gi")


def _scratch_gib(build: Build) -> int:
    source = build.section("model").get("bytes_16bit") or 4 * build.bytes
    return math.ceil(3 * source / GIB) + 4


def grace_parts(drain_s: int, exit_s: int) -> int:
    """Returns the seconds from the first word of a stop to the kill."""
    return drain_s + exit_s + CLEAR_UP_S

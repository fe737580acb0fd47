"""What an operator may choose: the keys of a values file, in one tree for all kinds.

What a key means is in the ``Attributes`` section of its class, as for the recipe; the chart's
``values.yaml`` shows the first sentence of it. A key that is null here is computed from the build,
or nothing is written for it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from pipeline.recipe.section import Section, attributes

LONGEST_NAME = 40
Positive = Annotated[int, Field(gt=0, lt=2**31)]
"""A number of Kubernetes' objects, which are of 32 bits."""
DNS_LABEL = f"^[a-z]([-a-z0-9]{{0,{LONGEST_NAME - 2}}}[a-z0-9])?$"
"""A name of objects, with room for what is put behind it within the 63 characters of a label."""
NAMESPACE = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
OBJECT = "^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$"

Name = Annotated[str, Field(pattern=DNS_LABEL)]
Namespace = Annotated[str, Field(pattern=NAMESPACE)]
ObjectName = Annotated[str, Field(pattern=OBJECT)]
DIGEST = "^[0-9a-f]{64}$"
Digest = Annotated[str, Field(pattern=DIGEST)]
IMAGE = r"^[a-zA-Z0-9][-a-zA-Z0-9._/:@]*$"
TEXT = r"^[^\x00-\x1f\x7f\"\\]+$"
QUANTITY = "^[0-9]+([.][0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"


def _as_text(value: object) -> object:
    # Of a quantity without a unit YAML makes a number.
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if whole else value


Quantity = Annotated[
    str,
    Field(pattern=QUANTITY),
    BeforeValidator(_as_text),
    WithJsonSchema({"type": ["string", "number"], "pattern": QUANTITY}),
]
Image = Annotated[str, Field(pattern=IMAGE, max_length=512)]
Text = Annotated[str, Field(pattern=TEXT, max_length=1000)]
PATTERNS = {
    DNS_LABEL: f"up to {LONGEST_NAME} lower-case letters, digits and '-', and a letter first",
    NAMESPACE: "lower-case letters, digits and '-', and neither end is a '-'",
    OBJECT: "lower-case letters, digits, '-' and '.', and both ends are letters or digits",
    DIGEST: "64 hexadecimal digits, as artifact.json has them",
    IMAGE: "a name such as registry/path/name:tag or name@sha256:digest",
    TEXT: "one line without quotes and backslashes",
    QUANTITY: "a number with or without a unit, such as 500m, 2 or 16Gi",
}
"""What each pattern asks for, in words."""

Selector = dict[str, str]
AnyObject = dict[str, Any]


class Group(Section):
    """A group of keys, which are written as Helm's are: ``storageClass``, not ``storage_class``."""

    model_config = ConfigDict(alias_generator=to_camel)


class Resources(Group):
    """What a container is given.

    Attributes:
        cpu: Processors that are kept free for it. There is no limit: what stands still at a limit
            is a step of everybody's text.
        memory: Memory that is kept free for it, and all that it gets.
    """

    cpu: Quantity | None = None
    memory: Quantity | None = None


class Gpu(Group):
    """The GPUs of a server; unused where the engine is one of the CPU.

    Attributes:
        product: The node label nvidia.com/gpu.product, e.g. NVIDIA-L40S. An engine runs on the
            model of GPU that it was built on, so set it wherever a cluster has several.
        per_node: GPUs of a node. An engine of more ranks takes several pods (LeaderWorkerSet).
        runtime_class: The RuntimeClass of NVIDIA's container runtime, where it is not the default.
    """

    product: Text | None = None
    per_node: Positive = 8
    runtime_class: ObjectName | None = None


class Repository(Group):
    """The volume with the repositories, each in a folder that is called by its digest.

    Attributes:
        digest: The repository that is served. Another one here is a rolling update; the one before
            is the rollback.
        create: Whether the claim is made here.
        claim: The claim's name.
        storage_class: The claim's storage class; null takes the cluster's default.
        access_mode: ReadWriteMany where pods of several nodes read it; ReadWriteOnce on one node.
        size: What is asked for: four repositories, that is the new one, the one before, one more
            to go back to, and one that is being written.
    """

    digest: Digest | None = None
    create: bool = True
    claim: ObjectName | None = None
    storage_class: ObjectName | None = None
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    size: Quantity | None = None


class Startup(Group):
    """How long a server may load.

    Attributes:
        failure_threshold: Looks at the loading server, one every 5 seconds, before it is given up.
    """

    failure_threshold: Positive | None = None


class Drain(Group):
    """How a server is taken out of the traffic.

    Attributes:
        endpoints_seconds: How long it goes on as ever, until gateways and proxies know that it
            leaves.
        exit_timeout_seconds: How long it then waits for requests in flight.
    """

    endpoints_seconds: Annotated[int, Field(ge=0, le=600)] = 15
    exit_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None


class Canary(Group):
    """What a server has to answer once before it gets traffic.

    Attributes:
        prompt: The text that it is asked to go on with.
    """

    prompt: Text = "Once there was a"


class Gateway(Group):
    """The OpenAI gateway.

    Attributes:
        image: The image that docker/gateway.Dockerfile makes. Nobody publishes it.
        replicas: How many there are.
        resources: What each of them gets.
        key_secret: A Secret whose key api-key holds what clients have to send as bearer token;
            null lets everybody in who may connect.
    """

    image: Image | None = None
    replicas: Positive = 2
    resources: Resources = Resources(cpu="500m", memory="1Gi")
    key_secret: ObjectName | None = None


class Network(Group):
    """Who may connect.

    Attributes:
        enabled: Whether NetworkPolicies are written; they need a network plugin that enforces them.
        clients: Who may ask the gateway, as peers of a NetworkPolicy. By default every pod of the
            namespace.
        monitoring_namespace: Where Prometheus runs, which may read metrics.
    """

    enabled: bool = True
    clients: list[AnyObject] = [{"podSelector": {}}]  # noqa: RUF012  pydantic copies it
    monitoring_namespace: Namespace = "monitoring"


class BuildJob(Group):
    """The Job that builds the repository in the cluster and puts it into the volume.

    Attributes:
        enabled: Whether it is written; null writes it where the cluster can fetch all that the
            recipe names.
        image: The image with the pipeline in it. Nobody publishes it.
        inputs_claim: A claim with files of the recipe that the Job cannot bring along.
        token_secret: A Secret whose key token is the Hub's, for a model that asks for one.
        resources: What it gets.
        scratch: Disk for what it makes on the way.
    """

    enabled: bool | None = None
    image: Image | None = None
    inputs_claim: ObjectName | None = None
    token_secret: ObjectName | None = None
    resources: Resources = Resources()
    scratch: Quantity | None = None


class Autoscaling(Group):
    """How many servers there may be, for an autoscaler.

    Attributes:
        min_replicas: Servers that there are always; null takes replicas.
        max_replicas: Servers that there may be; null is four times the fewest.
    """

    min_replicas: Positive | None = None
    max_replicas: Positive | None = None


class Monitoring(Group):
    """What watches the deployment; its limits are computed from the load test.

    Attributes:
        load_test: A file that trtllm-pipeline bench --json wrote of this build's server; null takes
            the load test of the run.
        time_to_first_token_ms: What 95 of 100 first tokens must keep; null takes the recipe's
            constraints, or computes it.
        time_per_output_token_ms: What 95 of 100 requests must keep per token after the first; null
            likewise.
        price_per_hour: What one server costs for an hour; null takes the recipe's.
        prometheus: Where KEDA asks Prometheus.
        runbook: The page with the runbook, as alerts link to it.
        labels: Labels of the objects, by which Prometheus' operator selects them.
    """

    load_test: Text | None = None
    time_to_first_token_ms: Annotated[float, Field(gt=0)] | None = None
    time_per_output_token_ms: Annotated[float, Field(gt=0)] | None = None
    price_per_hour: Annotated[float, Field(gt=0)] | None = None
    prometheus: Text = "http://prometheus-operated.monitoring.svc:9090"
    runbook: Text = "docs/operate.md"
    labels: Selector = {}  # noqa: RUF012


class Values(Group):
    """All that can be chosen.

    Attributes:
        name: What the names of all objects begin with.
        namespace: Where the objects go; null leaves it to kubectl or helm.
        replicas: Servers, each with an engine of its own. With two, one may be lost or updated.
        image: The server's image. An engine of a GPU runs with the TensorRT that built it only.
        image_pull_secrets: Secrets for the registries, each as name: NAME.
        resources: What each server gets.
        gpu: The GPUs.
        node_selector: Labels of the nodes that servers may run on.
        tolerations: Taints of nodes that servers may run on.
        repository: The volume.
        startup: How long loading may take.
        drain: How a server stops.
        canary: What it is asked first.
        gateway: The OpenAI gateway.
        network: Who may connect.
        build: The Job that builds.
        autoscaling: How many servers there may be.
        monitoring: What watches them.
    """

    name: Name | None = None
    namespace: Namespace | None = None
    replicas: Positive = 2
    image: Image | None = None
    image_pull_secrets: list[AnyObject] = []  # noqa: RUF012
    resources: Resources = Resources()
    gpu: Gpu = Gpu()
    node_selector: Selector = {}  # noqa: RUF012
    tolerations: list[AnyObject] = []  # noqa: RUF012
    repository: Repository = Repository()
    startup: Startup = Startup()
    drain: Drain = Drain()
    canary: Canary = Canary()
    gateway: Gateway = Gateway()
    network: Network = Network()
    build: BuildJob = BuildJob()
    autoscaling: Autoscaling = Autoscaling()
    monitoring: Monitoring = Monitoring()


def documented(section: type[Section]) -> dict[str, str]:
    """Returns what each key of a section means, by its name in a values file."""
    return {to_camel(name): meaning for name, meaning in attributes(section).items()}

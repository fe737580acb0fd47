"""The files of ``--kind ray``, held against KubeRay's fields and Kubernetes' own schemas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UnsupportedError
from pipeline.manifests.choosing import read_values
from pipeline.manifests.deployed import Deployed, Layout, describe
from pipeline.manifests.values import Gpu
from pipeline.rayserve.deployments import GATEWAY, REPLICAS
from pipeline.rayserve.kuberay import number
from pipeline.rayserve.manifests import lines, write
from tests.unit.rayserve.builds import write_build

# From ray-operator/apis/ray/v1 of ray-project/kuberay: rayservice_types.go, raycluster_types.go.
SERVICE = {"serveConfigV2", "rayClusterConfig", "serveService"}
CLUSTER = {
    *("headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling"),
    *("autoscalerOptions", "headServiceAnnotations", "suspend"),
}
HEAD_GROUP = {"serviceType", "headService", "enableIngress", "rayStartParams", "template"}
WORKER_GROUP = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams"),
    *("template", "scaleStrategy"),
}
VERSIONS = ("1.30", "1.34")


def describe_with(folder: Path, *chosen: str, **build: Any) -> Deployed:
    return describe(write_build(folder, **build), read_values(None, chosen, {}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = tmp_path_factory.mktemp("build") / "repository"
    return write(describe_with(folder, "gateway.keySecret=keys", "namespace=texts"))


def objects(files: Mapping[str, str]) -> list[Any]:
    return [
        document
        for path, text in files.items()
        if path.startswith("kubernetes/")
        for document in yaml.safe_load_all(text)
    ]


def one(files: Mapping[str, str], kind: str) -> Any:
    (found,) = [document for document in objects(files) if document["kind"] == kind]
    return found


def deployments(config: Any) -> dict[str, Any]:
    return {row["name"]: row for row in config["applications"][0]["deployments"]}


def test_it_has_the_fields_of_a_ray_service(files: Mapping[str, str]) -> None:
    service = one(files, "RayService")
    assert service["apiVersion"] == "ray.io/v1"
    assert set(service["spec"]) <= SERVICE
    cluster = service["spec"]["rayClusterConfig"]
    assert set(cluster) <= CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # Each is a flag of ``ray start`` and its value, which Go reads as texts.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_its_pods_and_everything_else(
    files: Mapping[str, str], version: str
) -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    ).validate
    cluster = one(files, "RayService")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        validate(pod, version, strict=True)
    for document in objects(files):
        if document["kind"] != "RayService":
            validate(document, version, strict=True)


def test_what_kubernetes_does_not_know_is_found(files: Mapping[str, str]) -> None:
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    cluster = one(files, "RayService")["spec"]["rayClusterConfig"]
    template = cluster["headGroupSpec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template, "spec": {**template["spec"], "x": 1}}
    with pytest.raises(kubernetes.ValidationError, match="x"):
        kubernetes.validate(pod, VERSIONS[0], strict=True)


def test_both_configs_are_the_same_but_for_where_they_are(files: Mapping[str, str]) -> None:
    here = yaml.safe_load(files["serve.yaml"])
    there = yaml.safe_load(one(files, "RayService")["spec"]["serveConfigV2"])
    assert deployments(here) == deployments(there)
    assert here["http_options"]["host"] == "127.0.0.1"
    assert there["http_options"]["host"] == "0.0.0.0"
    assert there["applications"][0]["args"]["repository"] == f"/repositories/{'ab' * 32}"


def test_a_node_has_room_for_a_replica_and_a_gateway(files: Mapping[str, str]) -> None:
    config = yaml.safe_load(files["serve.yaml"])
    wanted = sum(
        deployments(config)[name]["ray_actor_options"]["num_cpus"] for name in (GATEWAY, REPLICAS)
    )
    (group,) = one(files, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert int(group["rayStartParams"]["num-cpus"]) >= wanted
    (container,) = group["template"]["spec"]["containers"]
    assert float(container["resources"]["requests"]["cpu"]) >= wanted
    scaling = deployments(config)[REPLICAS]["autoscaling_config"]
    assert (group["minReplicas"], group["maxReplicas"]) == (
        scaling["min_replicas"],
        scaling["max_replicas"],
    )


def test_what_pods_mount_is_where_the_application_looks(files: Mapping[str, str]) -> None:
    service = one(files, "RayService")["spec"]
    path = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"]["repository"]
    claim = one(files, "PersistentVolumeClaim")["metadata"]["name"]
    cluster = service["rayClusterConfig"]
    # The head has it, too: the application's sizes are read wherever Ray builds it.
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        (volume,) = [row for row in spec["volumes"] if "persistentVolumeClaim" in row]
        assert volume["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
        (mount,) = [
            row for row in spec["containers"][0]["volumeMounts"] if row["name"] == volume["name"]
        ]
        assert path.startswith(mount["mountPath"])
        assert mount["readOnly"]


def test_the_key_reaches_the_gateways_from_a_secret(files: Mapping[str, str]) -> None:
    service = one(files, "RayService")["spec"]
    name = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"]["key_from"]
    (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    (variable,) = [row for row in container["env"] if row["name"] == name]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "keys", "key": "api-key"}}


def test_policies_select_the_pods_and_leave_rays_ports_to_ray(files: Mapping[str, str]) -> None:
    cluster = one(files, "RayService")["spec"]["rayClusterConfig"]
    nodes, head = (row for row in objects(files) if row["kind"] == "NetworkPolicy")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"]
        assert nodes["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        # KubeRay's services select by the name that it gives.
        assert "app.kubernetes.io/name" not in labels
    assert head["spec"]["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
    dangerous = {6379, 8265, 10001}
    for rule in nodes["spec"]["ingress"]:
        ports = {row["port"] for row in rule.get("ports", [])}
        peers = str(rule["from"])
        if not ports or ports & dangerous:
            assert "app.kubernetes.io/component" in peers or "kuberay-operator" in peers


def test_on_a_gpu_each_replica_takes_its_engines(tmp_path: Path) -> None:
    plain = describe_with(tmp_path / "repository")
    contained = replace(plain.contained, gpus=2, command=["tritonserver"], image="nvidia/one")
    deployed = replace(
        plain,
        contained=contained,
        layout=Layout(2, 1, pods=1, gpus=2),
        values=plain.values.model_copy(
            update={"image": "nvidia/one", "gpu": Gpu(product="NVIDIA-L40S")}
        ),
    )
    files = write(deployed)
    config = yaml.safe_load(files["serve.yaml"])
    assert deployments(config)[REPLICAS]["ray_actor_options"]["num_gpus"] == 2
    assert "num_gpus" not in deployments(config)[GATEWAY]["ray_actor_options"]
    cluster = one(files, "RayService")["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert container["image"].startswith("trtllm-pipeline-ray-gpu:")
    assert "NVIDIA-L40S" in str(spec["affinity"])
    # NVIDIA's image has the repository at one place, so a digest is one of the pod.
    (mount,) = [row for row in container["volumeMounts"] if row["name"] == "repository"]
    assert mount["subPath"] == "ab" * 32
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in str(head["resources"])


def test_an_engine_of_several_nodes_is_refused(tmp_path: Path) -> None:
    plain = describe_with(tmp_path / "repository")
    several = replace(plain, layout=Layout(8, 2, pods=2, gpus=8))
    with pytest.raises(UnsupportedError, match="takes 2 nodes"):
        write(several)


def test_what_the_operator_chose_is_in_both(tmp_path: Path) -> None:
    chosen = ("replicas=3", "drain.exitTimeoutSeconds=500", "image=mine/ray:1", "resources.cpu=6")
    files = write(describe_with(tmp_path / "repository", *chosen))
    replicas = deployments(yaml.safe_load(files["serve.yaml"]))[REPLICAS]
    assert replicas["autoscaling_config"]["min_replicas"] == 3
    assert replicas["autoscaling_config"]["downscale_delay_s"] > 500
    assert replicas["graceful_shutdown_timeout_s"] > 500
    assert replicas["ray_actor_options"]["num_cpus"] == 6
    (group,) = one(files, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["template"]["spec"]["containers"][0]["image"] == "mine/ray:1"
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 500


def test_a_terminal_is_told_what_the_config_says(tmp_path: Path) -> None:
    deployed = describe_with(tmp_path / "repository", "replicas=3")
    replicas = deployments(yaml.safe_load(write(deployed)["serve.yaml"]))[REPLICAS]
    scaling, stopping, _ = lines(deployed)
    # 0.7 of a batch of 32.
    assert scaling == "scaling: 3 to 6 replicas, another one at 22.4 of 32 requests each"
    assert f"{replicas['graceful_shutdown_timeout_s']} s for what a replica has" in stopping


@pytest.mark.parametrize(
    ("quantity", "value"),
    [("500m", 0.5), ("2", 2), ("1.5", 1.5), ("1Ki", 1024), ("2Gi", 2 * 1024**3), ("3M", 3e6)],
)
def test_quantities_are_what_kubernetes_means(quantity: str, value: float) -> None:
    assert number(quantity) == pytest.approx(value)

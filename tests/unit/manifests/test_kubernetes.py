"""Plain manifests, held against Kubernetes' own schemas and against each other."""

from __future__ import annotations

import base64
import copy
import dataclasses
import functools
import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli.invocation import Invocation
from pipeline.cli.main import app
from pipeline.errors import UnsupportedError
from pipeline.manifests.build import read_build
from pipeline.manifests.deployed import describe
from pipeline.manifests.values import Resources, Values
from pipeline.recipe.file import load_recipe
from tests.conftest import PROJECT

from .conftest import hub_recipe
from .support import deployed, measured_report, objects_of, one, write_build

# 1.29 knows preStop's sleep, which is on by itself from 1.30 on.
VERSIONS = ("1.29", "1.31", "1.34", "1.37")
CRDS = {"LeaderWorkerSet": PROJECT / "tests/data/crds/leaderworkerset-v1.json"}
SHAPES = {
    "cpu": (),
    "unmeasured": (),
    "from-the-hub": (),
    "gpu": ("gpu.product=NVIDIA-L40S", "gpu.runtimeClass=nvidia", "namespace=llm"),
    "gpus": ("gateway.keySecret=clients", "imagePullSecrets=[{name: registry}]"),
    "nodes": ("nodeSelector={pool: big}", "repository.storageClass=nfs"),
}


@pytest.fixture(scope="module", params=SHAPES)
def objects(request: pytest.FixtureRequest, builds: dict[str, Path]) -> list[dict[str, Any]]:
    return objects_of(builds[request.param], *SHAPES[request.param])


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, by the name of what makes its pods."""
    for made in objects:
        spec, name = made.get("spec", {}), made["metadata"]["name"]
        if "template" in spec:
            yield name, spec["template"]
        for role in ("leaderTemplate", "workerTemplate"):
            if role in spec.get("leaderWorkerTemplate", {}):
                yield f"{name} {role}", spec["leaderWorkerTemplate"][role]


@pytest.fixture(scope="module", autouse=True)
def _schemas_are_read_once() -> Iterator[None]:
    """The validator reads megabytes of definitions for each object."""
    try:
        from kubernetes_validate import utils
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


def complaints(made: dict[str, Any], version: str) -> str | None:
    """What kubernetes-validate --strict, or a definition's schema, says against an object."""
    validator = pytest.importorskip("kubernetes_validate")
    try:
        validator.validate(made, version, strict=True)
    except validator.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    except validator.SchemaNotFoundError as error:
        # Its command only warns here, and so would pass a misspelt kind.
        if made["kind"] not in CRDS:
            return error.message
        schema = json.loads(CRDS[made["kind"]].read_text())
        found = list(
            pytest.importorskip("jsonschema").Draft202012Validator(schema).iter_errors(made)
        )
        return "; ".join(problem.message for problem in found) or None
    return None


def as_deployment(template: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": template["metadata"]["labels"]}, "template": template},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_that_kubernetes(
    objects: list[dict[str, Any]], version: str
) -> None:
    for made in objects:
        assert complaints(made, version) is None, made["metadata"]["name"]
    # The definition of a LeaderWorkerSet leaves pods to the cluster's own.
    for name, template in pods(objects):
        pod = copy.deepcopy(template)
        pod["spec"].pop("restartPolicy", None)
        assert complaints(as_deployment(pod), version) is None, name


@pytest.mark.parametrize("shape", ["gpu", "nodes"])
def test_the_validators_refuse_what_is_misspelt(shape: str, builds: dict[str, Path]) -> None:
    objects = objects_of(builds[shape])
    kind = "LeaderWorkerSet" if shape == "nodes" else "Deployment"
    server = one(objects, kind, "-server")
    assert complaints(server, VERSIONS[-1]) is None
    server["spec"]["replica"] = 2
    assert "replica" in str(complaints(server, VERSIONS[-1]))
    assert "Deploymant" in str(complaints({**server, "kind": "Deploymant"}, VERSIONS[-1]))
    for _, template in pods(objects_of(builds[shape])):
        template["spec"]["containers"][0]["livenesProbe"] = {}
        assert "livenesProbe" in str(complaints(as_deployment(template), VERSIONS[-1]))


def test_names_that_objects_call_each_other_by_are_there(objects: list[dict[str, Any]]) -> None:
    names = {(made["kind"], made["metadata"]["name"]) for made in objects}
    assert len(names) == len(objects)
    given_by_hand = {"clients", "registry"}
    for name, template in pods(objects):
        spec = template["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
            if "persistentVolumeClaim" in volume and volume["name"] != "inputs":
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in names
            if "secret" in volume:
                assert volume["secret"]["secretName"].endswith("-ssh")
        for container in spec["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} == set(volumes), name
            for variable in container.get("env", ()):
                if "valueFrom" in variable:
                    assert variable["valueFrom"]["secretKeyRef"]["name"] in given_by_hand
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if "httpGet" in container.get(probe, {}):
                    assert container[probe]["httpGet"]["port"] in ports


def test_selectors_find_pods_and_ports(objects: list[dict[str, Any]]) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods(objects)}
    ports = {
        name: {
            port["name"]: port["containerPort"]
            for container in template["spec"]["containers"]
            for port in container.get("ports", ())
        }
        for name, template in pods(objects)
    }

    def chosen(selector: dict[str, str]) -> list[str]:
        return [name for name, its in labels.items() if selector.items() <= its.items()]

    for made in objects:
        spec = made.get("spec", {})
        if made["kind"] == "Service":
            (pod,) = chosen(spec["selector"])
            assert {port["targetPort"] for port in spec["ports"]} <= set(ports[pod])
        elif made["kind"] == "Deployment":
            assert chosen(spec["selector"]["matchLabels"]) == [made["metadata"]["name"]]
        elif made["kind"] == "PodDisruptionBudget":
            assert len(chosen(spec["selector"]["matchLabels"])) == 1
        elif made["kind"] == "NetworkPolicy" and "matchExpressions" not in spec["podSelector"]:
            (pod,) = chosen(spec["podSelector"]["matchLabels"])
            inward = {p["port"] for rule in spec["ingress"] for p in rule.get("ports", ())}
            assert inward <= set(ports[pod].values())


def test_gateways_reach_servers_and_nobody_else_does(builds: dict[str, Path]) -> None:
    objects = objects_of(builds["gpu"])
    server, gateway = (one(objects, "NetworkPolicy", end) for end in ("-server", "-gateway"))
    asking = one(objects, "Deployment", "-gateway")["spec"]["template"]
    allowed = server["spec"]["ingress"][0]
    assert allowed["from"] == [{"podSelector": {"matchLabels": asking["metadata"]["labels"]}}]
    assert {port["port"] for port in allowed["ports"]} == {8001, 8002}  # HTTP is for probes
    assert server["spec"]["egress"] == []
    assert set(server["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    leaving = [rule for rule in gateway["spec"]["egress"] if rule["ports"][0]["port"] != 53]
    (rule,) = leaving
    assert {port["port"] for port in rule["ports"]} == {8001, 8002}
    # The name that the gateway is given leads to the headless service.
    (container,) = asking["spec"]["containers"]
    service = one(objects, "Service", "-servers")
    assert service["spec"]["clusterIP"] == "None"
    assert f"--url=grpc://{service['metadata']['name']}:8001?metrics=8002" in container["args"]


def test_pods_keep_the_restricted_pod_security_standard(objects: list[dict[str, Any]]) -> None:
    """Rules of kubernetes.io/docs/concepts/security/pod-security-standards, level restricted."""
    volumes = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for name, template in pods(objects):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] != 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
        assert spec["automountServiceAccountToken"] is False
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= volumes
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "hostPort" not in str(container.get("ports"))


def test_the_repository_is_read_only_and_called_by_its_digest(builds: dict[str, Path]) -> None:
    digest = json.loads((builds["cpu"] / "artifact.json").read_text())["digest"]
    for end in ("-server", "-gateway"):
        template = one(objects_of(builds["cpu"]), "Deployment", end)["spec"]["template"]
        (container,) = template["spec"]["containers"]
        mount = next(m for m in container["volumeMounts"] if m["name"] == "repository")
        assert (mount["subPath"], mount["readOnly"]) == (digest, True)
        # On a volume that may be written to, kubelet makes a folder that is not there.
        volume = next(v for v in template["spec"]["volumes"] if v["name"] == "repository")
        assert volume["persistentVolumeClaim"]["readOnly"] is True
        assert template["metadata"]["annotations"]["trtllm-pipeline/repository"] == digest


def test_another_digest_changes_the_pods_and_no_selector(builds: dict[str, Path]) -> None:
    other = "f" * 64
    before, after = (
        objects_of(builds["gpu"], *more) for more in ((), (f"repository.digest={other}",))
    )
    for end in ("-server", "-gateway"):
        one_, two = (one(found, "Deployment", end)["spec"] for found in (before, after))
        assert one_["template"] != two["template"]
        assert one_["selector"] == two["selector"]


# load, longest answer, ms from token to token at so many streams, full batch -> looks, exit
TIMES = [
    # 3 x 20 / 5 = 12 looks, so 120; 511 x 2.5 ms x 32/8 x 1.2 = 6.132 s
    ((20.0, 512, 2.5, 8, 32), 120, 7),
    # 3 x 400 / 5 = 240; 4,095 x 100 ms x 1.2 = 491.4 s
    ((400.0, 4096, 100.0, 64, 64), 240, 492),
    # 3 x 201 / 5 = 120.6; above a full batch it counts as it is: 8,191 x 20 ms x 1.2 = 196.6 s
    ((201.0, 8192, 20.0, 128, 64), 121, 197),
]


@pytest.mark.parametrize(("given", "looks", "leaving"), TIMES)
def test_times_by_hand(
    given: tuple[float, int, float, int, int], looks: int, leaving: int, tmp_path: Path
) -> None:
    load, tokens, p95, streams, batch = given
    report = measured_report(load, streams, p95)
    repository = write_build(tmp_path / "m", "tensorrt", report=report, sizes=(tokens, batch))
    spec = one(objects_of(repository), "Deployment", "-server")["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    startup = container["startupProbe"]
    assert (startup["periodSeconds"], startup["failureThreshold"]) == (5, looks)
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3 * load
    assert spec["progressDeadlineSeconds"] > 5 * looks
    assert {"name": "EXIT_TIMEOUT_SECONDS", "value": str(leaving)} in container["env"]
    assert "--exit-timeout-secs=$(EXIT_TIMEOUT_SECONDS)" in container["command"]
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 15
    assert pod["terminationGracePeriodSeconds"] == 15 + leaving + 15


def test_several_ranks_are_waited_for_before_mpirun_hears_of_it(builds: dict[str, Path]) -> None:
    spec = one(objects_of(builds["gpus"]), "Deployment", "-server")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    leaving = int(next(v["value"] for v in container["env"] if v["name"].startswith("EXIT")))
    assert container["command"][0] == "mpirun"
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 15 + leaving
    assert spec["terminationGracePeriodSeconds"] == 15 + leaving + 15
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4


def test_what_was_not_measured_is_said(builds: dict[str, Path]) -> None:
    found = deployed(builds["unmeasured"])
    assert found.measured.load_s is None
    assert found.values.startup.failure_threshold == 120
    # 511 tokens x 0.1 s x 1.2
    assert found.values.drain.exit_timeout_seconds == math.ceil(61.32)


@pytest.mark.parametrize(
    ("ranks", "per_node", "spread"),
    [
        ((4, 1), 8, (1, 4)),
        ((8, 2), 8, (2, 8)),
        ((8, 1), 4, (2, 4)),
        ((3, 3), 8, (3, 3)),
        ((5, 2), 8, (2, 5)),
    ],
)
def test_ranks_are_spread_evenly_over_as_few_nodes_as_can_be(
    ranks: tuple[int, int], per_node: int, spread: tuple[int, int], tmp_path: Path
) -> None:
    repository = write_build(tmp_path / "m", "tensorrt", *ranks)
    layout = deployed(repository, f"gpu.perNode={per_node}").layout
    assert (layout.pods, layout.gpus) == spread


def test_a_group_is_one_server(builds: dict[str, Path]) -> None:
    objects = objects_of(builds["nodes"])
    group = one(objects, "LeaderWorkerSet", "-server")["spec"]
    assert group["leaderWorkerTemplate"]["size"] == 2
    leader, worker = (group["leaderWorkerTemplate"][f"{r}Template"] for r in ("leader", "worker"))
    (first,), (other,) = (template["spec"]["containers"] for template in (leader, worker))
    assert other["command"] == ["/scripts/group.sh"]
    assert first["command"][:3] == ["/scripts/group.sh", "8", "mpirun"]
    assert first["command"].count("tritonserver") == 16
    assert first["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert "readinessProbe" in first
    assert "readinessProbe" not in other  # it never listens
    # Only the first pod of a group answers, so only that one is found by the Service.
    selector = one(objects, "Service", "-servers")["spec"]["selector"]
    assert selector.items() <= leader["metadata"]["labels"].items()
    assert not selector.items() <= worker["metadata"]["labels"].items()


def test_the_first_pod_of_a_group_starts_the_ranks_of_all(tmp_path: Path) -> None:
    """The script with stand-ins for ssh and mpirun; the second pod answers at the second try."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(
        f'#!/bin/bash\necho "$@" >>{tmp_path}/asked\n'
        f"[ -e {tmp_path}/up ] && exit 0\ntouch {tmp_path}/up\nexit 255\n"
    )
    (programs / "mpirun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (programs / "sleep").write_text("#!/bin/bash\n")
    for path in programs.iterdir():
        path.chmod(0o755)
    script = PROJECT / "pipeline/manifests/scripts/group.sh"
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "TMPDIR": str(tmp_path),
        "LWS_LEADER_ADDRESS": "m-server-1.m-server.llm",
        "LWS_GROUP_SIZE": "3",
        "LWS_WORKER_INDEX": "0",
    }
    command = ["bash", str(script), "8", "mpirun", "-n", "1", "tritonserver", "--a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # Names as of LeaderWorkerSet's shared subdomain: NAME-GROUP-INDEX.NAME.
    assert (tmp_path / "hosts").read_text().splitlines() == [
        "m-server-1.m-server.llm slots=8",
        "m-server-1-1.m-server.llm slots=8",
        "m-server-1-2.m-server.llm slots=8",
    ]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[-2] for line in asked] == [
        *("m-server-1-1.m-server.llm", "m-server-1-1.m-server.llm"),
        "m-server-1-2.m-server.llm",
    ]
    given = done.stdout.splitlines()
    assert given[:2] == ["--default-hostfile", str(tmp_path / "hosts")]
    assert given[2:4] == ["--mca", "plm_rsh_args"]
    assert "BatchMode=yes" in given[4]
    assert given[5:] == ["-n", "1", "tritonserver", "--a b"]


def test_a_job_verifies_where_it_has_all_gpus(tmp_path: Path) -> None:
    report = measured_report(recipe=hub_recipe(tmp_path), model={"commit": "0" * 40})
    for tp, until in ((4, False), (16, True)):
        repository = write_build(tmp_path / f"tp{tp}", "tensorrt", tp=tp, report=report)
        job = one(objects_of(repository), "Job")
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert ("--until repository" in container["command"][2]) is until
        assert ("repository.unverified" in container["command"][2]) is until
        assert container["resources"]["limits"]["nvidia.com/gpu"] == min(tp, 8)
        assert subprocess.run(["sh", "-n", "-c", container["command"][2]], check=True)


def test_a_recipe_in_the_cluster_is_the_builds_with_its_texts(
    builds: dict[str, Path], tmp_path: Path
) -> None:
    config = one(objects_of(builds["from-the-hub"]), "ConfigMap", "-recipe")
    for name, content in config["binaryData"].items():
        (tmp_path / name).write_bytes(base64.b64decode(content))
    (tmp_path / "recipe.yaml").write_text(config["data"]["recipe.yaml"])
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.model.source, recipe.model.revision) == ("someone/a-model", "0" * 40)
    assert recipe.evaluate
    here = builds["from-the-hub"].parents[1] / "heldout.jsonl"
    assert Path(recipe.evaluate.text).read_bytes() == here.read_bytes()


def test_what_is_too_large_to_travel_is_named(tmp_path: Path) -> None:
    recipe = hub_recipe(tmp_path)
    (tmp_path / "heldout.jsonl").write_text("x" * (800 << 10))
    report = measured_report(recipe=recipe, model={"commit": "0" * 40})
    found = deployed(write_build(tmp_path / "m", report=report))
    assert not found.values.build.enabled
    assert found.inputs.missing == {
        "evaluate.text": ("/inputs/heldout.jsonl", str(tmp_path / "heldout.jsonl"))
    }


def test_a_name_that_is_too_long_or_begins_with_a_digit_is_made_one(tmp_path: Path) -> None:
    names = set()
    for folder in ("7b-model", f"{'long-' * 20}a", f"{'long-' * 20}b", "Ünïcode Model"):
        name = deployed(write_build(tmp_path / folder)).name
        assert len(f"{name}-build-{'0' * 12}") <= 63
        assert name[0].isalpha()
        names.add(name)
    assert len(names) == 4


def test_an_engine_without_sizes_is_refused(tmp_path: Path) -> None:
    from pipeline.errors import RepositoryError

    repository = write_build(tmp_path / "m")
    (repository / "tensorrt_llm/1/engine/config.json").write_text("{}")
    with pytest.raises(RepositoryError, match="the engine does not say its sizes"):
        deployed(repository)


def test_an_engine_that_no_image_reads_is_refused(tmp_path: Path) -> None:
    from pipeline.targets.tensorrt.build.engine import write_manifest

    repository = write_build(tmp_path / "m", "tensorrt")
    bound = {"tensorrt_llm": "0.9.0", "tensorrt": "9.3", "container": None}
    write_manifest(repository / "tensorrt_llm/1/engine", bound)
    with pytest.raises(UnsupportedError, match="no container is known"):
        deployed(repository)


def accepted(words: list[str]) -> dict[str, Any]:
    """What the command line makes of words; it refuses those that it does not know."""
    program = typer.main.get_command(app)
    with program.make_context("trtllm-pipeline", list(words), obj=Invocation()) as context:
        assert isinstance(program, typer.core.TyperGroup)
        _, command, rest = program.resolve_command(context, context._protected_args + context.args)
        assert command
        with command.make_context(words[0], rest, parent=context) as inner:
            return dict(inner.params)


@pytest.mark.parametrize("shape", ["cpu", "gpus"])
def test_the_command_line_takes_what_containers_say(shape: str, builds: dict[str, Path]) -> None:
    objects = objects_of(builds[shape], "gateway.keySecret=clients")
    for end, command in (("-server", "serve"), ("-gateway", "gateway")):
        template = one(objects, "Deployment", end)["spec"]["template"]
        (container,) = template["spec"]["containers"]
        if "args" not in container:
            continue  # NVIDIA's image has tritonserver instead
        given = {v["name"]: v.get("value") for v in container["env"]}
        text = container["args"]
        for name, value in given.items():
            text = [word.replace(f"$({name})", str(value)) for word in text]
        assert text[0] == command
        found = accepted(text)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        leaving = template["spec"]["terminationGracePeriodSeconds"]
        assert found["host"] == "0.0.0.0"
        assert found["drain"] + container["lifecycle"]["preStop"]["sleep"]["seconds"] < leaving
        if command == "serve":
            assert {name: found[f"{name}_port"] for name in ports} == ports
        else:
            assert found["port"] == ports["http"]
            assert found["key_from"] in given


def test_sizes_by_hand(builds: dict[str, Path]) -> None:
    def settled(shape: str, size: int) -> Values:
        build = dataclasses.replace(read_build(builds[shape]), bytes=size)
        return describe(build, Values()).values

    gib = 1 << 30
    # Four repositories of 5 GiB and a byte; a server that took 400 MiB, with 1 GiB of /dev/shm.
    cpu = settled("cpu", 5 * gib + 1)
    assert cpu.repository.size == "21Gi"
    assert cpu.resources == Resources(cpu="2", memory=f"{400 * 3 // 2 + 1024}Mi")
    # 4 GPUs: 4 x 16 GiB, and 1.25 x 40 GiB of engine files that are read through memory.
    gpus = settled("gpus", 40 * gib)
    assert gpus.resources == Resources(cpu="16", memory="114Gi")
    assert gpus.repository.size == "160Gi"
    assert settled("cpu", 1).repository.size == "1Gi"

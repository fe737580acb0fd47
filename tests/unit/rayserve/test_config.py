"""The config of Ray Serve: valid as Ray has it, with numbers that a calculation by hand has too."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RepositoryError, UsageError
from pipeline.rayserve.config import serve_config
from pipeline.rayserve.deployments import GATEWAY, REPLICAS
from pipeline.rayserve.options import Options, read_options
from pipeline.rayserve.sizing import size_of
from pipeline.triton.parameters import ENGINE_DIR
from tests.conftest import PROJECT
from tests.unit.rayserve.builds import write_build

SCHEMA = json.loads((PROJECT / "tests" / "data" / "ray_serve_config.json").read_text())


def config_of(folder: Path, *, build: dict[str, Any] | None = None, **chosen: Any) -> Any:
    built = write_build(folder / "repository", **(build or {}))
    options = Options(repository="/models/one", **chosen)
    return serve_config(options, size_of(built), name="story")


def deployment(config: Any, name: str) -> Any:
    (application,) = config["applications"]
    (found,) = [row for row in application["deployments"] if row["name"] == name]
    return found


CHOICES = pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"min_replicas": 1, "max_replicas": 1},
        {"gpus": 4, "surge_percent": 50, "longest_stream_s": 900, "key_from": "KEY"},
    ],
    ids=["usual", "fixed", "gpus"],
)


@CHOICES
def test_it_is_what_ray_documents(chosen: dict[str, Any], tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.validate(config_of(tmp_path, **chosen), SCHEMA)


@CHOICES
def test_ray_takes_it(chosen: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(tmp_path, **chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what Ray itself still uses
        schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
        warnings.simplefilter("error", FutureWarning)
        read = schema.ServeDeploySchema.model_validate(config)
        for row in read.applications[0].deployments:
            if isinstance(row.autoscaling_config, dict):
                from ray.serve.config import AutoscalingConfig

                AutoscalingConfig(**row.autoscaling_config)


def test_a_name_that_ray_does_not_know_is_found(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    config = config_of(tmp_path)
    deployment(config, REPLICAS)["max_ongoing_request"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_ongoing_request"):
        jsonschema.validate(config, SCHEMA)


def test_scaling_follows_the_batch_and_draining_the_longest_stream(tmp_path: Path) -> None:
    replicas = deployment(config_of(tmp_path), REPLICAS)
    assert replicas["max_ongoing_requests"] == 32
    assert replicas["max_queued_requests"] == 4 * 64
    # 2,047 tokens x 25 ms x 32/8 streams x 1.2 = 245.64 s
    longest = 246
    scaling = replicas["autoscaling_config"]
    assert scaling["target_ongoing_requests"] == pytest.approx(0.7 * 32)
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 4)
    assert scaling["downscale_delay_s"] > longest
    assert longest <= replicas["graceful_shutdown_timeout_s"] <= longest + 30
    assert "num_replicas" not in replicas
    gateway = deployment(config_of(tmp_path / "b"), GATEWAY)
    assert gateway["graceful_shutdown_timeout_s"] >= replicas["graceful_shutdown_timeout_s"]


@pytest.mark.parametrize(
    ("build", "seconds"),
    [
        ({"load": None}, 246),  # 2,047 tokens x 100 ms x 1.2, where nothing was measured
        ({"tokens": 16}, 30),
        ({"batch": 4}, 62),  # 2,047 tokens x 25 ms x 1.2: no more streams than were measured
    ],
    ids=["not measured", "short", "small batch"],
)
def test_the_longest_stream_is_computed(
    build: dict[str, Any], seconds: int, tmp_path: Path
) -> None:
    assert size_of(write_build(tmp_path / "repository", **build)).longest_s == seconds


def test_what_is_chosen_is_what_is_written(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        min_replicas=3,
        max_replicas=3,
        gateways=5,
        longest_stream_s=100,
        replica_cpus=7,
        gateway_cpus=0.25,
        gpus=2,
        surge_percent=25,
    )
    replicas, gateway = deployment(config, REPLICAS), deployment(config, GATEWAY)
    assert replicas["num_replicas"] == 3
    assert replicas["ray_actor_options"] == {"num_cpus": 7, "num_gpus": 2}
    assert gateway["num_replicas"] == 5
    assert gateway["ray_actor_options"] == {"num_cpus": 0.25}
    assert {replicas["max_surge_percent"], gateway["max_surge_percent"]} == {25}
    assert 100 < replicas["graceful_shutdown_timeout_s"] < 130
    (application,) = config["applications"]
    assert Options(**application["args"]) == Options(
        repository="/models/one",
        min_replicas=3,
        max_replicas=3,
        gateways=5,
        longest_stream_s=100,
        replica_cpus=7,
        gateway_cpus=0.25,
        gpus=2,
        surge_percent=25,
    )


def test_it_listens_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    assert config_of(tmp_path)["http_options"]["host"] == "127.0.0.1"


def test_an_engine_that_does_not_say_its_sizes_is_told(tmp_path: Path) -> None:
    build = write_build(tmp_path / "repository")
    (build.repository / ENGINE_DIR / "config.json").write_text("{}")
    with pytest.raises(RepositoryError, match=r"how many sequences it takes.*build_config"):
        size_of(build)


def test_arguments_of_a_shell_are_read_as_what_they_are() -> None:
    options = read_options(
        {"repository": "r", "min_replicas": "1", "resume": "false", "replica_cpus": "0.5"}
    )
    assert (options.min_replicas, options.resume, options.replica_cpus) == (1, False, 0.5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "repository: Field required"),
        ({"repository": "r", "min_replica": 1}, "min_replica: Extra inputs"),
        ({"repository": "r", "gateways": "0"}, "gateways: Input should be greater than 0"),
        ({"repository": "r", "min_replicas": 5}, "max_replicas is 4 and min_replicas 5"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        read_options(arguments)

"""What manifests make run, run here: the canary against a real server, the Job's own steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from ..conftest import PROJECT, Cli


def objects(folder: Path) -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted(folder.glob("*.yaml"))]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def test_the_canary_gets_a_token_of_a_real_server(
    server: Any, cli: Cli, repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cli("manifests", str(repository), "--kind", "kubernetes", "--output", str(out))
    made = objects(out)
    script = tmp_path / "canary.py"
    (scripts,) = (o for o in made if o["kind"] == "ConfigMap")
    script.write_text(scripts["data"]["canary.py"])
    (workload,) = (
        o for o in made if o["metadata"]["name"].endswith("-server") and "template" in o["spec"]
    )
    probe = workload["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    program, _, *words = probe["exec"]["command"]
    assert program == "python3"
    done = subprocess.run(
        [sys.executable, str(script), *words, server.http_url],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_jobs_steps_build_the_repository_and_publish_it(
    cli: Cli, repository: Path, tmp_path: Path
) -> None:
    """The command of the Job's container, with this machine's folders in the place of volumes."""
    out, volume, recipe, work = (tmp_path / name for name in ("out", "repo", "recipe", "work"))
    wanted = ("--set", "build.enabled=true", "--json")
    said = cli("manifests", str(repository), "--kind", "kubernetes", "--output", str(out), *wanted)
    digest = json.loads(said.stdout)["digest"]
    made = objects(out)
    (config,) = (o for o in made if o["metadata"]["name"].endswith("-recipe"))
    (job,) = (o for o in made if o["kind"] == "Job")
    for folder in (volume, recipe, work):
        folder.mkdir()
    # What is built already is not built again; the model is where the claim would have it.
    (work / "build").symlink_to(cli.build)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "model").symlink_to(PROJECT / "examples/tiny_llama/model")

    def here(text: str) -> str:
        for place, folder in (("/repo/", volume), ("/recipe/", recipe), ("/work/", work)):
            text = text.replace(place, f"{folder}/")
        return text.replace("--to /repo", f"--to {volume}").replace("/inputs/", f"{inputs}/")

    import base64

    for name, content in config.get("binaryData", {}).items():
        (recipe / name).write_bytes(base64.b64decode(content))
    for name, text in config["data"].items():
        (recipe / name).write_text(here(text))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    command = [here(word) for word in container["command"]]
    given = {v["name"]: v["value"] for v in container["env"] if v["name"].isupper()}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    environment |= {name: given[name] for name in ("REPOSITORY_DIGEST", "BUILD_NAME")}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=280
        )

    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert [entry.name for entry in volume.iterdir()] == [digest]
    for built in repository.rglob("*"):
        if built.is_file():
            there = volume / digest / built.relative_to(repository)
            assert there.read_bytes() == built.read_bytes()
    again = run()
    assert (again.returncode, again.stdout) == (0, f"{volume}/{digest} is there\n")
    # Another engine than the servers' is kept, and the Job says so.
    environment["REPOSITORY_DIGEST"] = "f" * 64
    other = run()
    assert other.returncode == 5
    assert f"repository.digest={digest}" in other.stderr

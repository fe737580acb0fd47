"""``store list`` and ``store prune``: what uses an artifact, and how much of the disk it holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.store.artifact import Artifact
from pipeline.store.build_dir import BuildDir
from pipeline.store.lock import write_lock

KEYS = {"used": "a" * 64, "left": "b" * 64, "shared": "c" * 64}


def call(build: Path, *arguments: str, columns: int = 62) -> str:
    """Calls ``store`` in this process; returns what it prints."""
    done = CliRunner().invoke(
        app,
        ["store", *arguments, "--build-dir", str(build)],
        env={"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"},
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    return str(done.stdout)


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """Three artifacts: two recipes use one, nobody the others, one of which a folder links to."""
    build = BuildDir(tmp_path / "build")

    def publish(name: str, size: int) -> Artifact:
        key = KEYS[name]
        with build.store.workspace("quantize", key) as folder:
            (folder / "rank0.safetensors").write_bytes(bytes(size))
            return build.store.publish(
                folder, stage="quantize", key=key, material={}, inputs={}, facts={}, seconds=63
            )

    used, _left, shared = publish("used", 3 << 20), publish("left", 5000), publish("shared", 7000)
    entry = {"key": used.key, "digest": used.digest, "material": {"a": 1}}
    for recipe in ("one-recipe", "another-recipe"):
        write_lock(build.root / recipe / "lock.json", {"quantize": entry})
    (tmp_path / "linked").hardlink_to(shared.path / "rank0.safetensors")
    return build.root


def test_the_list_says_age_size_and_users(build: Path) -> None:
    lines = call(build, "list", columns=100).splitlines()
    assert lines[0].split() == ["stage", "key", "age", "size", "used", "by"]
    used, left, shared = (line for line in lines if line.startswith("quantize"))
    size = r"quantize +{} +\d+ s +{} +{}"
    assert re.match(size.format("a" * 12, r"3\.0 MiB", "another-recipe one-recipe"), used)
    assert re.match(size.format("b" * 12, r"4\.9 KiB", "-"), left)
    assert re.match(size.format("c" * 12, r"6\.8 KiB", "-"), shared)
    assert lines[-1] == "3 artifacts, 3.0 MiB"


def test_nothing_but_the_users_is_broken_on_a_narrow_terminal(build: Path) -> None:
    for line in call(build, "list", columns=62).splitlines():
        assert len(line) <= 62
        if line.startswith("quantize"):
            assert re.match(r"quantize +[abc]{12} +\d+ s +\d\.\d [KM]iB ", line)


def test_the_list_in_full(build: Path) -> None:
    folder = build / "store" / "quantize" / KEYS["used"]
    lines = call(build, "list", "-v").splitlines()
    assert lines[0] == str(folder)
    assert re.fullmatch(
        r"  \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  3\.0 MiB  took 63\.0 s  "
        r"used by another-recipe, one-recipe",
        lines[1],
    )
    rows = json.loads(call(build, "list", "--json"))
    assert [row["used_by"] for row in rows] == [["another-recipe", "one-recipe"], [], []]
    assert [row["bytes"] for row in rows] == [3 << 20, 5000, 7000]


def _manifests(build: Path) -> int:
    folders = (build / "store" / "quantize" / KEYS[name] for name in ("left", "shared"))
    return sum((folder / "artifact.json").stat().st_size for folder in folders)


def test_pruning_says_what_it_frees(build: Path) -> None:
    # Not the file of 7000 bytes, which has another name elsewhere.
    freed = 5000 + _manifests(build)
    tried = json.loads(call(build, "prune", "--dry-run", "--json"))
    assert (tried["freed_bytes"], tried["dry_run"]) == (freed, True)
    assert [Path(path).name for path in tried["artifacts"]] == [KEYS["left"], KEYS["shared"]]
    said = call(build, "prune", "--dry-run").splitlines()
    assert said[-1] == f"2 artifacts, {freed / 1024:.1f} KiB would be freed"
    assert all(line.startswith("would remove ") for line in said[:-1])
    assert Path(tried["artifacts"][0]).is_dir()
    assert call(build, "prune", "-q") == f"2 artifacts, {freed / 1024:.1f} KiB freed\n"
    assert [path.name for path in (build / "store" / "quantize").iterdir()] == [KEYS["used"]]
    assert call(build, "prune") == "0 artifacts, 0 B freed\n"

"""``init`` from a wheel, without the checkout; skipped where no package index answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ..conftest import DEMO_MODEL, PROJECT
from .test_client_installs import PATIENCE, PIP, index_answers

WHERE = "import json, pipeline; print(json.dumps(pipeline.__file__))"


@pytest.mark.slow
def test_a_wheel_has_the_text_and_finds_it(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    built = subprocess.run(
        [*PIP, "wheel", "--no-deps", *PATIENCE, "--wheel-dir", str(wheels), str(PROJECT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if built.returncode and not index_answers(tmp_path):
        pytest.skip("no package index answers here")
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("trtllm_pipeline-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(json.loads(python("-c", WHERE))).is_relative_to(site)
    assert (site / "pipeline" / "scaffold" / "texts" / "PROVENANCE.md").is_file()
    made = json.loads(python("-m", "pipeline", "init", str(DEMO_MODEL), "--json"))
    python("-m", "pipeline", "plan", made["recipe"])
    bundled = PROJECT / "pipeline" / "scaffold" / "texts"
    for name in ("calibration", "heldout"):
        written = (tmp_path / f"stopgap-{name}.jsonl").read_bytes()
        assert written == (bundled / f"{name}.jsonl").read_bytes()

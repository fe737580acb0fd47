"""scripts/install beside NVIDIA's torch and TensorRT-LLM, in a tree like the container's.

The last test installs for real, and is skipped where no package index answers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ..conftest import PROJECT
from .test_client_installs import index_answers

# As the image holds them (dockerfile/Dockerfile.triton.trt_llm_backend of tensorrtllm_backend, and
# TensorRT-LLM 1.2.1's requirements).
TORCH, TENSORRT_LLM, TENSORRT = "2.10.0a0+b558c986e8.nv25.11", "1.2.1", "10.14.1.48"
# Real ones that the image has and this project uses; the rest of what it needs is absent there.
SHARED = ("numpy", "pydantic", "pydantic_core", "typing_extensions", "annotated-types", "PyYAML",
          "typing-inspection", "Jinja2", "MarkupSafe", "packaging")  # fmt: skip
SOURCES = ("pipeline", "client", "model_repo", "scripts", "pyproject.toml", "README.md", "LICENSE",
           "constraints.txt")  # fmt: skip
# There, in a version that a dependency of this project does not ask for.
NEWER = ("protobuf", "99.0.0")


def add(site: Path, name: str, version: str, module: str | None = None) -> None:
    """A distribution as pip would leave it, with a module that says its version."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    if module:
        (site / module).mkdir()
        (site / module / "__init__.py").write_text(f"__version__ = {version!r}\n")


def link(site: Path, name: str) -> None:
    """The files of an installed distribution, as links."""
    for file in metadata.distribution(name).files or ():
        top = Path(str(file)).parts[0]
        if top not in {"..", "__pycache__"} and not (site / top).exists():
            (site / top).symlink_to(
                Path(str(file.locate())).parents[len(Path(str(file)).parts) - 1] / top
            )


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the container's Python environment."""
    folder = tmp_path_factory.mktemp("opt") / "venv-tritonserver"
    venv.create(folder, with_pip=True, symlinks=True)
    (site,) = folder.glob("lib/python3.*/site-packages")
    add(site, "torch", TORCH, "torch")
    add(site, "tensorrt-llm", TENSORRT_LLM, "tensorrt_llm")
    add(site, "tensorrt", TENSORRT, "tensorrt")
    add(site, *NEWER)
    for name in SHARED:
        link(site, name)
    (folder / "bin/trtllm-build").write_text("#!/bin/sh\n")
    (folder / "bin/trtllm-build").chmod(0o755)
    return folder


def listing(folder: Path) -> dict[str, Any]:
    """Every file with its size, time and link, byte code aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts:
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def test_the_environment_sees_what_the_container_has(container: Path, tmp_path: Path) -> None:
    """Without pip and without an index: importing and the versions that pipeline looks up."""
    before = listing(container)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import install_beside, subprocess; from pathlib import Path\n"
        "venv = Path(sys.argv[2])\n"
        "subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)\n"
        "install_beside.show_everything(venv / 'bin/python')\n"
    )
    scripts, folder = str(PROJECT / "scripts"), tmp_path / "venv"
    python = str(container / "bin/python")
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([python, "-c", program, scripts, str(folder)], check=True, env=environ)
    said = answer(folder)
    assert said["torch"] == str(container)
    assert said["tensorrt-llm"] == TENSORRT_LLM
    assert said["prefix"] == str(folder)
    assert listing(container) == before


def answer(folder: Path) -> dict[str, str]:
    """What the environment's Python imports and finds; ``torch`` is the tree it comes from."""
    program = (
        "import json, sys, torch, tensorrt_llm\n"
        "from pipeline.dependencies import installed\n"
        "from pipeline.targets.tensorrt.environment import toolkit\n"
        "from pathlib import Path\n"
        "tools = toolkit()\n"
        "print(json.dumps({'torch': str(Path(torch.__file__).parents[4]), 'prefix': sys.prefix,\n"
        "  'version': torch.__version__, 'tensorrt-llm': installed('tensorrt-llm'),\n"
        "  'tensorrt': tools.tensorrt, 'image': tools.image}))\n"
    )
    folders = f"{PROJECT}{os.pathsep}{PROJECT / 'client'}"
    environ = {**os.environ, "PYTHONPATH": folders, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [folder / "bin/python", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environ,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_project_is_installed_and_nothing_is_replaced(container: Path, tmp_path: Path) -> None:
    if not index_answers(tmp_path):
        pytest.skip("no package index answers here")
    before = listing(container)
    # The installation is editable, so it writes beside its sources.
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, checkout / name)
    environ = {**os.environ, "PATH": f"{container / 'bin'}:{os.environ['PATH']}"}
    environ.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["scripts/install", "python3", ".venv"],
        cwd=checkout,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert listing(container) == before
    folder = checkout / ".venv"
    (site,) = folder.glob("lib/python3.*/site-packages")
    own = {path.name.partition("-")[0].lower() for path in site.glob("*.dist-info")}
    assert {"trtllm_pipeline", "trtllm_client", "typer", "tritonclient", "grpcio"} <= own
    there = {"torch", "tensorrt_llm", "tensorrt", "transformers", "openvino", "numpy", "pydantic"}
    assert own.isdisjoint(there | {NEWER[0]})
    assert f"note: protobuf {NEWER[1]} stays" in done.stdout
    said = answer(folder)
    assert (said["torch"], said["version"]) == (str(container), TORCH)
    assert (said["tensorrt-llm"], said["tensorrt"], said["image"]) == (TENSORRT_LLM, TENSORRT, None)
    shown = subprocess.run(
        [folder / "bin/trtllm-pipeline", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert shown.stdout.strip()

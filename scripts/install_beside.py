"""Creates the virtual environment beside an installed TensorRT-LLM, as NVIDIA's container has it.

``scripts/install`` runs it with the Python that has TensorRT-LLM. The environment sees everything
that this Python sees, and gets this project and those of its light dependencies that are not there
at all. Nothing that is there is replaced or hidden by another version, so NVIDIA's torch stays
beside the TensorRT-LLM that was compiled against it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
OURS = ("trtllm-client", "trtllm-pipeline")
# Of our dependencies and theirs: typer asks for rich, rich for pygments, and so on.
MAX_ROUNDS = 10
PTH = "beside_tensorrt_llm.pth"

# Runs in the new environment: what our distributions ask for, down to the last, that is not there
# (first list), and what is there in a version that was not asked for (second list).
LOOK = """
import importlib.metadata as metadata, json, sys
from pip._vendor.packaging.requirements import Requirement

absent, unlike, seen, waiting = {}, [], set(), [(name, ()) for name in sys.argv[1:]]
while waiting:
    name, extras = waiting.pop()
    for text in metadata.requires(name) or ():
        wanted = Requirement(text)
        extra_sets = [{"extra": extra} for extra in ("", *extras)]
        if wanted.marker and not any(map(wanted.marker.evaluate, extra_sets)):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            absent[wanted.name] = text.partition(";")[0].strip()
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            unlike.append(f"{wanted.name} {found} stays; {name} asks for {wanted.specifier}")
        if (wanted.name, *sorted(wanted.extras)) not in seen:
            seen.add((wanted.name, *sorted(wanted.extras)))
            waiting.append((wanted.name, tuple(wanted.extras)))
print(json.dumps([list(absent.values()), unlike]))
"""


def main(venv: Path) -> str | None:
    """Makes or completes the environment; returns what went wrong."""
    print(f"beside TensorRT-LLM {importlib.metadata.version('tensorrt-llm')} of {sys.prefix}")
    python = venv / "bin" / "python"
    if not python.is_file():
        # Without pip, which this Python has already.
        run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
    show_everything(python)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--no-deps", "--constraint", str(PROJECT / "constraints.txt")]
    run([*pip, "--editable", str(PROJECT / "client"), "--editable", str(PROJECT)])
    for _round in range(MAX_ROUNDS):
        absent, unlike = look(python)
        if not absent:
            break
        print(f"installing {', '.join(sorted(absent))}")
        run([*pip, *absent])
    else:
        return f"these dependencies stay absent: {', '.join(absent)}"
    for line in unlike:
        print(f"note: {line}")
    run([str(venv / "bin" / "trtllm-pipeline"), "--version"])
    return None


def show_everything(python: Path) -> None:
    """Lets the environment see the folders of packages that this Python sees, after its own."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
               .stdout.strip())  # fmt: skip
    folders = [path for path in dict.fromkeys(sys.path) if re.search(r"-packages/?$", path)]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in folders]
    (own / PTH).write_text("".join(lines), encoding="utf-8")


def look(python: Path) -> tuple[list[str], list[str]]:
    """Which requirements are absent, and which are there in a version that was not asked for."""
    done = subprocess.run(
        [python, "-c", LOOK, *OURS], capture_output=True, text=True, check=True, env=quiet()
    )
    absent, unlike = json.loads(done.stdout)
    return absent, unlike


def run(command: list[str]) -> None:
    """Runs a command; its output is shown.

    Raises:
        SystemExit: It failed.
    """
    code = subprocess.run(command, check=False, env=quiet()).returncode
    if code:
        sys.exit(code)


def quiet() -> dict[str, str]:
    """The environment, in which no byte code is written into folders that are not ours."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: scripts/install_beside.py VENV")
    sys.exit(main(Path(sys.argv[1])))

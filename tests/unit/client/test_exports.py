"""The public face of the client."""

from __future__ import annotations

import subprocess
import sys

import trtllm_client


def test_every_public_name_is_listed_and_there():
    public = {
        name
        for name, value in vars(trtllm_client).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("pipeline.")
    }
    constants = {"DEFAULT_MODEL", "DEFAULT_URL", "PERF_METRICS", "Tensors"}
    assert public | constants == set(trtllm_client.__all__)


def test_the_client_needs_nothing_of_the_pipelines_other_dependencies():
    code = (
        "import sys, trtllm_client\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'yaml', 'rich', 'typer', 'filelock'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_tritonclient_the_error_names_the_extra():
    code = (
        "import sys\n"
        "sys.modules['tritonclient'] = None\n"
        "from pipeline.errors import MissingDependencyError\n"
        "try:\n"
        "    import trtllm_client\n"
        "except MissingDependencyError as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'trtllm-pipeline[client]'" in done.stdout

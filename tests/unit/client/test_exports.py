"""The public face of the client."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import trtllm_client


def test_every_public_name_is_listed_and_there():
    public = {
        name
        for name, value in vars(trtllm_client).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith("trtllm_client.")
    }
    constants = {"DEFAULT_MODEL", "DEFAULT_URL", "PERF_METRICS", "Tensors"}
    assert public | constants == set(trtllm_client.__all__)


def test_the_former_place_has_the_same_names_and_says_so():
    sys.modules.pop("pipeline.client", None)
    with pytest.warns(DeprecationWarning, match="import trtllm_client instead") as caught:
        former = importlib.import_module("pipeline.client")
    assert [warning.filename for warning in caught] == [importlib.__file__]
    for name in trtllm_client.__all__:
        assert getattr(former, name) is getattr(trtllm_client, name)


def test_without_tritonclient_the_error_says_what_to_install():
    code = """
import sys
sys.modules["tritonclient"] = None
try:
    import trtllm_client
except ImportError as error:
    print(error.name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("trtllm_client trtllm_client needs tritonclient")
    assert "pip install 'tritonclient[grpc]'" in done.stdout

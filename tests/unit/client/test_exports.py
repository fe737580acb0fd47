"""The public face of the client."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import trtllm_client


def test_every_public_name_is_listed_and_there():
    """Those that a type checker sees, those that are imported when used, and those listed."""
    tree = ast.parse(Path(trtllm_client.__file__).read_text())
    checked = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
        if node.level == 0 and (node.module or "").startswith("trtllm_client.")
    }
    assert checked == set(trtllm_client.__all__)
    code = """
import trtllm_client
for name in trtllm_client.__all__:
    getattr(trtllm_client, name)
print(*dir(trtllm_client))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(trtllm_client.__all__) <= set(done.stdout.split())
    with pytest.raises(AttributeError, match="trtllm_client' has no attribute 'no_such_name'"):
        trtllm_client.no_such_name  # noqa: B018


def test_a_template_is_rendered_without_grpc_and_nothing_is_imported_before_it_is_used():
    code = """
import sys
for absent in ("grpc", "tritonclient", "google.protobuf", "numpy"):
    sys.modules[absent] = None
import trtllm_client
assert "jinja2" not in sys.modules
template = trtllm_client.ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
assert "jinja2" not in sys.modules
print(template.render([{"role": "user", "content": "Hi"}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Hi\n"


def test_without_jinja2_the_error_says_what_to_install():
    code = """
import sys
sys.modules["jinja2"] = None
from trtllm_client import ChatTemplate
try:
    ChatTemplate("").render([{"role": "user", "content": "Hi"}])
except ImportError as error:
    print(error.name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("trtllm_client chat templates need jinja2")
    assert "pip install 'jinja2>=3.1'" in done.stdout


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
    from trtllm_client import Client
except ImportError as error:
    print(error.name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("trtllm_client trtllm_client needs tritonclient")
    assert "pip install 'tritonclient[grpc]'" in done.stdout

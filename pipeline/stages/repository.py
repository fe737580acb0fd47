"""Assembles the Triton model repository: models, tokenizer, engine and configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline._version import __version__
from pipeline.dependencies import install, versions
from pipeline.errors import MissingDependencyError, RepositoryError, UnsupportedError
from pipeline.provenance.history import Step, step_of
from pipeline.reading.json_text import read_json
from pipeline.recipe.paths import without_paths
from pipeline.recipe.schema import Recipe
from pipeline.source.end_ids import read_end_ids
from pipeline.source.probes import FILE_NAME as PROBES
from pipeline.source.probes import check_chat, check_served, make_probes, to_json
from pipeline.source.tokenizer import CONFIG as TOKENIZER_CONFIG
from pipeline.source.tokenizer import (
    TOKENIZER,
    HuggingFaceTokenizer,
    open_tokenizer,
    served_config,
    served_file,
)
from pipeline.stages.base import Deployment, Stage, StageContext
from pipeline.stages.served import CLIENT, code_digest, target_package
from pipeline.store.artifact import MANIFEST, Artifact, check_files, read_manifest
from pipeline.store.digests import file_digest, files_below
from pipeline.store.files import link_or_copy
from pipeline.targets import get_target
from pipeline.targets.base import LOG_NAME
from pipeline.triton.sources import model_sources
from trtllm_client import ChatTemplate, InvalidRequest

if TYPE_CHECKING:
    from pipeline.triton.parameters import EngineModel

# What a tokenizer needs at run time; the tokenizer itself is written by _write_tokenizer.
TOKENIZER_FILES = (
    "special_tokens_map.json",
    "chat_template.jinja",
)
GENERATION = "generation_config.json"
# What reads the snapshot's tokenizer and end ids, and writes those that are served.
TOKENIZER_CODE = (
    "source/tokenizer.py",
    "source/probes.py",
    "source/end_ids.py",
    "source/special_tokens.py",
    "source/chat_template.py",
    f"{CLIENT}/_chat_template.py",
    f"{CLIENT}/_template_growth.py",
    f"{CLIENT}/_template_sandbox.py",
    "models/architectures.py",
)
TOOLS = ("protobuf", "tritonclient", "transformers", "tokenizers")
ENGINE_MANIFEST = "engine.json"
# Older checkpoints keep them in config.json alone, where transformers reads them.
SPECIAL_IDS = ("bos_token_id", "pad_token_id")


def python_files(sources: Path) -> list[str]:
    """Lists the Python files of all models, relative and sorted; caches are left out."""
    return [
        name
        for name in files_below(sources)
        if name.endswith(".py") and "__pycache__" not in Path(name).parts
    ]


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns ``serve``, what the engine was built for, and what the tokenizer is loaded with.

    Raises:
        UnsupportedError: There is no such target.
    """
    return {
        **get_target(recipe.compile.target).section(recipe),
        # Files count by their contents, wherever they are.
        "serve": without_paths(recipe.serve, recipe.serve.read_by(recipe.compile.target)),
        "trust_remote_code": recipe.model.trust_remote_code,
    }


def material(recipe: Recipe) -> dict[str, Any]:
    """Digests of the models' own files, and the code and versions that decide the rest."""
    sources = model_sources()
    return {
        "code": code_digest("triton", "provenance", target_package(recipe), *TOKENIZER_CODE),
        "models": {name: file_digest(sources / name) for name in python_files(sources)},
        "tools": versions(TOOLS),
        "version": __version__,
        **_adapters(recipe),
        **_draft(recipe),
    }


def _draft(recipe: Recipe) -> dict[str, Any]:
    """Digest of the draft's repository; pre-flight has refused one that is not there."""
    folder = recipe.serve.draft_repository
    if folder is None or not (Path(folder) / MANIFEST).is_file():
        return {}
    return {"draft": read_manifest(Path(folder))["digest"]}


def _adapters(recipe: Recipe) -> dict[str, Any]:
    """Digests of the LoRA adapters' files; pre-flight has refused those that are not there."""
    folders = [Path(folder) for folder in recipe.serve.lora_adapters]
    files = (
        sorted(path for path in folder.glob("adapter_*") if path.is_file()) for folder in folders
    )
    digests = [{path.name: file_digest(path) for path in group} for group in files]
    return {"lora_adapters": digests} if digests else {}


def run(context: StageContext) -> dict[str, Any]:
    """Fills the repository and validates it.

    Raises:
        RepositoryError: A part is missing, the result would not load, or it would serve other
            tokens than the model's tokenizer gives.
        SourceError: The tokenizer cannot be loaded.
        MissingDependencyError: tritonclient or transformers is not installed.
    """
    try:
        from pipeline.triton.config import render_configs
        from pipeline.triton.validate import check_repository
    except ImportError as error:
        raise MissingDependencyError(
            "config.pbtxt cannot be written",
            why=str(error),
            fix=install("cpu"),
        ) from error
    from pipeline.triton.parameters import (
        DRAFT_ENGINE_DIR,
        ENGINE_DIR,
        ENGINE_FILES,
        TOKENIZER_DIR,
    )

    output, recipe = context.output, context.recipe
    engine_source = context.inputs["compile"].path
    engine_config = _engine_config(engine_source)
    target = get_target(recipe.compile.target)
    if target.own_server:
        return _self_served(context)
    # planner.stages_for leaves this stage out for a target that is served by nobody.
    assert target.triton_model is not None
    engine = target.triton_model(recipe, engine_config)
    tokenizer, template = _open_tokenizer(context)
    # The checkpoint, and not the engine: that is another one on each GPU.
    weights = context.ancestors.get("quantize", {}).get("digest")
    configs = render_configs(recipe, engine_config, engine, template, weights)
    for model, text in configs.items():
        (output / model / "1").mkdir(parents=True)
        (output / model / "config.pbtxt").write_text(text, encoding="utf-8")
    sources = model_sources()
    for name in python_files(sources):
        source = Path(name).parts[0]
        for model in _served_from(source, engine):
            if model in configs:
                copy = output / model / "1" / Path(name).relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(sources / name, copy)
    _deliver_tokenizer(context.inputs["source"].path, output / TOKENIZER_DIR)
    _deliver_generation_config(context.inputs["source"].path, output / TOKENIZER_DIR)
    written = _write_tokenizer(context, tokenizer, template, output / TOKENIZER_DIR)
    for name, make in engine.files.items():
        path = output / ENGINE_FILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make(output / TOKENIZER_DIR))
    for name in files_below(engine_source):
        if name not in (MANIFEST, LOG_NAME):
            link_or_copy(engine_source / name, output / ENGINE_DIR / name)
    if engine.draft is not None:
        _deliver_draft(engine.draft.repository, output)
    for model in configs:
        # Triton wants a version folder for the ensemble; an empty one would be lost in transit.
        version_folder = output / model / "1"
        if not any(version_folder.iterdir()):
            (version_folder / ".keep").touch()
    check_repository(output, target.engine_problems)
    known = _linked(context.ancestors.get("compile", {}), "", ENGINE_DIR)
    if engine.draft is not None:
        draft = read_manifest(engine.draft.repository)
        known |= _linked(draft, f"{ENGINE_DIR}/", DRAFT_ENGINE_DIR)
    _write_provenance(context, known)
    files = files_below(output)
    switched_off = {"switched_off": dict(engine.switched_off)} if engine.switched_off else {}
    return {
        "models": sorted(configs),
        "files": len(files),
        "bytes": sum((output / name).stat().st_size for name in files),
        "target": recipe.compile.target,
        "tokenizer": written,
        **switched_off,
    }


def _self_served(context: StageContext) -> dict[str, Any]:
    """Fills the repository of an engine that has a server of its own."""
    from pipeline.targets import self_served

    output, recipe = context.output, context.recipe
    source, engine = context.inputs["source"].path, context.inputs["compile"].path
    tokenizer, template = _open_tokenizer(context)
    folder = output / self_served.TOKENIZER
    _deliver_tokenizer(source, folder)
    _deliver_generation_config(source, folder)
    written = _write_tokenizer(context, tokenizer, template, folder)
    for name in files_below(engine):
        if name not in (MANIFEST, LOG_NAME):
            link_or_copy(engine / name, output / self_served.ENGINE / name)
    built_for = get_target(recipe.compile.target).section(recipe)["compile"]
    _write_json(output / self_served.SETTINGS, {"name": recipe.name, "compile": built_for})
    known = _linked(context.ancestors.get("compile", {}), "", self_served.ENGINE)
    _write_provenance(context, known)
    files = files_below(output)
    return {
        "models": [recipe.name],
        "files": len(files),
        "bytes": sum((output / name).stat().st_size for name in files),
        "target": recipe.compile.target,
        "tokenizer": written,
    }


def _served_from(source: str, engine: EngineModel) -> Sequence[str]:
    """Which models have the Python files of a folder of the sources."""
    from pipeline.triton.tensors import ENGINE, TWINS

    if engine.backend == "python" and source == engine.front:
        return (ENGINE,)
    return () if source == ENGINE else (source, *TWINS.get(source, ()))


def _linked(manifest: Mapping[str, Any], prefix: str, folder: str) -> dict[str, str]:
    """Takes digests of files that were linked from an artifact out of its manifest.

    So gigabytes are not read for them once more; the repository's own manifest, which the store
    makes of its files, has to say the same.

    Args:
        manifest: Of the artifact; an empty one has none.
        prefix: What the names of the files begin with that were linked.
        folder: What that is in the repository.
    """
    return {
        f"{folder}/{name.removeprefix(prefix)}": str(entry["sha256"])
        for name, entry in manifest.get("files", {}).items()
        if name.startswith(prefix)
    }


def _write_provenance(context: StageContext, known: Mapping[str, str]) -> None:
    """Writes the bill of materials, and the statement that lists it with all other files.

    Args:
        context: Of the stage.
        known: SHA-256 of files that need not be read.
    """
    from pipeline.provenance.sbom import FILE_NAME as SBOM
    from pipeline.provenance.sbom import bill_of_materials
    from pipeline.provenance.statement import FILE_NAME as STATEMENT
    from pipeline.provenance.statement import statement

    output = context.output
    steps = [step_of(manifest) for manifest in context.ancestors.values()]
    own, tools = dict(context.section), versions(TOOLS)
    steps.append(Step(STAGE.name, own, tools, {}, {}, digest=None, origin={}))
    image = _image(context.inputs["compile"].path)
    model = str(context.inputs["source"].facts.get("architecture", "model"))
    files = {name: known.get(name) or file_digest(output / name) for name in files_below(output)}
    bill = bill_of_materials(steps, files, version=__version__, model=model, image=image)
    _write_json(output / SBOM, bill)
    files[SBOM] = file_digest(output / SBOM)
    _write_json(output / STATEMENT, statement(steps, files, version=__version__, image=image))


def _image(engine: Path) -> str | None:
    """The container that an engine was built in, where its own manifest says one."""
    if not (engine / ENGINE_MANIFEST).is_file():
        return None
    container = read_json(engine / ENGINE_MANIFEST).get("container") or {}
    return container.get("image")


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def check(recipe: Recipe, artifact: Artifact) -> None:
    """Refuses a setting that the recipe asks for by name and the engine cannot do.

    A default that the engine cannot do is switched off instead, with the reason in the facts.

    Raises:
        UnsupportedError: Naming the recipe's file, line and key, the reason and the remedy.
    """
    for name, reason in artifact.facts.get("switched_off", {}).items():
        if name in recipe.serve.model_fields_set:
            raise UnsupportedError(
                f"{name} is set, but this engine does not support it",
                where=recipe.place(f"serve.{name}"),
                why=reason[:1].upper() + reason[1:],
                fix=f"Leave serve.{name} out, or switch it off",
            )


def _deliver_draft(repository: Path, output: Path) -> None:
    """Links the draft's engine, once its repository is whole and its tokenizer is this one's.

    Raises:
        RepositoryError: The repository is damaged, or the tokenizers differ.
        StoreError: It has no manifest.
    """
    from pipeline.triton.parameters import DRAFT_ENGINE_DIR, ENGINE_DIR, TOKENIZER_DIR

    damaged = check_files(repository, read_manifest(repository), None)
    if damaged:
        raise RepositoryError(
            "the draft's repository is not what was built",
            where=str(repository),
            why="; ".join(damaged),
            fix="Run the draft's recipe again",
        )
    theirs, ours = (root / TOKENIZER_DIR / TOKENIZER for root in (repository, output))
    if file_digest(theirs) != file_digest(ours):
        raise RepositoryError(
            "the draft has another tokenizer, so its token ids would mean other texts",
            where=str(theirs),
            why="Its tokenizer.json is not the one that this repository serves",
            fix="Choose a draft of the same family, or leave serve.draft_repository out",
        )
    for name in files_below(repository / ENGINE_DIR):
        link_or_copy(repository / ENGINE_DIR / name, output / DRAFT_ENGINE_DIR / name)


def _engine_config(engine: Path) -> dict[str, Any]:
    path = engine / "config.json"
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RepositoryError(
            "the engine's config.json cannot be read",
            where=str(path),
            why=str(error),
            fix="Compile the engine again",
        ) from error
    return dict(content)


def _deliver_tokenizer(snapshot: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (snapshot / name).is_file():
            shutil.copyfile(snapshot / name, target / name)


def _deliver_generation_config(snapshot: Path, target: Path) -> None:
    """Writes generation_config.json with every end id, which the models read from there alone.

    Raises:
        SourceError: An end id is not one; the source stage has found it already.
    """
    path = snapshot / GENERATION
    if path.is_file():
        values = read_json(path)
    else:
        config = read_json(snapshot / "config.json")
        values = {name: config[name] for name in SPECIAL_IDS if config.get(name) is not None}
    values.pop("eos_token_id", None)
    if ids := read_end_ids(snapshot).ids:
        values["eos_token_id"] = ids
    text = json.dumps(values, indent=2, sort_keys=True)
    (target / GENERATION).write_text(f"{text}\n", encoding="utf-8")


def _open_tokenizer(
    context: StageContext,
) -> tuple[HuggingFaceTokenizer, ChatTemplate | None]:
    """The tokenizer that calibration and evaluation used, and the model's chat template."""
    from pipeline.source.runtime import offline_and_quiet

    snapshot = context.inputs["source"].path
    with offline_and_quiet(context.progress):
        tokenizer = open_tokenizer(
            snapshot, trust_remote_code=context.recipe.model.trust_remote_code
        )
    try:
        found = ChatTemplate.find(snapshot)
    except InvalidRequest as error:
        raise RepositoryError(
            error.what, where=error.where, why=error.why, fix=error.fix
        ) from error
    if found is None:
        return tokenizer, None
    # By transformers, which also knows those that only its classes name.
    tokens = {
        name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)
    }
    return tokenizer, ChatTemplate(found.source, tokens)


def _write_tokenizer(
    context: StageContext,
    tokenizer: HuggingFaceTokenizer,
    template: ChatTemplate | None,
    target: Path,
) -> dict[str, Any]:
    """The tokenizer's files, with texts that prove it."""
    from pipeline.source.runtime import offline_and_quiet

    snapshot = context.inputs["source"].path
    with offline_and_quiet(context.progress):
        (target / TOKENIZER).write_text(served_file(tokenizer, snapshot), encoding="utf-8")
        (target / TOKENIZER_CONFIG).write_text(served_config(tokenizer, snapshot), encoding="utf-8")
        probes = make_probes(tokenizer)
    check_served(probes, target, model_sources(), context.recipe.serve.add_special_tokens)
    check_chat(probes, template, target)
    path = target / PROBES
    path.write_text(to_json(probes), encoding="utf-8")
    return {
        "class": type(tokenizer).__name__,
        "probes": len(probes.items),
        "probes_sha256": file_digest(path),
        "without_chat": probes.without_chat,
    }


STAGE = Stage(
    name="repository",
    version=9,
    title="assemble the Triton model repository",
    inputs=("source", "compile"),
    run=run,
    section=section,
    material=material,
    check=check,
    needs=lambda _recipe: [("tritonclient", "client"), ("transformers", "quantize")],
    deployment=Deployment(folder="repository", after="verify"),
)

"""Resolves the model to a snapshot: safetensors only, every file digested."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts import link_or_copy
from pipeline.errors import RecipeError, SourceError
from pipeline.models import ModelFacts
from pipeline.recipe import Recipe
from pipeline.stages.base import Stage, StageContext

WEIGHTS = "*.safetensors"
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
    "NOTICE*",
)
# Formats that run code, or may, when they are read.
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".msgpack", ".h5")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")


def local_directory(recipe: Recipe) -> Path | None:
    """The model's directory, or None when the recipe names a Hub id.

    Raises:
        RecipeError: It is neither.
    """
    source = recipe.model.source
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if HUB_ID.match(source) and "/" in source and not path.exists():
        return None
    raise RecipeError(
        f"there is no model directory {source}",
        where=recipe.place("model.source"),
        why=f"{path.absolute()} is a file" if path.exists() else "The path does not exist",
        fix="Name a directory with config.json and *.safetensors, or a Hub id such as "
        "Qwen/Qwen2.5-7B-Instruct",
    )


def material(recipe: Recipe) -> dict[str, Any]:
    """What identifies the snapshot without reading it.

    A local directory is known by the stat of its files: a touched file makes this stage run again,
    and when its bytes turn out equal every later stage is still cached, because later keys hold the
    digest of the contents.
    """
    directory = local_directory(recipe)
    if directory is None:
        return {"hub": recipe.model.source, "commit": _hub_commit(recipe)}
    marks = {}
    for path in _wanted(directory, recipe):
        stat = path.stat()
        marks[path.name] = [stat.st_size, stat.st_mtime_ns]
    return {"directory": str(directory.resolve()), "files": marks}


def run(context: StageContext) -> dict[str, Any]:
    """Copies (or, from the Hub cache, links) the snapshot into the artifact and checks it."""
    recipe = context.recipe
    directory = local_directory(recipe)
    place = str(directory or recipe.model.source)
    # The Hub cache never changes a file; a local directory may be trained into again.
    deliver = shutil.copyfile if directory else link_or_copy
    directory = directory or _download(recipe, context)
    _refuse_unsafe(directory, place)
    facts = ModelFacts.from_directory(directory)
    paths = _wanted(directory, recipe)
    size = sum(path.stat().st_size for path in paths)
    with context.progress.task("copying the snapshot", size) as task:
        for path in paths:
            try:
                deliver(path, context.output / path.name)
            except PermissionError as error:
                raise SourceError(
                    "a model file cannot be read",
                    where=str(path),
                    why=error.strerror,
                    fix="Give the user who runs the pipeline permission to read it",
                ) from error
            task.advance(path.stat().st_size)
    tensors = _check_weights(context.output, place)
    return {
        "architecture": facts.architecture,
        "parameters": tensors["parameters"],
        "bytes": size,
        "dtypes": tensors["dtypes"],
        "vocab_size": facts.vocab_size,
        "num_hidden_layers": facts.num_hidden_layers,
        "hidden_size": facts.hidden_size,
    }


def _wanted(directory: Path, recipe: Recipe) -> list[Path]:
    patterns = [WEIGHTS, *COMPANIONS]
    if recipe.model.trust_remote_code:
        patterns.append("*.py")
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return sorted(found)


def _refuse_unsafe(directory: Path, place: str) -> None:
    if any(directory.glob(WEIGHTS)):
        return
    unsafe = sorted(p.name for p in directory.iterdir() if p.suffix in UNSAFE_SUFFIXES)
    if unsafe:
        raise SourceError(
            f"the weights are in {unsafe[0]}, which is refused",
            where=place,
            why="Reading pickled weights can run any code hidden in them",
            fix="Convert once where you trust the file: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT, "
            "safe_serialization=True)",
        )
    raise SourceError(
        "this is not a Hugging Face checkpoint: there is no *.safetensors",
        where=place,
        fix="Point model.source at a directory written by save_pretrained()",
    )


def _check_weights(directory: Path, place: str) -> dict[str, Any]:
    """Reads every header; a cut-off or damaged file is found here, not in the middle of a stage."""
    if not (directory / "tokenizer.json").is_file():
        raise SourceError(
            "there is no tokenizer.json",
            where=place,
            why="Triton's models use the tokenizers library, which reads only this file",
            fix="Write it once: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    names: set[str] = set()
    parameters = 0
    dtypes: set[str] = set()
    for path in sorted(directory.glob(WEIGHTS)):
        for name, entry in read_safetensors_header(path, f"{place}/{path.name}").items():
            names.add(name)
            dtypes.add(entry["dtype"])
            count = 1
            for length in entry["shape"]:
                count *= length
            parameters += count
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        listed = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}))
        missing = sorted(listed - names)
        if missing:
            raise SourceError(
                f"{len(missing)} tensors of the index are in no file, the first is {missing[0]}",
                where=f"{place}/{index.name}",
                fix="Download the missing shards again",
            )
    return {"parameters": parameters, "dtypes": sorted(dtypes)}


def read_safetensors_header(path: Path, place: str) -> dict[str, dict[str, Any]]:
    """Reads and checks a safetensors header against the file's size.

    Args:
        path: The file.
        place: Its name in error messages.

    Returns:
        ``{name: {"dtype": str, "shape": list, "data_offsets": [start, end]}}``.

    Raises:
        SourceError: The file is truncated or its header is not one.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if length > size - 8:
                raise ValueError(f"its header claims {length} bytes, the file has {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"it should have {8 + length + end} bytes and has {size}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            "the safetensors file is damaged",
            where=place,
            why=str(error),
            fix="Download or save it again; a broken transfer usually cuts it short",
        ) from error
    return dict(header)


def _hub_commit(recipe: Recipe) -> str:
    revision = recipe.model.revision or "main"
    if COMMIT.match(revision):
        return revision
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(HfApi().model_info(recipe.model.source, revision=revision, timeout=20).sha)
    except HfHubHTTPError as error:
        raise _hub_error(recipe, error) from error
    except (OSError, ValueError) as offline:
        # No network: the snapshot downloaded last is as good as its commit says.
        try:
            cached = snapshot_download(
                recipe.model.source, revision=revision, local_files_only=True
            )
        except (LocalEntryNotFoundError, OSError):
            raise _hub_error(recipe, offline) from offline
        return Path(cached).name


def _download(recipe: Recipe, context: StageContext) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [WEIGHTS, *COMPANIONS]
    if recipe.model.trust_remote_code:
        patterns.append("*.py")
    context.progress.note(f"fetching {recipe.model.source} from the Hub")
    commit = _hub_commit(recipe)
    try:
        # Asked for by its name, a branch is remembered and found again without a network.
        path = snapshot_download(
            recipe.model.source, revision=recipe.model.revision, allow_patterns=patterns
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _hub_error(recipe, error) from error
    if Path(path).name != commit:
        raise SourceError(
            f"{recipe.model.revision or 'main'} moved from {commit[:12]} to "
            f"{Path(path).name[:12]} while it was fetched",
            where=recipe.place("model.revision"),
            fix="Run again, or pin model.revision to a commit hash",
        )
    return Path(path)


def _hub_error(recipe: Recipe, error: Exception) -> SourceError:
    return SourceError(
        f"{recipe.model.source} cannot be fetched from the Hub",
        where=recipe.place("model.source"),
        why=_hub_reason(error),
        fix="Check the id, the revision and the network; gated models need HF_TOKEN in the "
        "environment. A local directory needs no network",
    )


def _hub_reason(error: Exception) -> str:
    if "Max retries exceeded" in str(error) or isinstance(error, ConnectionError | TimeoutError):
        return f"The Hub cannot be reached ({type(error).__name__})"
    return str(error).strip().partition("\n")[0]


STAGE = Stage(
    name="source",
    version=1,
    title="resolve the model snapshot",
    inputs=(),
    run=run,
    section=lambda recipe: {"trust_remote_code": recipe.model.trust_remote_code},
    material=material,
)

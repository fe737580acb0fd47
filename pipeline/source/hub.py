"""Snapshots from the Hugging Face Hub, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import patterns

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_TIMEOUT_S = 20


def hub_commit(recipe: Recipe) -> str:
    """Resolves the recipe's revision to a commit; offline, to the one that was fetched last.

    Raises:
        SourceError: The Hub does not know it, or cannot be reached and nothing was fetched before.
    """
    revision = recipe.model.revision or "main"
    if _COMMIT.match(revision):
        return revision
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    source = recipe.model.source
    try:
        return str(HfApi().model_info(source, revision=revision, timeout=_TIMEOUT_S).sha)
    except HfHubHTTPError as error:
        raise _error(recipe, error) from error
    except _failures() as offline:
        # No network: the snapshot downloaded last is as good as its commit says.
        try:
            # With the patterns, or what was left out on purpose counts as missing.
            cached = snapshot_download(
                source,
                revision=revision,
                allow_patterns=patterns(code=recipe.model.trust_remote_code),
                local_files_only=True,
            )
        except (LocalEntryNotFoundError, OSError):
            raise _error(recipe, offline) from offline
        return Path(cached).name


def hub_config(recipe: Recipe) -> Path:
    """Fetches the model's ``config.json``, perhaps alone, and returns the cache's directory of it.

    Raises:
        SourceError: It cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            recipe.model.source,
            "config.json",
            revision=recipe.model.revision,
            etag_timeout=_TIMEOUT_S,
        )
    except _failures() as error:
        raise _error(recipe, error) from error
    return Path(path).parent


def hub_snapshot(recipe: Recipe) -> Path:
    """Fetches the whole snapshot unless the cache has it, and returns its directory.

    Raises:
        SourceError: It cannot be fetched, or the branch moved meanwhile.
    """
    from huggingface_hub import snapshot_download

    commit = hub_commit(recipe)
    try:
        # Asked for by its name, a branch is remembered and found again without a network.
        path = snapshot_download(
            recipe.model.source,
            revision=recipe.model.revision,
            allow_patterns=patterns(code=recipe.model.trust_remote_code),
        )
    except _failures() as error:
        raise _error(recipe, error) from error
    if Path(path).name != commit:
        raise SourceError(
            f"{recipe.model.revision or 'main'} moved from {commit[:12]} to "
            f"{Path(path).name[:12]} while it was fetched",
            where=recipe.place("model.revision"),
            fix="Run again, or pin model.revision to a commit hash",
        )
    return Path(path)


def _error(recipe: Recipe, error: Exception) -> SourceError:
    return SourceError(
        f"{recipe.model.source} cannot be fetched from the Hub",
        where=recipe.place("model.source"),
        why=_reason(error),
        fix="Check the id, the revision and the network; gated models need HF_TOKEN in the "
        "environment. A local directory needs no network",
    )


def _failures() -> tuple[type[Exception], ...]:
    """What a call of huggingface_hub may raise, whichever HTTP library it brings.

    Until 0.36 that is requests, whose errors are OSErrors; from 1.0 on another one, whose failed
    connections are not. The Hub's own error descends from the library's base of all errors.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError, *HfHubHTTPError.__bases__, OSError, ValueError)


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        return "The Hub cannot be reached, and nothing of it was fetched here before"
    if "Max retries exceeded" in str(error) or _is_of_the_network(error):
        return f"The Hub cannot be reached ({type(error).__name__})"
    return str(error).strip().partition("\n")[0]


def _is_of_the_network(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, ConnectionError | TimeoutError):
        return True
    # What the HTTP library raised and the Hub did not answer.
    answered = isinstance(error, HfHubHTTPError)
    library = [base for base in HfHubHTTPError.__bases__ if base is not OSError]
    return isinstance(error, tuple(library)) and not answered

"""Snapshots from the Hugging Face Hub, through huggingface_hub and its cache.

The Hub is asked once, without a second try. Where it does not answer, everything else goes by the
cache: huggingface_hub by itself would try each file six times, for 23 seconds.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import INDEX, SINGLE, patterns

logger = logging.getLogger(__name__)

REMEMBERED_S = 60.0
"""For how long a Hub that did not answer is not asked again."""

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_DOWN, _TOO_MANY = 500, 429
# When each endpoint did not answer, in monotonic seconds.
_silent: dict[str, float] = {}


def hub_commit(recipe: Recipe) -> str:
    """Resolves the recipe's revision to a commit; offline, to the one that was fetched last.

    Raises:
        SourceError: The Hub does not know it, or cannot be reached and nothing was fetched before.
    """
    revision = recipe.model.revision or "main"
    if _COMMIT.match(revision):
        return revision
    return _ask(recipe) or _config(recipe, cached=True).parent.name


def hub_config(recipe: Recipe) -> Path:
    """Fetches the model's ``config.json``, perhaps alone, and returns the cache's directory of it.

    Raises:
        SourceError: It cannot be fetched.
    """
    if _COMMIT.match(recipe.model.revision or ""):
        # A commit never changes, so what is there of it needs no question.
        with contextlib.suppress(SourceError):
            return _config(recipe, cached=True).parent
    return _config(recipe, cached=_ask(recipe) is None).parent


def hub_snapshot(recipe: Recipe) -> Path:
    """Fetches the whole snapshot unless the cache has it, and returns its directory.

    Raises:
        SourceError: It cannot be fetched, or the branch moved meanwhile.
    """
    from huggingface_hub import snapshot_download

    commit = _ask(recipe)
    try:
        # Asked for by its name, a branch is remembered and found again without a network.
        with _quiet():
            path = Path(
                snapshot_download(
                    recipe.model.source,
                    revision=recipe.model.revision,
                    allow_patterns=patterns(code=recipe.model.trust_remote_code),
                    local_files_only=commit is None,
                )
            )
    except _failures() as error:
        raise _error(recipe, error) from error
    if commit is None:
        # Before version 2 huggingface_hub does not say so: after plan or init config.json is alone.
        if not any((path / name).exists() for name in (SINGLE, INDEX)):
            raise _unreached(recipe, "the weights of it were not fetched here before")
        return path
    if path.name != commit:
        raise SourceError(
            f"{recipe.model.revision or 'main'} moved from {commit[:12]} to "
            f"{path.name[:12]} while it was fetched",
            where=recipe.place("model.revision"),
            fix="Run again, or pin model.revision to a commit hash",
        )
    return path


def _ask(recipe: Recipe) -> str | None:
    """The commit that the Hub gives for the revision; None where it does not answer.

    Raises:
        SourceError: It answers, and does not give the model.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE or _was_silent(constants.ENDPOINT):
        return None
    source, revision = recipe.model.source, recipe.model.revision or "main"
    try:
        with _quiet():
            # Its own variable, HF_HUB_ETAG_TIMEOUT, says how long an answer may take.
            told = HfApi().model_info(
                source, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
    except _failures() as error:
        if not _is_of_the_network(error):
            raise _error(recipe, error) from error
        _silent[constants.ENDPOINT] = time.monotonic()
        logger.warning(
            "The Hub at %s does not answer (%s), so %s is looked for in the cache of what was "
            "fetched before. HF_HUB_OFFLINE=1 in the environment does that without asking.",
            constants.ENDPOINT,
            type(error).__name__,
            source,
        )
        return None
    return str(told.sha)


def _was_silent(endpoint: str) -> bool:
    since = _silent.get(endpoint)
    return since is not None and time.monotonic() - since < REMEMBERED_S


def _config(recipe: Recipe, *, cached: bool) -> Path:
    """``config.json`` in the cache's folder of its commit."""
    from huggingface_hub import hf_hub_download

    source, revision = recipe.model.source, recipe.model.revision
    try:
        with _quiet():
            path = hf_hub_download(
                source, "config.json", revision=revision, local_files_only=cached
            )
    except _failures() as error:
        raise _error(recipe, error) from error
    return Path(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps huggingface_hub's own warnings off the terminal; a chosen verbosity stays."""
    from huggingface_hub.utils import logging as its

    before = its.get_verbosity()
    if before == logging.WARNING:
        its.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        its.set_verbosity(before)


def _error(recipe: Recipe, error: Exception) -> SourceError:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        revision = recipe.model.revision
        what = f"revision {revision} of it" if revision else "nothing of it"
        return _unreached(recipe, f"{what} was {'not ' * bool(revision)}fetched here before")
    why = str(error).strip().partition("\n")[0]
    if _is_of_the_network(error):
        why = f"The Hub cannot be reached ({type(error).__name__})"
    return SourceError(
        f"{recipe.model.source} cannot be fetched from the Hub",
        where=recipe.place("model.source"),
        why=why,
        fix="Check the id, the revision and the network; gated models need HF_TOKEN in the "
        "environment. A local directory needs no network",
    )


def _unreached(recipe: Recipe, lacking: str) -> SourceError:
    from huggingface_hub import constants

    why, fix = "The Hub cannot be reached", "Check the network"
    if constants.HF_HUB_OFFLINE:
        why, fix = "HF_HUB_OFFLINE is set, so the Hub is not asked", "Unset it"
    return SourceError(
        f"{recipe.model.source} cannot be fetched from the Hub",
        where=recipe.place("model.source"),
        why=f"{why}, and {lacking}",
        fix=f"{fix}, fetch the model elsewhere (hf download ID) and copy the cache's folder, or "
        "name a local directory",
    )


def _failures() -> tuple[type[Exception], ...]:
    """What a call of huggingface_hub may raise, whichever HTTP library it brings."""
    return (*_library(), OSError, ValueError)


def _library() -> tuple[type[Exception], ...]:
    """The bases of every error of that library, from which the Hub's own error descends.

    Until 0.36 it is requests, whose errors are OSErrors; from 1.0 on another one, whose failed
    connections are not.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__mro__ if base.__module__ != "builtins")


def _is_of_the_network(error: Exception) -> bool:
    """Whether nothing answered, what answered is no Hub, or the Hub asks to come back later."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        return status >= _DOWN or status == _TOO_MANY
    if isinstance(error, JSONDecodeError):
        return True  # the page of a proxy, or of a network that wants to be logged in to
    # An address that is none is a ValueError, too.
    network = (*_library(), ConnectionError, TimeoutError)
    return isinstance(error, network) and not isinstance(error, ValueError)

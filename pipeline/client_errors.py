"""Makes the client's errors those of the tool, at the one place where both are known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.dependencies import install
from pipeline.errors import MissingDependencyError, ServerError, UsageError


@contextmanager
def client_errors() -> Iterator[None]:
    """Turns what ``trtllm_client`` raises inside into errors of this project.

    Raises:
        UsageError: For an ``InvalidRequest``.
        ServerError: For any other error of the client.
        MissingDependencyError: The client, or what it needs, is not installed.
    """
    try:
        yield
    except ImportError as error:
        if error.name != "trtllm_client":
            raise
        raise MissingDependencyError(
            "the client is not installed, or not all of it",
            why=str(error),
            fix=install("client"),
        ) from error
    except Exception as error:
        # Importing the client brings gRPC; one that was not imported raised nothing.
        client: Any = sys.modules.get("trtllm_client")
        if client is None or not isinstance(error, client.ClientError):
            raise
        kind = UsageError if isinstance(error, client.InvalidRequest) else ServerError
        ours = kind(error.what, where=error.where, why=error.why, fix=error.fix)
        ours.name = type(error).__name__
        raise ours from error

"""The replicas of a deployment, as one engine of the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from pipeline.gateway.engine import Generation, Tokens
from pipeline.rayserve.failures import as_client_error, is_rays
from pipeline.rayserve.wire import pack_request, unpack
from trtllm_client import ClientError, ConnectionFailed

logger = logging.getLogger("ray.serve")
ANSWER_S = 1.0
"""Seconds that Ray's controller gets to answer."""


class RayEngine:
    """Generates on whichever replica Ray chooses: of two at random, the one with less to do.

    A replica that dies while it generates ends its streams with ``ConnectionFailed``, as a server
    does whose connection broke, so that what resumes those resumes these on another replica.

    Args:
        handle: Ray's handle of the replicas' deployment.
        running: Counts the replicas that are ready; it may take a moment and is called from a
            thread.
        name: The deployment's, for errors.
    """

    def __init__(self, handle: Any, running: Callable[[], int], name: str) -> None:
        self._call = handle.options(method_name="generate", stream=True)
        self._running, self._name = running, name
        self._known = 1
        self._asking: asyncio.Task[None] | None = None

    async def generate(self, asked: Generation) -> AsyncGenerator[Tokens, None]:
        """Generates; see :class:`pipeline.gateway.engine.Engine`.

        Raises:
            ConnectionFailed: The replica was lost.
            ServerBusy: All replicas are busy and the queue is full.
            ClientError: What the server said.
        """
        answer = ended = None
        try:
            answer = self._call.remote(pack_request(asked))
            async for item in answer:
                yield unpack(item)
            ended = True
        except ClientError:
            ended = True
            raise
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            # The replica's own task was, as happens to what runs when its time to drain is up.
            raise ConnectionFailed(
                "the replica ended the request",
                where=f"the deployment {self._name}",
                why="It was stopped before its requests were done",
            ) from error
        except Exception as error:
            raise as_client_error(error, self._name) from error
        finally:
            if answer is not None and not ended:
                answer.cancel()

    async def ready(self) -> bool:
        """Tells whether a replica is ready, as far as Ray has said in time.

        Replicas serve on while Ray's controller is slow or gone, so what it said last stands until
        it says something else. Before it has said anything they are taken to be there: a request
        that comes too early waits with Ray.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        await asyncio.wait({self._asking}, timeout=ANSWER_S)
        return self._known > 0

    async def _ask(self) -> None:
        try:
            self._known = await asyncio.to_thread(self._running)
        except Exception as error:
            # Ray's client is not made for several threads, and now and then raises what is no class
            # of its own. Whoever asks again and again must not stop asking.
            logger.warning("Ray does not say which replicas run", exc_info=not is_rays(error))

    async def close(self) -> None:
        """Does nothing: Ray keeps the connections, and ends the requests of a caller that ends."""


def _is_cancelled() -> bool:
    """Whether this task was asked to end; before Python 3.11 nobody can tell."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or bool(cancelling())

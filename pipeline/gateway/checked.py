"""An engine that gets no request before its server was found to be the right one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.gateway.check import check_tokenizer
from pipeline.gateway.engine import Generation, Tokens
from trtllm_client import ClientError, InvalidRequest

if TYPE_CHECKING:
    from pipeline.gateway.model import Model
    from pipeline.gateway.served import ServedEngine


class CheckedEngine:
    """A server that is ready only where its tokenizer is the gateway's.

    Args:
        engine: The server.
        model: The gateway's.
        say: Takes a line for the log.

    Attributes:
        checked: Whether it was found to be the right one.
        wrong: Why it is not; None where it is, or did not answer yet.
    """

    def __init__(self, engine: ServedEngine, model: Model, say: Callable[[str], object]) -> None:
        self._engine, self._model, self._say = engine, model, say
        self.checked = False
        self.wrong: UsageError | None = None

    def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        """Generates; see :meth:`pipeline.gateway.engine.Engine.generate`."""
        return self._engine.generate(asked)

    async def ready(self) -> bool:
        """Asks the server whether it is ready; the first time, what it makes of texts, too."""
        if self.wrong or not await self._engine.ready():
            return False
        if not self.checked:
            try:
                note = await check_tokenizer(self._engine.client, self._model)
            except UsageError as error:
                self.wrong = error
            except InvalidRequest as error:
                self.wrong = UsageError(error.what, where=error.where, why=error.why, fix=error.fix)
            except ClientError:
                return False
            else:
                self.checked = True
                if note:
                    self._say(f"note: {self._engine.url}: {note}")
                return True
            self._say(f"gets no request: {self.wrong}")
        return self.checked

    async def close(self) -> None:
        """Closes the connection; running requests end as cancelled."""
        await self._engine.close()

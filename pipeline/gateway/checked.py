"""An engine that gets no request before its server was found to be the right one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.gateway.check import build_of, check_tokenizer
from pipeline.gateway.engine import Generation, Tokens
from trtllm_client import ClientError, InvalidRequest

if TYPE_CHECKING:
    from pipeline.gateway.model import Model
    from pipeline.gateway.served import ServedEngine


class CheckedEngine:
    """A server that is ready only where its tokenizer is the gateway's.

    It is looked at again when another build has come up at its address, and after it was away where
    it does not say which build it has.

    Args:
        engine: The server.
        model: The gateway's.
        say: Takes a line for the log.

    Attributes:
        checked: Whether it was found to be the right one.
        wrong: Why it is not; None where it is, or did not answer yet.
        build: What tells its model from others; None where it does not say.
    """

    def __init__(self, engine: ServedEngine, model: Model, say: Callable[[str], object]) -> None:
        self._engine, self._model, self._say = engine, model, say
        self._was_away = True
        self.checked = False
        self.wrong: UsageError | None = None
        self.build: str | None = None

    def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        """Generates; see :meth:`pipeline.gateway.engine.Engine.generate`."""
        return self._engine.generate(asked)

    async def ready(self) -> bool:
        """Asks the server whether it is ready and which build it has; of a new one, more."""
        if not await self._engine.ready():
            self._was_away = True
            return False
        before = self.wrong
        try:
            build = await build_of(self._engine.client)
            if self._is_known(build):
                self._was_away = False
                return self.checked
            self.wrong, self.checked, self.build = None, False, build
            note = await check_tokenizer(self._engine.client, self._model)
        except UsageError as error:
            self._refuse(error, before)
        except InvalidRequest as error:
            self._refuse(
                UsageError(error.what, where=error.where, why=error.why, fix=error.fix), before
            )
        except ClientError:
            return False
        else:
            self.checked = True
            if note:
                self._say(f"note: {self._engine.url}: {note}")
        self._was_away = False
        return self.checked

    def _is_known(self, build: str | None) -> bool:
        if not self.checked and self.wrong is None:
            return False
        return build == self.build and not (build is None and self._was_away)

    def _refuse(self, error: UsageError, before: UsageError | None) -> None:
        if str(error) != str(before):
            self._say(f"gets no request: {error}")
        self.wrong = error

    async def close(self) -> None:
        """Closes the connection; running requests end as cancelled."""
        await self._engine.close()

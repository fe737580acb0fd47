"""The way of one request from server to server."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.fleet.counts import Counts
from pipeline.gateway.fleet.going_on import (
    Attempt,
    Border,
    OtherBuildError,
    OtherTokensError,
    Story,
    next_attempt,
)
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.fleet.prefixes import chain_of
from pipeline.gateway.fleet.replica import Flow, Replica, SilentError
from pipeline.gateway.fleet.roster import Roster
from trtllm_client import (
    Cancelled,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)

_LONGEST_PAUSE = 8
_FIRST_PROBE_S = 5.0
_LEAST_S = 0.001
# Of the server, or of the way to it. What else there is belongs to the request.
_LOST = (ConnectionFailed, ServerFailed, Cancelled, SilentError)


class Journey:
    """What has become of a request so far, and what is done next.

    Args:
        roster: The servers.
        policy: How often it may go on, and how long it waits.
        counts: Notes what becomes of each attempt.
        asked: The request.
    """

    def __init__(self, roster: Roster, policy: Policy, counts: Counts, asked: Generation) -> None:
        self._roster, self._policy, self._counts = roster, policy, counts
        self._story = Story(asked, [])
        self._chain = chain_of(asked.prompt, policy.block, policy.most_blocks)
        self._attempt = Attempt(asked, "begun")
        self._border = Border(self._attempt, self._story)
        self._may_continue = policy.greedy == "continue"
        self._resumes = 0
        self._began = _now()
        self._deadline = self._began + (policy.timeout_s or math.inf)
        # Which build began the text; None until one has, and where the server does not say.
        self._build: str | None = None
        self._broke_at: float | None = None
        self._error: ClientError | None = None
        # Servers that it does without: until when, and for how long the next time.
        self._avoided: dict[str, float] = {}
        self._pauses: dict[str, float] = {}

    async def begin(self) -> Flow:
        """Waits for a server that may have the request, and asks it for what is left of the text.

        Raises:
            ClientError: No server answers in time; the error that the last one gave, if any did.
        """
        replica = await self._free()
        self._attempt = next_attempt(
            self._story,
            self._resumes,
            may_continue=self._may_continue,
            overlap=self._policy.overlap,
        )
        self._border = Border(self._attempt, self._story)
        asked = self._attempt.asked
        if self._deadline < math.inf:
            asked = replace(asked, timeout_s=max(self._deadline - _now(), _LEAST_S))
        flow = replica.begin(asked)
        self._build = flow.build if not self._story.given else self._build
        return flow

    def take(self, tokens: Tokens | None) -> Tokens | None:
        """Returns what is new of a response; None where nothing is.

        Args:
            tokens: The response; None for the end.

        Raises:
            OtherTokensError: A token is another one than before.
        """
        new = None
        if tokens is None:
            self._border.end()
        else:
            new = self._border.new(tokens)
        if self._broke_at is not None and (tokens is None or new is not None):
            self._counts.stalled(_now() - self._broke_at)
            self._counts.tried("resumed", self._attempt.how)
            self._broke_at = None
            self._avoided.clear()
            self._pauses.clear()
        return new

    def goes_on(self, flow: Flow, error: Exception) -> bool:
        """Notes that an attempt ended with an error; False where nothing is missing of the text.

        Raises:
            ClientError: The request cannot go on.
        """
        self._error = self._as_client_error(flow.server, error)
        if isinstance(error, ServerBusy):
            self._wait_for_a_place(flow)
            return True
        if not self._is_of_the_server(error):
            raise self._error
        if isinstance(error, ConnectionFailed | SilentError):
            flow.failed()
        if self._roster.is_closed:
            raise self._error from error
        if self._broke_at is not None and self._attempt.how != "begun":
            differed = isinstance(error, OtherTokensError)
            self._counts.tried("differed" if differed else "failed", self._attempt.how)
        if self._broke_at is None:
            self._broke_at = _now()
            self._avoided.clear()
        if self._story.is_whole:
            return False
        if self._may_go_back(error):
            self._may_continue = False
        elif isinstance(error, OtherTokensError):
            raise self._error from error
        else:
            # One whose connection broke is not used before it says that it is ready.
            self._avoid(flow, 0.0 if isinstance(error, ConnectionFailed) else self._policy.pause_s)
        if self._resumes >= self._policy.resumes:
            if self._resumes:
                self._counts.tried("given_up", "none")
            raise self._error from error
        self._resumes += 1
        return True

    def _is_of_the_server(self, error: Exception) -> bool:
        if isinstance(error, (*_LOST, OtherTokensError)):
            return True
        # What was served before is no wrong request, but a server that is not itself yet, or a
        # prompt that has become too long.
        return isinstance(error, InvalidRequest) and self._broke_at is not None

    def _may_go_back(self, error: Exception) -> bool:
        """Whether a text that cannot be continued can still be made again."""
        could_not = isinstance(error, OtherTokensError | InvalidRequest)
        return could_not and self._attempt.how == "continued"

    def _as_client_error(self, server: str, error: Exception) -> ClientError:
        if isinstance(error, OtherBuildError):
            return ServerFailed(
                "the text cannot go on as it began",
                where=server,
                why=f"its server was lost after {len(self._story.given)} tokens, and all servers "
                "have another build by now",
                fix="Ask again",
            )
        if isinstance(error, OtherTokensError):
            return ServerFailed(
                "the text cannot go on as it began",
                where=server,
                why=f"its server was lost after {len(self._story.given)} tokens, and what this "
                f"one makes of the same request differs from token {error.place} on",
                fix="Ask again; if it happens often, see that all servers serve the same build",
            )
        if isinstance(error, SilentError):
            return ConnectionFailed(
                "the server is not ready and says nothing any more",
                where=server,
                fix="Look at the server and the way to it",
            )
        assert isinstance(error, ClientError)
        return error

    def _wait_for_a_place(self, flow: Flow) -> None:
        """Tries another server; a text that has begun waits for a place."""
        assert self._error is not None
        if self._broke_at is not None:
            self._avoid(flow, self._policy.pause_s)
            return
        self._avoid(flow, math.inf)
        if not any(replica.name not in self._avoided for replica in self._roster.usable()):
            raise self._error

    def _avoid(self, flow: Flow, at_least: float) -> None:
        pause = max(self._pauses.get(flow.server, 0.0), at_least)
        self._avoided[flow.server] = _now() + pause
        first = self._policy.pause_s
        self._pauses[flow.server] = min(2 * pause or first, _LONGEST_PAUSE * first)

    async def _free(self) -> Replica:
        while True:
            now, usable = _now(), self._roster.usable()
            fitting = [r for r in usable if self._fits(r)]
            free = [r for r in fitting if self._avoided.get(r.name, -math.inf) <= now]
            if usable and not fitting and self._roster.is_whole():
                self._counts.tried("given_up", "none")
                raise self._as_client_error(usable[0].name, OtherBuildError())
            until = min(self._until(), self._deadline)
            settles = min(until, self._began + _FIRST_PROBE_S)
            if free and (self._roster.is_settled() or now >= settles):
                return self._roster.choose(self._chain, free)
            if now >= until or self._roster.is_closed:
                if self._resumes:
                    self._counts.tried("given_up", "none")
                if now >= self._deadline:
                    raise _too_late(self._policy) from self._error
                raise self._error or _no_server(self._policy)
            soonest = min((self._avoided.get(r.name, math.inf) for r in fitting), default=math.inf)
            await self._roster.changed(min(until, settles if free else soonest) - now)

    def _fits(self, replica: Replica) -> bool:
        """Whether it may go on with the text: no other build than the one that began it."""
        if not self._story.given or self._build is None:
            return True
        return replica.build in (None, self._build)

    def _until(self) -> float:
        """Until when a server is waited for, in the loop's seconds."""
        since = self._broke_at or self._began
        if self._policy.resumes == 0:
            return since + (0.0 if self._roster.is_known() else _FIRST_PROBE_S)
        # Who comes long after the last server was lost need not wait for it all over again.
        return min(since, self._roster.down_since() or since) + self._policy.wait_s


def _too_late(policy: Policy) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the request was not answered within {policy.timeout_s:g} s",
        why="No server was ready in what was left of the time",
    )


def _no_server(policy: Policy) -> ConnectionFailed:
    return ConnectionFailed(
        "no server is ready",
        why=f"none has been for {policy.wait_s:g} s" if policy.resumes else None,
        fix="Look at the servers' logs, and ask again when one of them is ready",
    )


def _now() -> float:
    return asyncio.get_running_loop().time()

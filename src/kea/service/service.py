"""The service: sessions over engines. Owns the sessions, their limits and their end; knows no HTTP and no models.

Every method is called on one event loop. The engines belong to whoever made the service.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Self

from kea.engine.base import Engine
from kea.errors import Cancelled, LimitExceeded, NotFound, PermissionDenied, ServiceClosing
from kea.program.call import Program
from kea.program.status import CallState, SessionStatus
from kea.program.variable import SemanticVariable
from kea.scheduler import Scheduler, create_scheduler
from kea.service.config import ServiceConfig
from kea.service.dispatch import Dispatcher
from kea.service.execution import CallRunner
from kea.service.metering import Meter
from kea.service.native import NativeFunction, NativeRunner
from kea.service.prompt import Tokenizer
from kea.service.reading import read_each, read_pieces, read_value
from kea.service.session import Clock, Ledger, Session, SessionHost, SessionIdentity, Tenant
from kea.types import Criteria

logger = logging.getLogger(__name__)

MAX_REAP_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """The service at one moment, and its counters since the start; tokens are those of calls that ended."""

    num_sessions: int
    num_pending: int
    num_queued: int
    num_retries: int
    num_ended: dict[CallState, int]
    prompt_tokens: int = 0
    output_tokens: int = 0


class Service:
    """Use it as an async context manager: while it is open, idle sessions are closed, and calls end whose client is
    gone; at its end all sessions are closed.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        tokenizer: Tokenizer,
        *,
        config: ServiceConfig | None = None,
        functions: Mapping[str, NativeFunction] | None = None,
        scheduler: Scheduler | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.engines = tuple(engines)
        self.tokenizer = tokenizer
        self.config = config or ServiceConfig()
        self._scheduler = scheduler or create_scheduler()
        self._call_runner = CallRunner(tokenizer, lambda: secrets.randbits(31), clock)
        native_runner = NativeRunner(dict(functions or {}), self.config.native_threads, self.config.native_timeout_s)
        runners = self._call_runner, native_runner
        self._dispatcher = Dispatcher(self.engines, self._scheduler, runners, self.config, clock)
        self._host = SessionHost(self._dispatcher, self.config, clock, Ledger())
        self._sessions: dict[int, Session] = {}
        self._tenants: dict[str, Tenant] = {}
        self._is_closed = False
        self._reaper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._reaper = asyncio.get_running_loop().create_task(self._reap())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def measure(self, meter: Meter) -> None:
        """Tell `meter` from now on how long the outputs of calls took."""
        self._call_runner.meter = meter

    async def close(self) -> None:
        """Fail whatever still runs with `ServiceClosing`, and wait until the engines were told."""
        self._is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        for session in list(self._sessions.values()):
            self._end(session, ServiceClosing("the service is shutting down.", hint="Try again later."))
        await self._dispatcher.close()

    def create_session(self, *, tenant: str = "", name: str = "", lease_s: float = math.inf) -> Session:
        """Open a session. Raises `LimitExceeded` when the tenant has its number, `ServiceClosing`.

        `lease_s`: after so long without a request or a reader its calls are cancelled (infinite: they run to the end).
        """
        if self._is_closed:
            raise ServiceClosing("the service is shutting down.", hint="Try again later.")
        owner = self._tenants.setdefault(tenant, Tenant(tenant))
        most = self.config.max_sessions_per_tenant
        if owner.num_sessions >= most:
            raise LimitExceeded(
                f"{most} sessions are open, as many as are allowed.", hint="Close one.", param="session"
            )
        owner.num_sessions += 1
        session_id = secrets.randbits(53)
        while session_id in self._sessions:
            session_id = secrets.randbits(53)
        session = Session(SessionIdentity(session_id, secrets.token_urlsafe(24), name), owner, self._host, lease_s)
        self._sessions[session_id] = session
        return session

    def session(self, session_id: int, *, tenant: str = "") -> Session:
        """Return an open session of this tenant, and count it as used. Raises `NotFound`."""
        session = self._sessions.get(session_id)
        if session is None or session.tenant.name != tenant:
            raise NotFound(
                f"there is no session {session_id}.",
                hint=f"It may have been closed, also by being idle for {self.config.idle_s:g} s.",
                param="session_id",
            )
        session.touch()
        return session

    def close_session(self, session: Session) -> None:
        """Cancel what runs in the session, fail what was not set, forget it."""
        self._end(session, Cancelled("the session was closed."))

    def submit(self, session: Session, program: Program) -> None:
        """Accept a program and start what is ready; returns at once. Raises as `Session.submit`."""
        session.touch()
        session.submit(program)

    def set(self, session: Session, variable_id: str, text: str) -> None:
        """Set a variable that no call writes. Raises as `Session.set`."""
        session.touch()
        session.set(variable_id, text)

    async def get(
        self, session: Session, variable_id: str, criteria: Criteria | None = None, deadline_s: float | None = None
    ) -> str:
        """Return a variable's value once it is ready. Raises its error, `DeadlineExceeded`, `NotFound`."""
        with self._reading(session, variable_id, criteria) as variable:
            return await read_value(variable, deadline_s)

    async def stream(self, session: Session, variable_id: str, criteria: Criteria | None = None) -> AsyncGenerator[str]:
        """Yield a variable's text from the beginning, as it is written. Raises its error behind what was written."""
        with self._reading(session, variable_id, criteria) as variable:
            async with aclosing(read_pieces(variable)) as pieces:
                async for piece in pieces:
                    yield piece

    async def read_each(
        self, session: Session, variable_ids: Iterable[str], criteria: Criteria | None = None
    ) -> AsyncGenerator[SemanticVariable]:
        """Yield each of these variables once it is done, ready or failed, in that order. Raises `NotFound`."""
        with ExitStack() as stack:
            reading = (self._reading(session, variable_id, criteria) for variable_id in dict.fromkeys(variable_ids))
            variables = [stack.enter_context(one) for one in reading]
            async with aclosing(read_each(variables)) as done:
                async for variable in done:
                    yield variable

    def cancel(self, session: Session, call_ids: Iterable[str] | None = None) -> list[str]:
        """Cancel calls that have not ended (all when None); return their ids. Raises `NotFound`."""
        session.touch()
        return session.cancel(call_ids)

    def status(self, session: Session) -> SessionStatus:
        return session.status()

    def expire_idle(self) -> int:
        """Close the sessions that were idle for too long; return how many."""
        idle = [session for session in self._sessions.values() if session.is_idle(self.config.idle_s)]
        for session in idle:
            logger.info("session %d was idle and is closed", session.identity.id)
            self._end(session, Cancelled("the session was idle for too long and was closed."))
        return len(idle)

    def cancel_forsaken(self) -> int:
        """Cancel what runs in sessions whose lease was not renewed; return how many calls that ended."""
        num_cancelled = 0
        for session in [session for session in self._sessions.values() if session.is_forsaken()]:
            reason = f": its session had no request and no reader for {session.lease_s:g} s"
            cancelled = session.cancel(reason=reason)
            logger.info("%d calls of session %d were cancelled%s", len(cancelled), session.identity.id, reason)
            num_cancelled += len(cancelled)
        return num_cancelled

    def next_order(self) -> float:
        """Return the place of a single request among the applications: as if it were one that arrives now."""
        self._host.ledger.num_applications += 1
        return float(self._host.ledger.num_applications)

    def snapshot(self) -> ServiceSnapshot:
        return ServiceSnapshot(
            num_sessions=len(self._sessions),
            num_pending=sum(tenant.num_pending for tenant in self._tenants.values()),
            num_queued=len(self._scheduler),
            num_retries=self._dispatcher.num_retries,
            num_ended=dict(self._host.ledger.num_ended),
            prompt_tokens=self._host.ledger.prompt_tokens,
            output_tokens=self._host.ledger.output_tokens,
        )

    def check(self) -> None:
        """Assert that the books of sessions, tenants and engines agree."""
        for session in self._sessions.values():
            session.check()
        for tenant in self._tenants.values():
            owned = [session for session in self._sessions.values() if session.tenant is tenant]
            assert tenant.num_sessions == len(owned), f"sessions of {tenant.name!r} are miscounted"
            assert tenant.num_pending == sum(session.num_pending for session in owned), "pending calls are miscounted"
            assert tenant.num_bytes == sum(session.num_bytes for session in owned), "held bytes are miscounted"
        self._dispatcher.check_books()

    @contextmanager
    def _reading(self, session: Session, variable_id: str, criteria: Criteria | None) -> Iterator[SemanticVariable]:
        variable = session.variable(variable_id)
        if criteria is not None:
            variable.criteria.add(criteria)
        session.num_readers += 1
        try:
            yield variable
        finally:
            session.num_readers -= 1
            session.touch()

    def _end(self, session: Session, error: Cancelled | ServiceClosing) -> None:
        if self._sessions.pop(session.identity.id, None) is None:
            return
        session.close(error)
        session.tenant.num_sessions -= 1
        if not session.tenant.num_sessions:
            del self._tenants[session.tenant.name]

    async def _reap(self) -> None:
        interval_s = min(MAX_REAP_INTERVAL_S, max(0.1, self.config.idle_s / 4))
        while True:
            await asyncio.sleep(interval_s)
            self.cancel_forsaken()
            self.expire_idle()


def check_secret(session: Session, secret: str) -> None:
    """Raise `PermissionDenied` unless the secret is the session's (compared in constant time)."""
    if not hmac.compare_digest(secret.encode(), session.identity.secret.encode()):
        raise PermissionDenied(
            "the session's secret is wrong.", hint="Send the one that came with the session.", param="session_secret"
        )

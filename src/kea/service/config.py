"""What an operator may set on the service. Knows nothing else of ours but `errors`."""

from __future__ import annotations

from dataclasses import dataclass

from kea.errors import check_range


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Limits and times of a service.

    A pending call is one that has not ended. `max_bytes_per_tenant` bounds the memory that a tenant's sessions hold in
    texts of variables and in programs, until they are closed. A session in which nothing ran, nobody read and nothing
    was asked for `idle_s` seconds is closed. A call whose engine died runs again, at most `max_attempts` times in all,
    the first time after `retry_delay_s` and then after twice as long each time; that engine is the last choice for
    `doubt_s`. `calls_per_engine` bounds the calls handed to one engine at once (None: twice its sequences); others wait
    here.
    """

    max_sessions_per_tenant: int = 1_000
    max_pending_calls_per_session: int = 20_000
    max_pending_calls_per_tenant: int = 100_000
    max_variables_per_session: int = 200_000
    max_bytes_per_tenant: int = 2**30
    idle_s: float = 3600.0
    max_attempts: int = 3
    retry_delay_s: float = 0.1
    doubt_s: float = 5.0
    calls_per_engine: int | None = None
    native_timeout_s: float = 30.0
    native_threads: int = 4

    def __post_init__(self) -> None:
        check_range("max_sessions_per_tenant", self.max_sessions_per_tenant, 1)
        check_range("max_pending_calls_per_session", self.max_pending_calls_per_session, 1)
        check_range("max_pending_calls_per_tenant", self.max_pending_calls_per_tenant, 1)
        check_range("max_variables_per_session", self.max_variables_per_session, 1)
        check_range("max_bytes_per_tenant", self.max_bytes_per_tenant, 1)
        check_range("idle_s", self.idle_s, 0.0)
        check_range("max_attempts", self.max_attempts, 1)
        check_range("retry_delay_s", self.retry_delay_s, 0.0)
        check_range("doubt_s", self.doubt_s, 0.0)
        if self.calls_per_engine is not None:
            check_range("calls_per_engine", self.calls_per_engine, 1)
        check_range("native_timeout_s", self.native_timeout_s, 0.0)
        check_range("native_threads", self.native_threads, 1)

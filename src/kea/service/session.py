"""A session: its variables, its calls, and how readiness and failure travel between them. Knows no engine, no loop.

A variable that becomes ready starts the calls that missed nothing else. A call that fails fails its outputs, and what
reads those, at once, however long the chain: every variable is told the first cause.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kea.errors import CallFailed, Cancelled, Conflict, KeaError, LimitExceeded, NotFound
from kea.program.call import AnyCall, Program
from kea.program.fields import check_unicode
from kea.program.graph import Node, ProgramGraph
from kea.program.status import CallState, SessionStatus
from kea.program.variable import SemanticVariable, VariableState, text_bytes
from kea.service.config import ServiceConfig
from kea.service.holding import program_bytes
from kea.service.record import CallRecord

Clock = Callable[[], float]


class Dispatch(Protocol):
    """Who runs the calls of a session."""

    def check(self, call: AnyCall) -> None:
        """Raise `InvalidRequest` or `NotFound` for a call that could never run here."""
        ...

    def start(self, record: CallRecord, session: Session) -> None:
        """Run a call whose inputs are ready; its state is still BLOCKED."""
        ...

    def stop(self, record: CallRecord) -> None:
        """Stop a call that was started; its state says that it ended."""
        ...


@dataclass(frozen=True, slots=True)
class SessionIdentity:
    """`id` is random and below 2^53: a capability, and an integer in every JSON."""

    id: int
    secret: str
    name: str = ""


class Tenant:
    """Who owns sessions (an API key): what its limits count. Lives as long as it has sessions."""

    __slots__ = ("name", "num_bytes", "num_pending", "num_sessions")

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_sessions = 0
        self.num_pending = 0
        self.num_bytes = 0


class Ledger:
    """What all sessions of a service count together: applications in their order, calls by the way they ended, and the
    tokens of those.
    """

    __slots__ = ("num_applications", "num_ended", "output_tokens", "prompt_tokens")

    def __init__(self) -> None:
        self.num_applications = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.num_ended = dict.fromkeys((CallState.DONE, CallState.FAILED, CallState.CANCELLED), 0)


@dataclass(frozen=True, slots=True)
class SessionHost:
    """What a service gives to its sessions."""

    dispatch: Dispatch
    config: ServiceConfig
    clock: Clock
    ledger: Ledger


class Session:
    """Made by `Service.create_session`; `close` (by its owner, or when it was idle for long) ends what still runs.

    `lease_s`: how long calls run on for a client that neither asks nor reads (infinite: to their end).
    """

    def __init__(self, identity: SessionIdentity, tenant: Tenant, host: SessionHost, lease_s: float = math.inf) -> None:
        self.identity = identity
        self.tenant = tenant
        self.graph = ProgramGraph()
        self.variables: dict[str, SemanticVariable] = {}
        self.records: dict[str, CallRecord] = {}
        self.num_pending = 0
        self.num_bytes = 0
        self.program_bytes = 0
        self.num_started = 0
        self.num_readers = 0
        self.began_s = host.clock()
        self.last_used_s = self.asked_s = self.began_s
        self.lease_s = lease_s
        self.closed_by: KeaError | None = None
        self._host = host
        self._dispatch = host.dispatch
        self._clock = host.clock
        self._application = 0

    def variable(self, variable_id: str) -> SemanticVariable:
        """Return a variable. Raises `NotFound`."""
        variable = self.variables.get(variable_id)
        if variable is None:
            raise NotFound(f"the session has no variable {variable_id[:80]!r}.", param="variable")
        return variable

    def submit(self, program: Program) -> None:
        """Accept a program whole, and start what is ready. Raises what is wrong with it, and then accepts nothing.

        `TemplateError` (unknown variable, cycle), `Conflict` (an id or a variable that is taken), `LimitExceeded`.
        """
        self._check_open()
        num_bytes = program_bytes(program)
        self._check_limits(program, num_bytes)
        for call in program.calls:
            self._dispatch.check(call)
        self._check_writable(program)
        nodes = [Node(call.id, call.name, call.reads, call.writes) for call in program.calls]
        self.graph.add(nodes, [variable.id for variable in program.variables])
        self.program_bytes += num_bytes
        self._hold(num_bytes)
        for declared in program.variables:
            self._declare(declared.id, declared.name, declared.value)
        records = [self._accept(call) for call in program.calls]
        for record, node in zip(records, nodes, strict=True):
            self._connect(record, node)

    def set(self, variable_id: str, text: str) -> None:
        """Set a variable that no call writes. Raises `Conflict` when it is set or has a producer, `NotFound`."""
        self._check_open()
        check_unicode(text, "value")
        variable = self.variable(variable_id)
        producer = self.graph.producer_of(variable_id)
        if producer is not None:
            raise Conflict(
                f"variable {variable_id!r} is written by call {self.records[producer].spec.name!r}.",
                param="variable",
            )
        self._check_bytes(text_bytes(text))
        variable.set(text)
        self._hold(variable.num_bytes)
        self._on_ready(variable)

    def value_of(self, variable_id: str) -> str:
        """Return the text of a variable that is ready."""
        return self.variables[variable_id].value

    def write_output(self, variable_id: str, text: str) -> None:
        """Append a piece to an output. Raises `LimitExceeded` where the key may hold no more."""
        variable = self.variables[variable_id]
        num_before = variable.num_bytes
        variable.write(text)
        self._hold(variable.num_bytes - num_before)
        if variable.num_bytes > num_before:
            self._check_bytes(0)

    def finish_output(self, variable_id: str) -> None:
        """Make an output ready: its call has written it."""
        variable = self.variables[variable_id]
        num_before = variable.num_bytes
        variable.finish()
        self._hold(variable.num_bytes - num_before)
        self._on_ready(variable)

    def finish_call(self, record: CallRecord) -> None:
        self._end(record, CallState.DONE)

    def fail_call(self, record: CallRecord, error: KeaError) -> None:
        """End a call with an error; its outputs that are not ready fail with it, and so does what reads them."""
        is_cancelled = isinstance(error, Cancelled)
        self._stop(record, CallState.CANCELLED if is_cancelled else CallState.FAILED, error)
        failure: KeaError = error
        if not is_cancelled:
            failure = CallFailed(f"call {record.spec.name!r} failed: {error}")
            failure.__cause__ = error
        self._fail_variables(record.spec.writes, failure)

    def cancel(self, call_ids: Iterable[str] | None = None, reason: str = "") -> list[str]:
        """Cancel calls (all of them when None) that have not ended; return their ids. Raises `NotFound`."""
        ids = list(self.records) if call_ids is None else list(call_ids)
        unknown = next((call_id for call_id in ids if call_id not in self.records), None)
        if unknown is not None:
            raise NotFound(f"the session has no call {unknown[:80]!r}.", param="call_ids")
        cancelled = [call_id for call_id in dict.fromkeys(ids) if not self.records[call_id].has_ended]
        for call_id in reversed(self.graph.in_order(cancelled)):  # consumers first: they are cancelled, not failed
            record = self.records[call_id]
            self.fail_call(record, Cancelled(f"call {record.spec.name!r} was cancelled{reason}."))
        return cancelled

    def close(self, error: KeaError | None = None) -> None:
        """End the session: calls are cancelled, every variable that is not set fails with `error`."""
        if self.closed_by is not None:
            return
        self.closed_by = error or Cancelled("the session was closed.")
        for record in self.records.values():
            if not record.has_ended:
                self._stop(record, CallState.CANCELLED, self.closed_by)
        for variable in self.variables.values():
            if not variable.is_done:
                variable.fail(self.closed_by)
        self.tenant.num_bytes -= self.num_bytes

    def status(self) -> SessionStatus:
        now_s = self._clock()
        return SessionStatus(
            session_id=self.identity.id,
            name=self.identity.name,
            tenant=self.tenant.name,
            age_s=now_s - self.began_s,
            num_pending=self.num_pending,
            num_variables=len(self.variables),
            calls=tuple(record.row(self.began_s, now_s) for record in self.records.values()),
        )

    def touch(self) -> None:
        """Say that its client asked for something now, or read until now."""
        self.last_used_s = self.asked_s = self._clock()

    def is_idle(self, idle_s: float) -> bool:
        """Tell whether nothing ran, read or asked for `idle_s` seconds.

        Calls that are blocked while nothing runs wait for a variable that only the client can set.
        """
        return not self.num_started and not self.num_readers and self._clock() - self.last_used_s >= idle_s

    def is_forsaken(self) -> bool:
        """Tell whether calls run for a client that was silent for longer than its lease."""
        return self.num_started > 0 and not self.num_readers and self._clock() - self.asked_s >= self.lease_s

    def check(self) -> None:
        """Assert that the books agree: pending calls, missing inputs, states of outputs."""
        pending = [record for record in self.records.values() if not record.has_ended]
        assert self.num_pending == len(pending), "pending calls are miscounted"
        blocked = [record for record in pending if record.state is CallState.BLOCKED]
        assert self.num_started == len(pending) - len(blocked), "started calls are miscounted"
        num_bytes = sum(variable.num_bytes for variable in self.variables.values())
        assert self.num_bytes == self.program_bytes + num_bytes, "held bytes are miscounted"
        for record in self.records.values():
            outputs = [self.variables[variable_id] for variable_id in record.spec.writes]
            if record.has_ended:
                assert all(variable.is_done for variable in outputs), f"call {record.spec.id} ended with open outputs"
            missing = sum(not self.variables[item].is_done for item in record.spec.reads)
            if record.state is CallState.BLOCKED:
                assert record.num_missing == missing > 0, f"call {record.spec.id} waits for nothing"

    def _check_open(self) -> None:
        if self.closed_by is not None:
            raise NotFound("the session was closed.", param="session_id")

    def _hold(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self.tenant.num_bytes += num_bytes

    def _check_bytes(self, num_new: int) -> None:
        held, most = self.tenant.num_bytes, self._host.config.max_bytes_per_tenant
        if held + num_new > most:
            raise LimitExceeded(
                f"the sessions of the key would hold {held + num_new} bytes in variables and programs; at most {most} "
                "are allowed (max_bytes_per_tenant).",
                hint="Close sessions whose results were read.",
                param="value",
            )

    def _check_limits(self, program: Program, num_bytes: int) -> None:
        config, num_calls = self._host.config, len(program.calls)
        num_new = len(program.variables) + sum(len(call.writes) for call in program.calls)
        _check_room("pending calls", "session", self.num_pending + num_calls, config.max_pending_calls_per_session)
        _check_room("pending calls", "key", self.tenant.num_pending + num_calls, config.max_pending_calls_per_tenant)
        _check_room("variables", "session", len(self.variables) + num_new, config.max_variables_per_session)
        self._check_bytes(num_bytes + sum(text_bytes(variable.value or "") for variable in program.variables))

    def _check_writable(self, program: Program) -> None:
        preset = {variable.id for variable in program.variables if variable.value is not None}
        for call in program.calls:
            for variable_id in call.writes:
                known = self.variables.get(variable_id)
                if variable_id in preset or (known is not None and known.state is not VariableState.EMPTY):
                    raise Conflict(
                        f"call {call.name!r} writes variable {variable_id!r}, which is set already.", param="calls"
                    )

    def _declare(self, variable_id: str, name: str, value: str | None = None) -> None:
        variable = self.variables.setdefault(variable_id, SemanticVariable(variable_id, name))
        if value is not None:
            variable.set(value)
            self._hold(variable.num_bytes)

    def _accept(self, call: AnyCall) -> CallRecord:
        if not self.num_pending:
            self._host.ledger.num_applications += 1
            self._application = self._host.ledger.num_applications
        self.num_pending += 1
        self.tenant.num_pending += 1
        order = (self._application, len(self.records))
        record = CallRecord(call, self.identity.id, self.tenant.name, order, self._clock())
        self.records[call.id] = record
        for output in call.outputs:
            self._declare(output.variable_id, output.name)
        return record

    def _connect(self, record: CallRecord, node: Node) -> None:
        inputs = [self.variables[variable_id] for variable_id in node.reads]
        failed = next((variable for variable in inputs if variable.state is VariableState.FAILED), None)
        if record.has_ended:
            return
        if failed is not None:
            error = self._failed_input(record, failed)
            self._stop(record, CallState.FAILED, error)
            self._fail_variables(record.spec.writes, error)
            return
        record.num_missing = sum(not variable.is_done for variable in inputs)
        if not record.num_missing:
            self._start(record)

    def _on_ready(self, variable: SemanticVariable) -> None:
        for call_id in self.graph.consumers_of(variable.id):
            record = self.records[call_id]
            if record.state is CallState.BLOCKED:
                record.num_missing -= 1
                if not record.num_missing:
                    self._start(record)

    def _start(self, record: CallRecord) -> None:
        self.num_started += 1
        self._dispatch.start(record, self)

    def _stop(self, record: CallRecord, state: CallState, error: KeaError) -> None:
        was_started = record.state is not CallState.BLOCKED
        record.error = error
        self._end(record, state)
        if was_started:
            self._dispatch.stop(record)

    def _end(self, record: CallRecord, state: CallState) -> None:
        self.num_started -= record.state is not CallState.BLOCKED
        record.move(state, self._clock())
        self.num_pending -= 1
        self.tenant.num_pending -= 1
        ledger = self._host.ledger
        ledger.num_ended[state] += 1
        ledger.prompt_tokens += record.prompt_len
        ledger.output_tokens += record.output_len
        self.last_used_s = self._clock()

    def _fail_variables(self, variable_ids: Sequence[str], failure: KeaError) -> None:
        """Fail outputs and whatever depends on them; a list of work instead of recursion, for long chains."""
        work = deque((variable_id, failure) for variable_id in variable_ids)
        while work:
            variable_id, error = work.popleft()
            variable = self.variables[variable_id]
            if variable.is_done:
                continue
            variable.fail(error)
            for record in [self.records[call_id] for call_id in self.graph.consumers_of(variable_id)]:
                if record.state is CallState.BLOCKED:
                    missing_input = self._failed_input(record, variable)
                    self._stop(record, CallState.FAILED, missing_input)
                    work.extend((item, missing_input) for item in record.spec.writes)

    def _failed_input(self, record: CallRecord, variable: SemanticVariable) -> CallFailed:
        """The error of a call that cannot run. Its cause is the first one: such chains do not grow with the graph."""
        cause = variable.error
        if isinstance(cause, CallFailed) and isinstance(cause.__cause__, KeaError):
            cause = cause.__cause__
        producer = self.graph.producer_of(variable.id)
        origin = "" if producer is None else self.records[producer].origin
        record.origin = origin or record.origin
        within = f" in call {origin!r}" if origin else ""
        error = CallFailed(
            f"call {record.spec.name!r} did not run: its input {variable.name or variable.id!r} failed{within}: {cause}"
        )
        error.__cause__ = cause
        return error


def _check_room(what: str, where: str, wanted: int, most: int) -> None:
    if wanted > most:
        raise LimitExceeded(
            f"the {where} would have {wanted} {what}; at most {most} are allowed.",
            hint="Wait for some to end, or use another session.",
            param="calls",
        )

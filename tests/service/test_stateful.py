"""Random programs, cancellations, deaths and closings: the books agree after each step, everyone has an answer."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kea.errors import EngineFault, KeaError, LimitExceeded
from kea.program.variable import VariableState
from kea.service import Session
from kea.types import GenerateOptions
from tests.fakes.engine import FakeEngine
from tests.service.programs import call, native, program, service

numbers = st.integers(0, 10_000)


def digest(prompt: str, options: GenerateOptions) -> str:
    return f"{len(prompt)}:{prompt[-3:]}"


class ServiceMachine(RuleBasedStateMachine):
    """Two engines, some sessions. Every variable that was ever made has a reader."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.engines = [FakeEngine(digest), FakeEngine(digest)]
        self.sessions: list[Session] = []
        self.readers: list[tuple[asyncio.Task[str], Session]] = []
        self.num_made = 0

    @initialize()
    def start(self) -> None:
        async def open_service() -> None:
            config = {"calls_per_engine": 2, "max_attempts": 4, "max_pending_calls_per_session": 20}
            functions = {"twice": lambda text: text * 2}
            self.service = service(*self.engines, config=config, functions=functions)
            await self.service.__aenter__()
            self.sessions.append(self.service.create_session())

        self.runner.run(open_service())

    def act(self, *steps: Any) -> None:
        """Do something on the loop, then let it run a little."""

        async def work() -> None:
            for step in steps:
                step()
            await asyncio.sleep(0)

        self.runner.run(work())

    def new_name(self) -> str:
        self.num_made += 1
        return f"v{self.num_made}"

    def read(self, session: Session, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self.service.get(session, name))
        self.readers.append((task, session))

    @rule()
    def open_session(self) -> None:
        self.act(lambda: self.sessions.append(self.service.create_session()))

    @rule(where=numbers, inputs=st.lists(numbers, max_size=3), kind=st.sampled_from(["call", "two", "native", "chat"]))
    def submit(self, where: int, inputs: list[int], kind: str) -> None:
        session = self.sessions[where % len(self.sessions)]
        known = list(session.variables)
        read = [known[idx % len(known)] for idx in inputs] if known else []
        names = [self.new_name() for _ in range(1 + (kind == "two"))]
        text = "".join(f"{{{{{name}}}}}." for name in read)
        written = {name: {"max_tokens": 20} for name in names}
        if kind == "native" and read:
            new: Any = native(names[0], "twice", {"text": "x"}, names[0])
        elif kind == "chat":
            new = call(names[0], [("user", f"u{text}"), ("assistant", f"{{{{{names[0]}}}}}")], **written)
        else:
            new = call(names[0], f"p{text}" + "-".join(f"{{{{{name}}}}}" for name in names), **written)

        def send() -> None:
            try:
                self.service.submit(session, program(new))
            except LimitExceeded:
                return
            for name in names:
                self.read(session, name)

        self.act(send)

    @rule(where=numbers)
    def declare(self, where: int) -> None:
        session, name = self.sessions[where % len(self.sessions)], self.new_name()
        self.act(lambda: self.service.submit(session, program(**{name: None})), lambda: self.read(session, name))

    @rule(where=numbers, which=numbers)
    def set_variable(self, where: int, which: int) -> None:
        session = self.sessions[where % len(self.sessions)]
        free = free_variables(session)
        if free:
            self.act(lambda: self.service.set(session, free[which % len(free)], "set"))

    @rule(where=numbers, which=st.none() | numbers)
    def cancel(self, where: int, which: int | None) -> None:
        session = self.sessions[where % len(self.sessions)]
        ids = list(session.records)
        chosen = None if which is None or not ids else [ids[which % len(ids)]]
        self.act(lambda: self.service.cancel(session, chosen))

    @rule(where=numbers)
    def close_session(self, where: int) -> None:
        session = self.sessions.pop(where % len(self.sessions))
        self.act(lambda: self.service.close_session(session))
        if not self.sessions:
            self.open_session()

    @rule(which=st.booleans(), after=st.integers(0, 8))
    def plant_fault(self, which: bool, after: int) -> None:
        self.engines[which].fail_next(EngineFault("planted"), after_tokens=after)

    @rule(which=st.booleans(), is_short=st.booleans())
    def kill_engine(self, which: bool, is_short: bool) -> None:
        engine = self.engines[which]
        self.act(engine.die)
        if is_short:
            self.act(engine.restart)

    @rule(which=st.booleans())
    def restart_engine(self, which: bool) -> None:
        self.engines[which].restart()

    @rule(which=st.booleans(), is_held=st.booleans())
    def hold_engine(self, which: bool, is_held: bool) -> None:
        self.act(self.engines[which].hold if is_held else self.engines[which].release)

    @rule()
    def let_run(self) -> None:
        self.act(*[lambda: None] * 20)

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "service"):
            self.service.check()

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.runner.run(self.finish())
            self.service.check()
            assert not any(engine.contexts for engine in self.engines)
        self.runner.close()

    async def finish(self) -> None:
        """Let everything end that can, then close: every reader has a text or an error."""
        for engine in self.engines:
            engine.restart()
            engine.release()
        for session in self.sessions:
            for name in free_variables(session):
                self.service.set(session, name, "late")
        readers = [task for task, session in self.readers if session in self.sessions]
        if readers:
            _, stuck = await asyncio.wait(readers, timeout=20)
            assert not stuck, "a variable was never set"
        await self.service.close()
        answers = asyncio.gather(*(task for task, _ in self.readers), return_exceptions=True)
        for answer in await asyncio.wait_for(answers, 20):
            assert isinstance(answer, str | KeaError), answer


def free_variables(session: Session) -> list[str]:
    """Return the variables that the client may set."""
    return [
        variable.id
        for variable in session.variables.values()
        if variable.state is VariableState.EMPTY and session.graph.producer_of(variable.id) is None
    ]


TestService = ServiceMachine.TestCase
TestService.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

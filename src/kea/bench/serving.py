"""Measuring servers under one load: preparation, interleaved rounds, and what they gave.

Owns the order of a run of `kea bench serve`. Does not know terminals, options or files; time comes from one clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

from kea.bench.base import Peer
from kea.bench.load.calibration import calibrate, probe
from kea.bench.load.client import LoadClient, RequestResult, RequestShape, Target
from kea.bench.load.driver import Driver, Observer, RoundResult, run_until
from kea.bench.load.figures import latencies_ms
from kea.bench.load.plan import Planned, Workload, build_plan
from kea.bench.load.prompts import Lexicon, render
from kea.bench.statistics import Slo, percentile
from kea.errors import InvalidRequest, Unreachable, check_range

# Requests before the load have seeds of their own: nothing of the load is in a prefix cache when it begins.
_WARMUP_SEED, _UNLOADED_SEED = 1_000_003, 2_000_003


@dataclass(frozen=True, slots=True)
class RelativeSlo:
    """An objective as multiples of what one server takes for one request at a time (medians of `num_requests`)."""

    of: str
    ttft_factor: float
    tpot_factor: float
    num_requests: int = 8


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """One run. The first target is the subject, the others are compared with it. `limit_s` bounds all rounds together,
    each getting its share; `prepare_limit_s` bounds what comes before them."""

    targets: tuple[Target, ...]
    workload: Workload
    shape: RequestShape = field(default_factory=RequestShape)
    slo: Slo = field(default_factory=Slo)
    relative_slo: RelativeSlo | None = None
    num_rounds: int = 1
    num_warmups: int = 2
    limit_s: float | None = None
    prepare_limit_s: float | None = None

    def __post_init__(self) -> None:
        check_range("rounds", self.num_rounds, 1)
        check_range("warmups", self.num_warmups, 0)
        check_range("timeout-s", self.shape.timeout_s, 0.001)
        check_range("temperature", self.shape.temperature, 0.0)
        if self.limit_s is not None:
            check_range("time-limit-s", self.limit_s, 0.001)
        names = [target.name for target in self.targets]
        if not names or len(set(names)) < len(names):
            raise InvalidRequest(
                f"The servers are named {', '.join(names) or 'nothing'}; every server needs a name of its own.",
                param="peer",
            )
        if self.relative_slo is not None and self.relative_slo.of not in names:
            raise InvalidRequest(
                f"slo-of is {self.relative_slo.of!r}; it must be one of {', '.join(names)}.", param="slo-of"
            )

    def without(self, lost: Sequence[Peer]) -> ServeSettings:
        """Return the run without servers that did not come up. Raises Unreachable where the objective is of one."""
        for peer in lost:
            if self.relative_slo is not None and self.relative_slo.of == peer.name:
                raise Unreachable(f"slo-of names {peer.name}, which is {peer.status}: {peer.note}")
        names = {peer.name for peer in lost}
        return replace(self, targets=tuple(target for target in self.targets if target.name not in names))

    @property
    def round_limit_s(self) -> float | None:
        return None if self.limit_s is None else self.limit_s / (self.num_rounds * len(self.targets))


@dataclass(frozen=True, slots=True)
class Served:
    """What one server gave: its name for the model, its version, and its rounds in order."""

    target: Target
    model: str
    version: str | None
    rounds: tuple[RoundResult, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A whole run. `plans` are the rounds' requests, the same for every server; `slo` is the one in force; `lost` are
    servers that were to be measured and did not come up."""

    served: tuple[Served, ...]
    plans: tuple[tuple[Planned, ...], ...]
    slo: Slo
    lexicon: Lexicon | None
    was_interrupted: bool
    lost: tuple[Peer, ...] = ()


class View(Observer, Protocol):
    """An observer that also hears what the run is doing."""

    def phase(self, text: str) -> None: ...

    def round_began(self, server: str, round_idx: int, num_requests: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Prepared:
    clients: tuple[LoadClient, ...]
    models: tuple[str, ...]
    versions: tuple[str | None, ...]
    lexicon: Lexicon | None


async def measure(settings: ServeSettings, view: View, stop: asyncio.Event) -> Measurement | None:
    """Run everything and return it; None where `stop` was set before the load began.

    Setting `stop` later ends the run early with what was finished by then. Raises Unreachable where a server does not
    answer a request of one token, InvalidRequest where it does not serve the model.
    """
    async with AsyncExitStack() as stack:
        clients = [LoadClient(target, settings.shape, time.perf_counter) for target in settings.targets]
        for client in clients:
            await stack.enter_async_context(client)
        started = time.perf_counter()
        found = await run_until(stop, _prepare(settings, clients, view, stop), settings.prepare_limit_s)
        if found is None and not stop.is_set():
            took_s = time.perf_counter() - started
            raise Unreachable(f"The servers were not ready for the load within {took_s:.0f} s.")
        if found is None:
            return None
        prepared, slo = found
        return await _run_rounds(settings, prepared, slo, view, stop)


async def _prepare(
    settings: ServeSettings, clients: Sequence[LoadClient], view: View, stop: asyncio.Event
) -> tuple[_Prepared, Slo]:
    view.phase("asking the servers for their models")
    models: list[str] = []
    for client in clients:
        models.append(await _choose_model(client, models))
    versions = [await client.try_version() for client in clients]
    for client, model in zip(clients, models, strict=True):
        await probe(client, model)
    lexicon = None
    if not settings.workload.prompts:
        view.phase("measuring how many tokens words cost")
        lexicon = await calibrate(clients[0], models[0])
    prepared = _Prepared(tuple(clients), tuple(models), tuple(versions), lexicon)
    await _warm_up(settings, prepared, view, stop)
    return prepared, await _objective(settings, prepared, view, stop)


async def _choose_model(client: LoadClient, chosen: Sequence[str]) -> str:
    """Return the model asked for, else the first server's if it is served here too, else the only one."""
    served = await client.try_models()
    wanted = client.target.model
    if wanted is not None and (not served or wanted in served):
        return wanted
    if wanted is None and served:
        if chosen and chosen[0] in served:
            return chosen[0]
        if len(served) == 1:
            return served[0]
    listed = f"has {', '.join(served)}" if served else "lists no model"
    raise InvalidRequest(
        f"The server at {client.target.base_url} {listed}, and its model is given as {wanted!r}.",
        hint="Name it with --model, or a peer's with --peer-model.",
        param="model",
    )


async def _warm_up(settings: ServeSettings, prepared: _Prepared, view: View, stop: asyncio.Event) -> None:
    if not settings.num_warmups:
        return
    view.phase("warming up")
    for number in range(len(prepared.clients)):
        await _one_by_one(settings, prepared, number, (_WARMUP_SEED, settings.num_warmups), stop)


async def _objective(settings: ServeSettings, prepared: _Prepared, view: View, stop: asyncio.Event) -> Slo:
    relative = settings.relative_slo
    if relative is None:
        return settings.slo
    view.phase(f"measuring {relative.of} without load")
    number = [target.name for target in settings.targets].index(relative.of)
    unloaded = await _one_by_one(settings, prepared, number, (_UNLOADED_SEED, relative.num_requests), stop)
    taken = latencies_ms([unloaded])
    if not taken["ttft"]:
        raise Unreachable(f"The server {relative.of} answered none of the requests that were to give the objective.")
    tpot_s = percentile(taken["tpot"], 50) / 1000 * relative.tpot_factor if taken["tpot"] else None
    return replace(settings.slo, ttft_s=percentile(taken["ttft"], 50) / 1000 * relative.ttft_factor, tpot_s=tpot_s)


async def _one_by_one(
    settings: ServeSettings, prepared: _Prepared, number: int, what: tuple[int, int], stop: asyncio.Event
) -> RoundResult:
    """Send some requests of the load's kind that are not reported, each after the last."""
    seed, num_requests = what
    workload = replace(settings.workload, num_requests=num_requests, seed=settings.workload.seed + seed)
    plan = build_plan(workload)
    driver = _driver(prepared, number, plan, _Unseen(), stop)
    return await driver.run(plan, concurrency=1)


async def _run_rounds(
    settings: ServeSettings, prepared: _Prepared, slo: Slo, view: View, stop: asyncio.Event
) -> Measurement:
    numbers = range(len(settings.targets))
    rounds: list[list[RoundResult]] = [[] for _ in numbers]
    plans: list[tuple[Planned, ...]] = []
    for round_idx in range(settings.num_rounds):
        plan = build_plan(settings.workload, round_idx)
        plans.append(plan)
        first = round_idx % len(numbers)
        # Every server goes first in turn, so that a drift of the machine falls on all of them.
        for number in (*numbers[first:], *numbers[:first]):
            if stop.is_set():
                break
            view.round_began(settings.targets[number].name, round_idx, len(plan))
            driver = _driver(prepared, number, plan, view, stop)
            concurrency = settings.workload.arrivals.concurrency
            rounds[number].append(await driver.run(plan, concurrency, settings.round_limit_s))
    served = tuple(
        Served(settings.targets[n], prepared.models[n], prepared.versions[n], tuple(rounds[n])) for n in numbers
    )
    return Measurement(served, tuple(plans), slo, prepared.lexicon, stop.is_set())


def _driver(
    prepared: _Prepared, number: int, plan: Sequence[Planned], observer: Observer, stop: asyncio.Event
) -> Driver:
    client, model = prepared.clients[number], prepared.models[number]
    # All bodies are written before the first is sent: during the load this client only sends and reads the clock.
    bodies = {p.index: client.shape.body(model, _text(p, prepared.lexicon), p.output_len) for p in plan}

    async def send(planned: Planned, offset_s: float, start: float) -> RequestResult:
        return await client.send(
            bodies[planned.index],
            index=planned.index,
            output_len=planned.output_len,
            scheduled_s=offset_s,
            start=start,
        )

    return Driver(send, time.perf_counter, stop, observer)


def _text(planned: Planned, lexicon: Lexicon | None) -> str:
    if isinstance(planned.prompt, str):
        return planned.prompt
    if lexicon is None:
        raise ValueError("a plan of random words needs a lexicon")
    return render(planned.prompt, lexicon)


class _Unseen:
    """Sees nothing: warm-ups are no part of the progress."""

    def sent(self, planned: Planned) -> None:
        """Ignore it."""

    def ended(self, result: RequestResult) -> None:
        """Ignore it."""

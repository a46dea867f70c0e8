"""Prometheus metrics under vLLM's names with the prefix `kea:`. Owns its registry; knows engines' snapshots, no routes.

What requests saw (tokens, times, ends) is counted where their generations are read; what the engine holds (running,
waiting, memory) is read from its snapshot when the metrics are asked for. Times are told of single requests and of the
outputs of programs alike, by the label `source`: an output arrives when its call's inputs are ready, a further one of
the same call when the one before it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kea.engine.base import Snapshot
from kea.service import ServiceSnapshot
from kea.types import FinishReason, Usage

Values = Mapping[str, tuple[str, float]]

LABEL = "model_name"
SOURCE = "source"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_BUCKETS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
NEXT_TOKEN_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
)
REQUEST_BUCKETS_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)

COUNTERS = {
    "prompt_tokens": "Prompt tokens of finished generations, cached ones included.",
    "generation_tokens": "Tokens written by finished generations.",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": ("From the arrival of a request to its first token.", FIRST_TOKEN_BUCKETS_S),
    "inter_token_latency_seconds": ("Between one token of a generation and the next.", NEXT_TOKEN_BUCKETS_S),
    "e2e_request_latency_seconds": ("From the arrival of a request to its last token.", REQUEST_BUCKETS_S),
    "request_queue_time_seconds": ("Waiting for a place in the batch.", REQUEST_BUCKETS_S),
    "request_prefill_time_seconds": ("Computing the prompt.", REQUEST_BUCKETS_S),
    "request_decode_time_seconds": ("Drawing the tokens after the first.", REQUEST_BUCKETS_S),
}


class Metrics:
    """Everything counted for one model. Lives as long as the server."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"kea:{name}", text, [LABEL], registry=self._registry).labels(model_name)
            for name, text in COUNTERS.items()
        }
        histograms = {
            name: Histogram(f"kea:{name}", text, [LABEL, SOURCE], buckets=buckets, registry=self._registry)
            for name, (text, buckets) in HISTOGRAMS.items()
        }
        self._requests, self.programs = (
            Times({name: histogram.labels(model_name, source) for name, histogram in histograms.items()})
            for source in ("request", "program")
        )
        success = Counter(
            "kea:request_success", "Generations that ended.", [LABEL, "finished_reason"], registry=self._registry
        )
        self._success = {reason: success.labels(model_name, reason.value) for reason in FinishReason}
        failures = Counter("kea:request_failure", "Requests that failed.", [LABEL, "code"], registry=self._registry)
        self._failures = failures
        self._engine = SnapshotCollector(model_name)
        self._registry.register(self._engine)

    def saw_first_token(self, seconds: float) -> None:
        self._requests.saw_first_token(seconds)

    def saw_next_tokens(self, seconds: float, num_tokens: int) -> None:
        self._requests.saw_next_tokens(seconds, num_tokens)

    def saw_end(self, reason: FinishReason, usage: Usage, seconds: float) -> None:
        self._success[reason].inc()
        self._counters["prompt_tokens"].inc(usage.prompt_tokens)
        self._counters["generation_tokens"].inc(usage.output_tokens)
        self._requests.saw_end(reason, usage, seconds)

    def saw_cancelled(self, num_outputs: int) -> None:
        """Record outputs whose client left before their end."""
        self._success[FinishReason.CANCELLED].inc(num_outputs)

    def saw_failure(self, code: str) -> None:
        self._failures.labels(self.model_name, code).inc()

    @property
    def last_snapshot(self) -> Snapshot | None:
        """The engine's snapshot that was exposed last."""
        return self._engine.snapshot

    def expose(self, snapshot: Snapshot | None, service: ServiceSnapshot | None = None) -> bytes:
        """Return the exposition; without a snapshot (the engine restarts) the engine's part is left out."""
        self._engine.snapshot = snapshot
        self._engine.service = service
        return generate_latest(self._registry)


class Times:
    """The times of outputs from one source."""

    def __init__(self, histograms: Mapping[str, Histogram]) -> None:
        self._first = histograms["time_to_first_token_seconds"]
        self._next = histograms["inter_token_latency_seconds"]
        self._whole = histograms["e2e_request_latency_seconds"]
        self._queue = histograms["request_queue_time_seconds"]
        self._prefill = histograms["request_prefill_time_seconds"]
        self._decode = histograms["request_decode_time_seconds"]

    def saw_first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def saw_next_tokens(self, seconds: float, num_tokens: int) -> None:
        """Record `num_tokens` tokens that came `seconds` after those before them."""
        for _ in range(num_tokens):
            self._next.observe(seconds / num_tokens)

    def saw_end(self, _reason: FinishReason, usage: Usage, seconds: float) -> None:
        self._whole.observe(seconds)
        self._queue.observe(usage.waiting_s)
        self._prefill.observe(usage.prefill_s)
        self._decode.observe(usage.decode_s)


class SnapshotCollector(Collector):
    """The parts of the engine and of the service, made from the snapshots that were set last."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self.snapshot: Snapshot | None = None
        self.service: ServiceSnapshot | None = None

    def collect(self) -> Iterator[Metric]:
        if self.snapshot is not None:
            yield from self._families(_gauges(self.snapshot), GaugeMetricFamily)
            yield from self._families(_counters(self.snapshot), CounterMetricFamily)
        if self.service is not None:
            yield from self._families(_service_gauges(self.service), GaugeMetricFamily)
            yield from self._families(_service_counters(self.service), CounterMetricFamily)
            yield self._ended_calls(self.service)

    def _families(self, values: Values, family: Callable[..., Any]) -> Iterator[Metric]:
        for name, (text, value) in values.items():
            metric = family(f"kea:{name}", text, labels=[LABEL])
            metric.add_metric([self._model_name], value)
            yield metric

    def _ended_calls(self, service: ServiceSnapshot) -> Metric:
        metric = CounterMetricFamily("kea:program_calls", "Calls of programs that ended.", labels=[LABEL, "state"])
        for state, value in service.num_ended.items():
            metric.add_metric([self._model_name, state.value], value)
        return metric


def _service_gauges(service: ServiceSnapshot) -> Values:
    return {
        "num_sessions": ("Sessions that are open.", service.num_sessions),
        "num_pending_calls": ("Calls of programs that have not ended.", service.num_pending),
    }


def _service_counters(service: ServiceSnapshot) -> Values:
    return {
        "program_prompt_tokens": ("Prompt tokens of calls of programs that ended.", service.prompt_tokens),
        "program_generation_tokens": ("Tokens written by calls of programs that ended.", service.output_tokens),
    }


def _gauges(snapshot: Snapshot) -> Values:
    memory = snapshot.memory
    return {
        "num_requests_running": ("Contexts in the batch.", snapshot.num_running),
        "num_requests_waiting": ("Contexts that wait for a place in the batch.", snapshot.num_waiting),
        "num_contexts": ("Contexts that are not freed.", snapshot.num_contexts),
        "kv_cache_usage_perc": ("Share of the pages that contexts use; 1 is all.", memory.num_used / memory.num_pages),
    }


def _counters(snapshot: Snapshot) -> Values:
    memory = snapshot.memory
    return {
        "prefix_cache_queries": ("Tokens looked up in the prefix tree.", memory.queried_tokens),
        "prefix_cache_hits": ("Tokens found there.", memory.hit_tokens),
        "num_preemptions": ("Contexts put back to wait for memory.", snapshot.num_preemptions),
        "engine_prompt_tokens": ("Prompt tokens that the engine computed.", snapshot.prompt_tokens),
        "engine_generation_tokens": ("Tokens that the engine drew.", snapshot.generation_tokens),
        "engine_steps": ("Steps of the engine.", snapshot.num_steps),
        "spec_decode_num_draft_tokens": ("Guessed tokens that were verified.", snapshot.num_draft_tokens),
        "spec_decode_num_accepted_tokens": ("Guessed tokens that were right.", snapshot.num_accepted_tokens),
    }

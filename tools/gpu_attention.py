"""Measures the attention kernels and captured decode steps on a GPU, each beside its bound on the same card.

`python -m tools.gpu_attention [attention|decoder|tiles]...` prints a table per part (all of them by default):
attention: decode rows, chunks and shared prefixes, as a share of copying and of a large product; planning on the host.
decoder: decode steps of a random-weight Llama, captured and not, as a share of reading weights and KV once.
tiles: decode rows with other block shapes than those chosen.
`--small` takes sizes that Triton's interpreter can do on a CPU, to try the script itself; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from kea.attention import LayerCache, LayerSpec, Run, SequencePlan, StepPlan, triton_launch, triton_step
from kea.attention.sharing import SharingCosts
from kea.attention.triton_gpu import TritonAttention
from kea.attention.triton_tiles import narrow_tile

PAGE = 16
FLUSH_BYTES = 256 << 20
HALF = torch.bfloat16
NEVER_SHARE = SharingCosts(segment=1e18, row=0.0, product=0.0)
PARTS = ("attention", "decoder", "tiles")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: a layer's heads, (contexts, tokens) of decode, (new, earlier) of chunks, sharers, a decoder."""

    spec: LayerSpec
    decode: tuple[tuple[int, int], ...]
    chunks: tuple[tuple[int, int], ...]
    sharers: tuple[int, int, int]
    decoders: tuple[dict[str, int], ...]
    repetitions: int


LARGE = Sizes(
    LayerSpec(32, 8, 128, 128, 128**-0.5),
    tuple(product((1, 8, 64, 256), (128, 2048, 8192))),
    ((2048, 0), (8192, 0), (512, 8192)),
    (64, 2048, 128),
    (
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
    30,
)
SMALL = Sizes(
    LayerSpec(2, 1, 16, 16, 0.25),
    ((2, 40),),
    ((20, 10),),
    (3, 64, 10),
    ({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},),
    1,
)


class Bench:
    """Times launches on one device; on a GPU by events around replays of a captured graph."""

    def __init__(self, device: str, sizes: Sizes) -> None:
        self.device = device
        self.sizes = sizes
        self.is_gpu = device.startswith("cuda")

    def seconds(self, launch: Callable[[], object]) -> float:
        """Return the median time of a launch."""
        launch()
        if not self.is_gpu:
            return statistics.median(_clocked(launch) for _ in range(self.sizes.repetitions))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        return self.event_seconds(graph.replay)

    def event_seconds(self, launch: Callable[[], object]) -> float:
        """Return the median time between events around a launch that finds nothing of its own in the cache of the GPU;
        without a GPU, by the clock.
        """
        if not self.is_gpu:
            return _clocked(launch)
        event: Any = torch.cuda.Event
        times: list[float] = []
        other = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        for _ in range(self.sizes.repetitions):
            other.zero_()
            begin, end = event(enable_timing=True), event(enable_timing=True)
            begin.record()
            launch()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def bounds(self) -> tuple[float, float]:
        """Return bytes per second of copying (read and written) and operations per second of a large product."""
        count = 1 << 30 if self.is_gpu else 1 << 16
        source = torch.empty(count, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        side = 8192 if self.is_gpu else 64
        a, b = (torch.randn(side, side, dtype=HALF, device=self.device) for _ in range(2))
        return 2 * count / self.seconds(lambda: target.copy_(source)), 2 * side**3 / self.seconds(lambda: a @ b)


def _clocked(launch: Callable[[], object]) -> float:
    begin = time.perf_counter()
    launch()
    return time.perf_counter() - begin


class Layer:
    """One layer's cache and rows for contexts that decode or prefill; `prefix` pages are the first of every one."""

    def __init__(self, bench: Bench, contexts: int, new: int, earlier: int, prefix: int = 0) -> None:
        spec, device = bench.sizes.spec, bench.device
        end, num_shared = earlier + new, prefix // PAGE
        own = -(-end // PAGE) - num_shared
        order = torch.randperm(num_shared + contexts * own, generator=torch.Generator().manual_seed(1)).tolist()
        tables = [(*order[:num_shared], *order[num_shared + i * own :][:own]) for i in range(contexts)]
        slots = [table[j // PAGE] * PAGE + j % PAGE for table in tables for j in range(earlier, end)]
        sequences = [SequencePlan(i * new, new, earlier, table, (Run(0, end),)) for i, table in enumerate(tables)]
        self.plan = StepPlan(tuple(sequences), torch.tensor(slots, device=device), PAGE)

        def noise(rows: int, heads: int, width: int) -> torch.Tensor:
            return torch.randn(rows, heads, width, dtype=HALF, device=device)

        rows = contexts * new
        self.query = noise(rows, spec.num_heads, spec.key_dim)
        self.key = noise(rows, spec.num_kv_heads, spec.key_dim)
        self.value = noise(rows, spec.num_kv_heads, spec.value_dim)
        shape = (len(order) * PAGE, spec.num_kv_heads)
        self.cache = LayerCache(noise(*shape, spec.key_dim), noise(*shape, spec.value_dim))
        self.spec = spec

    def launch(self, backend: TritonAttention) -> Callable[[], torch.Tensor]:
        """Return the attention of the layer with its plan prepared."""
        prepared = backend.prepare(self.plan)
        prepared.attend(self.spec, self.query, self.key, self.value, self.cache)
        return lambda: prepared.attend(self.spec, self.query, self.key, self.value, self.cache)


def attention(bench: Bench) -> Iterator[str]:
    """Measure a layer's attention and its planning."""
    bandwidth, peak = bench.bounds()
    yield f"copy {bandwidth / 1e12:.2f} TB/s, product {peak / 1e12:.0f} TFLOP/s"
    backend, spec = TritonAttention(), bench.sizes.spec
    token_bytes = spec.num_kv_heads * (spec.key_dim + spec.value_dim) * HALF.itemsize
    for contexts, length in bench.sizes.decode:
        layer = Layer(bench, contexts, 1, length - 1)
        taken = bench.seconds(layer.launch(backend))
        share = contexts * length * token_bytes / taken / bandwidth
        plan_s = statistics.median(_clocked(partial(backend.prepare, layer.plan)) for _ in range(5))
        yield f"decode {contexts} x {length}: {taken * 1e6:.1f} us, {share:.2f} of copying; plan {plan_s * 1e6:.0f} us"
    for new, earlier in bench.sizes.chunks:
        taken = bench.seconds(Layer(bench, 1, new, earlier).launch(backend))
        pairs = new * earlier + new * (new + 1) // 2
        share = 2 * pairs * spec.num_heads * (spec.key_dim + spec.value_dim) / taken / peak
        yield f"chunk {new} behind {earlier}: {taken * 1e6:.1f} us, {share:.2f} of the product"
    yield from sharing(bench, backend)


def sharing(bench: Bench, backend: TritonAttention) -> Iterator[str]:
    """Measure a prefix that is read once against the same read for every context."""
    contexts, prefix, own = bench.sizes.sharers
    layer = Layer(bench, contexts, 1, prefix + own - 1, prefix)
    shared = bench.seconds(layer.launch(backend))
    costs = triton_step.SHARING_COSTS
    triton_step.SHARING_COSTS = NEVER_SHARE
    try:
        apart = bench.seconds(layer.launch(backend))
    finally:
        triton_step.SHARING_COSTS = costs
    yield f"{contexts} x {own} behind {prefix} shared: {shared * 1e6:.1f} us, apart {apart * 1e6:.1f} us"


def tiles(bench: Bench) -> Iterator[str]:
    """Measure decode rows with other blocks: positions, warps, stages."""
    contexts, length = bench.sizes.decode[len(bench.sizes.decode) // 2]
    layer = Layer(bench, contexts, 1, length - 1)
    launching: Any = triton_launch
    widths, warps, stages = ((32, 64, 128), (4, 8), (2, 3, 4)) if bench.is_gpu else ((16, 32), (1,), (1,))
    try:
        for block_n, num_warps, num_stages in product(widths, warps, stages):

            def other(*arguments: Any, shape: tuple[int, int, int] = (block_n, num_warps, num_stages)) -> Any:
                tile = narrow_tile(*arguments)
                return replace(tile, block_n=shape[0], num_warps=shape[1], num_stages=shape[2])

            launching.narrow_tile = other
            taken = bench.seconds(layer.launch(TritonAttention()))
            yield f"decode {contexts} x {length}, {block_n} x {num_warps} x {num_stages}: {taken * 1e6:.1f} us"
    finally:
        launching.narrow_tile = narrow_tile


def decoder(bench: Bench) -> Iterator[str]:
    """Measure whole decode steps of random-weight Llamas, captured where there is a GPU, and launched one by one."""
    from kea.models.base import StepInput
    from kea.models.graphs import CudaRecorder, GraphedDecoder
    from tools.random_llama import create_llama

    bandwidth, _ = bench.bounds()
    for shape in bench.sizes.decoders:
        model, backend = create_llama(shape, bench.device)
        weights = model.facts.num_parameters * HALF.itemsize
        for contexts, length in bench.sizes.decode:
            if contexts * length > 1 << 19:
                continue
            step = Layer(bench, contexts, 1, length - 1)
            rows = torch.arange(contexts, device=bench.device)
            inputs = StepInput(rows % 100, torch.full_like(rows, length - 1), rows, step.plan)
            num_slots = len(step.cache.keys)
            del step
            cache = model.create_cache(num_slots)
            plain = bench.event_seconds(partial(model.forward, inputs, cache))
            text = f"{weights / 2e9:.2f}B {contexts} x {length}: {plain * 1e3:.2f} ms one by one"
            if bench.is_gpu:
                graphed = GraphedDecoder(model, backend, CudaRecorder(), (contexts,))
                graphed.capture(cache, PAGE, contexts)
                taken = bench.event_seconds(partial(graphed.forward, inputs, cache))
                bound = (weights + contexts * length * model.facts.kv_token_bytes) / bandwidth
                text += f", {taken * 1e3:.2f} ms captured, {bound / taken:.2f} of copying"
                assert graphed.num_replayed
            yield text


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    if set(options.parts) - set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}; given: {' '.join(options.parts)}")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    bench = Bench(device, SMALL if options.small else LARGE)
    print(torch.cuda.get_device_name(0) if bench.is_gpu else "no GPU", f"torch {torch.__version__}", flush=True)
    for name in options.parts or PARTS:
        with torch.inference_mode():
            for line in {"attention": attention, "decoder": decoder, "tiles": tiles}[name](bench):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

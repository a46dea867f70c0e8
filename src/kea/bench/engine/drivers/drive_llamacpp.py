"""Drives llama.cpp by its low-level batch interface. Runs in the peer's own python, which does not have Kea.

A context is made for each measurement, with as many streams and cells as it needs: nothing of another one is looked
at. Computed prompts are kept as saved sequence states, so that a later round does not compute them again.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp as ll
import numpy as np

_CELLS = 256  # llama.cpp pads a stream's cells to multiples of this
_KEPT_TOKENS = 40_000
_CHUNK = 2048


class Driver:
    """One model of llama.cpp. Ends with its process."""

    def __init__(self) -> None:
        self._model: Any = None
        self._vocab_size = 0
        self._threads = 1
        self._kept: dict[tuple[int, int, tuple[int, ...]], Any] = {}

    def load(self, model: str, threads: int, repack: bool = True, **_: Any) -> dict[str, Any]:
        """Load a GGUF; `repack` lets it keep weights in the layout of its special kernels (AMX)."""
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.use_extra_bufts = repack
        self._model = ll.llama_model_load_from_file(model.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self._threads = threads
        self._vocab_size = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self._model))
        system = ll.llama_print_system_info().decode()
        units = " ".join(part.split("=")[0].strip() for part in system.split("|") if part.strip().endswith("= 1"))
        note = f"KV in fp16; {units}" if repack else f"KV in fp16; without repacked weights; {units}"
        return {"version": f"llama-cpp-python {ll.__version__}", "note": note}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Time a prompt on an empty cache, to its first token."""
        with _Context(self, 1, len(prompt) + 8) as context:
            started = time.perf_counter()
            context.append(0, prompt)
            context.draw([0])
            return {"seconds": time.perf_counter() - started}

    def decode(self, prompts: list[list[int]], steps: int, warmups: int) -> dict[str, Any]:
        """Time steps that draw one token for each of the prompts' sequences."""
        longest = max(map(len, prompts))
        with _Context(self, len(prompts), longest + warmups + steps + 8) as context:
            for sequence, prompt in enumerate(prompts):
                self._fill(context, sequence, prompt)
            times = context.step([len(prompt) for prompt in prompts], warmups + steps)
        return {"step_s": times[warmups:]}

    def shared(
        self, *, prefix: list[int], groups: list[list[int]], prompts: list[list[Any]], strangers: list[list[int]],
        steps: int, warmups: int, share: bool,
    ) -> dict[str, Any]:  # fmt: skip
        """Time steps of sequences under one prefix: `prompts` are pairs of a group and own tokens behind it."""
        if not share:
            whole = [prefix + groups[group] + own for group, own in prompts] + strangers
            return self.decode(whole, steps, warmups)
        num_members, num_groups = len(prompts), len(groups)
        room = len(prefix) + sum(map(len, groups)) + sum(len(own) + steps + warmups + 8 for _, own in prompts)
        room += sum(len(tokens) + steps + warmups + 8 for tokens in strangers)
        # Copies of a sequence share cells only in a unified cache. The first sequences hold the tree itself.
        num_sequences = num_members + len(strangers) + num_groups + 1
        with _Context(self, num_sequences, room, unified=True) as context:
            top = num_members + len(strangers)
            context.append(top, prefix)
            for group, tokens in enumerate(groups):
                context.fork(top, top + 1 + group)
                if tokens:
                    context.append(top + 1 + group, tokens, len(prefix))
            lengths = []
            for member, (group, own) in enumerate(prompts):
                context.fork(top + 1 + group, member)
                start = len(prefix) + len(groups[group])
                context.append(member, own, start)
                lengths.append(start + len(own))
            for index, tokens in enumerate(strangers):
                context.append(num_members + index, tokens)
                lengths.append(len(tokens))
            times = context.step(lengths, warmups + steps)
        return {"step_s": times[warmups:]}

    def warm(self, prompt: list[int]) -> dict[str, Any]:
        raise NotImplementedError("its library has no prefix cache of its own: the caller keeps sequences")

    def arrivals(self, requests: list[Any]) -> dict[str, Any]:
        raise NotImplementedError("its library has no scheduler: batches are the caller's work")

    def unloaded(self, requests: list[Any]) -> dict[str, Any]:
        return self.arrivals(requests)

    def _fill(self, context: _Context, sequence: int, prompt: list[int]) -> None:
        key = (context.num_sequences, sequence, tuple(prompt))  # a state fits a context of the same layout only
        if key in self._kept:
            context.restore(sequence, self._kept[key])
            return
        context.append(sequence, prompt)
        if sum(len(tokens) for _, _, tokens in self._kept) + len(prompt) <= _KEPT_TOKENS:
            self._kept[key] = context.save(sequence)


class _Context:
    """A llama_context with its batch; freed at the end of the block."""

    def __init__(self, driver: Driver, num_sequences: int, tokens: int, *, unified: bool = False) -> None:
        self.num_sequences = num_sequences
        params = ll.llama_context_default_params()
        cells = -(-tokens // _CELLS) * _CELLS
        params.n_ctx = cells if unified else cells * num_sequences
        params.n_seq_max = num_sequences
        params.kv_unified = unified
        params.n_batch = _CHUNK
        params.n_threads = params.n_threads_batch = driver._threads
        self._context = ll.llama_init_from_model(driver._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {params.n_ctx} tokens")
        self._memory = ll.llama_get_memory(self._context)
        self._vocab_size = driver._vocab_size
        self._batch = ll.llama_batch_init(_CHUNK, 0, 1)

    def __enter__(self) -> _Context:
        return self

    def __exit__(self, *_: object) -> None:
        ll.llama_batch_free(self._batch)
        ll.llama_free(self._context)

    def append(self, sequence: int, tokens: Sequence[int], start: int = 0) -> None:
        """Compute tokens behind `start` others; the logits of the last one are kept."""
        for low in range(0, len(tokens), _CHUNK):
            part = tokens[low : low + _CHUNK]
            is_last = low + len(part) == len(tokens)
            rows = [(t, start + low + i, sequence, is_last and i == len(part) - 1) for i, t in enumerate(part)]
            self._decode(rows)

    def step(self, lengths: Sequence[int], num_steps: int) -> list[float]:
        """Draw greedily for sequences 0 ... of these lengths; return the seconds of each step."""
        tokens = [100 + index for index in range(len(lengths))]
        times = []
        for number in range(num_steps):
            started = time.perf_counter()
            self._decode([(t, lengths[i] + number, i, True) for i, t in enumerate(tokens)])
            tokens = self.draw(range(len(lengths)))
            times.append(time.perf_counter() - started)
        return times

    def draw(self, rows: Sequence[int]) -> list[int]:
        """Return the most likely token of each of the last batch's rows of logits."""
        logits = ll.llama_get_logits(self._context)
        array = np.ctypeslib.as_array(logits, shape=(len(rows), self._vocab_size))
        tokens: list[int] = array.argmax(axis=1).tolist()
        return tokens

    def fork(self, source: int, target: int) -> None:
        ll.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def save(self, sequence: int) -> Any:
        size = ll.llama_state_seq_get_size(self._context, sequence)
        state = (ctypes.c_uint8 * size)()
        if ll.llama_state_seq_get_data(self._context, state, size, sequence) != size:
            raise RuntimeError("llama.cpp did not save a sequence")
        return state

    def restore(self, sequence: int, state: Any) -> None:
        if not ll.llama_state_seq_set_data(self._context, state, len(state), sequence):
            raise RuntimeError("llama.cpp did not restore a sequence")

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, has_logits) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = has_logits
        status = ll.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode answered {status}")


def create_driver() -> Driver:
    return Driver()


if __name__ == "__main__":
    # Ends with a status other than 0 where the kernels for repacked weights crash on this processor.
    probed = Driver()
    probed.load(sys.argv[1], 1)
    probed.prefill(list(range(300, 364)))

"""The worker process: it blocks nobody, outlives nobody, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kea.cluster import EngineClient, ProcessChannel
from kea.engine.base import ContextSpec
from kea.engine.config import EngineConfig
from kea.errors import EngineDied, ModelLoadFailed
from kea.types import GenerateOptions, Sampling, Stopping

OPTIONS = GenerateOptions(Stopping(3, ignore_eos=True), Sampling(temperature=0.0))
SCRIPT = """
import asyncio, sys
from kea.cluster import start_engine
from kea.engine.config import EngineConfig

async def main():
    engine = await start_engine(EngineConfig(sys.argv[1], kv_memory_bytes=4_000_000, num_threads=1), "process")
    print(engine._channel.pid, flush=True)
    if len(sys.argv) > 2:
        await asyncio.sleep(60)
    await engine.close()

print("begun", flush=True)
asyncio.run(main())
"""


def _config(path: Path) -> EngineConfig:
    return EngineConfig(str(path), kv_memory_bytes=4_000_000, num_threads=1)


def _is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_script_without_a_main_guard_runs_once(stories260k: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, str(script), str(stories260k)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("begun") == 1
    assert not _is_running(int(result.stdout.split()[1]))


def test_the_worker_ends_when_its_parent_is_killed(stories260k: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(stories260k), "stay"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    worker = int(parent.stdout.readline())
    assert _is_running(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(worker)


async def test_the_worker_ends_without_the_end_of_its_interpreter(stories260k: Path) -> None:
    class Watched(ProcessChannel):
        took_s = 0.0
        status: int | None = None

        def close(self) -> None:
            worker, began_s = self._worker, time.monotonic()
            super().close()
            if worker is not None:
                self.took_s, self.status = time.monotonic() - began_s, worker.process.returncode

    channel = Watched(_config(stories260k))
    engine = await EngineClient.start(channel)
    await engine.snapshot()
    await engine.close()
    assert channel.status == 0, "it was killed"
    assert channel.took_s < 1.0  # with torch in it, an interpreter takes longer to end


async def test_why_a_model_cannot_be_loaded_outlives_the_worker(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(ModelLoadFailed):
        await EngineClient.start(ProcessChannel(_config(tmp_path)))


async def test_a_worker_that_takes_nothing_holds_up_nobody(stories260k: Path) -> None:
    channel = ProcessChannel(_config(stories260k))
    engine = await EngineClient.start(channel)
    pid = channel.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        contexts = [engine.create_context(ContextSpec()) for _ in range(50)]
        for context in contexts:
            context.append([5] * 100_000)
        streams = [context.generate(OPTIONS) for context in contexts]
        started = time.monotonic()
        await asyncio.sleep(0.1)  # the commands are sent
        assert time.monotonic() - started < 5
        os.kill(pid, signal.SIGCONT)
        for stream in streams:
            with pytest.raises(Exception, match="100000"):
                async for _ in stream:
                    pass
    finally:
        os.kill(pid, signal.SIGCONT)
        await engine.close()


@pytest.mark.slow
async def test_restarts_leave_nothing_behind(stories260k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kea.cluster.client.MAX_RESTARTS", 100)
    monkeypatch.setattr("kea.cluster.client.MAX_PAUSE_S", 0.0)
    channel = ProcessChannel(_config(stories260k))
    engine = await EngineClient.start(channel)

    async def kill() -> None:
        context = engine.create_context(ContextSpec())
        context.append([1, 5])
        stream = context.generate(GenerateOptions(Stopping(400, ignore_eos=True)))
        async for _ in stream:
            break
        assert channel.pid is not None
        os.kill(channel.pid, signal.SIGKILL)
        with pytest.raises(EngineDied):
            async for _ in stream:
                pass

    await kill()
    await engine.snapshot()
    before = _resources()
    for _ in range(10):
        await kill()
    await engine.snapshot()
    assert engine.num_restarts == 11
    assert _resources() == before
    await engine.close()
    assert _resources()[2] == before[2] - 1


def _resources() -> tuple[int, int, int]:
    """Open files, threads and children of this process."""
    me = Path("/proc/self")
    children = [child for task in (me / "task").iterdir() for child in (task / "children").read_text().split()]
    engine_threads = [t for t in (me / "task").iterdir() if (t / "comm").read_text().startswith("kea-engine")]
    return len(list((me / "fd").iterdir())), len(engine_threads), len(children)

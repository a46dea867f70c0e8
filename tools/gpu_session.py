"""Runs all that a GPU is to tell, in the order of what it decides, within a time, and keeps what each part said.

`python -m tools.gpu_session --out DIR [--minutes 9] [--parts NAME,...]`. Each part is a process of its own with a share
of the time: its output goes to DIR/PART.log, its figures to DIR/PART.json where it makes such. A part that fails or
runs out of time is written down in DIR/session.json, and the next one runs; one for which too little time is left is
written down as skipped. `--list` prints the parts. The exit status is 0 where all parts ended well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAST_S = 15.0  # less is not worth a part's start
GRACE_S = 5.0
PYTHON = (sys.executable, "-u", "-m")
BENCH = (*PYTHON, "kea.bench", "engine", "--device", "cuda")
# Also where pytest's plugins are not installed, which the project's own settings ask for.
PYTEST = (*PYTHON, "pytest", "-q", "-o", "addopts=--import-mode=importlib", "-o", "minversion=8.0", "-m", "gpu")
GPU_TESTS = ("tests/attention", "tests/models", "tests/engine")
BOTH, ALONE = "prefill,decode", "prefill,decode,cache,latency,shared"
LENGTHS = "--prompt-lens 1024,4096,8192 --batches 1,8,64,256"
SHORT = "--prompt-lens 1024,8192 --contexts 2048"
SHARED_MEMORY, WEIGHTS_BYTES = Path("/dev/shm"), 20 << 30  # those of 1B and 8B in bfloat16, written once
HAS_ROOM = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > WEIGHTS_BYTES  # containers give 64 MB
CACHE = SHARED_MEMORY if HAS_ROOM else Path("/tmp")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to run for at most `limit_s`. `writes`: the option that takes a file for figures, if it has one."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    writes: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended: "ok", "failed", "late" or "skipped"; `status` is its exit status."""

    part: str
    ended: str
    seconds: float
    status: int | None = None


def _bench(name: str, limit_s: float, options: str) -> Part:
    command = (*BENCH, "--cache-dir", str(CACHE / "kea-bench"), "--time-limit-s", str(round(limit_s - 20)))
    return Part(name, (*command, *options.split()), limit_s, "--json")


PARTS = (
    Part("tests", (*PYTEST, *GPU_TESTS), 240.0),
    Part("attention", (*PYTHON, "tools.gpu_attention", "attention"), 60.0),
    _bench("1b", 150.0, f"--rounds 3 --model 1b --peers none --scenarios {ALONE} {LENGTHS} --contexts 128,2048,8192"),
    _bench("8b", 240.0, f"--rounds 2 --model 8b --peers none --scenarios {BOTH} {LENGTHS} --contexts 128,1024,8192"),
    Part("decoder", (*PYTHON, "tools.gpu_attention", "decoder"), 120.0),
    Part("tiles", (*PYTHON, "tools.gpu_attention", "tiles"), 60.0),
    _bench("1b-peers", 400.0, f"--rounds 2 --model 1b --scenarios {BOTH} {SHORT} --batches 1,8,64"),
    _bench("8b-peers", 500.0, f"--rounds 2 --model 8b --scenarios {BOTH} {SHORT} --batches 1,8"),
)
FIRST = ("tests", "attention", "1b", "8b", "decoder", "tiles")  # of the first ten minutes


def run_parts(parts: Sequence[Part], out: Path, minutes: float) -> list[Outcome]:
    """Run the parts one after another; write down after each what has ended and how."""
    out.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + 60.0 * minutes
    outcomes: list[Outcome] = []
    for part in parts:
        left_s = deadline_s - time.monotonic()
        outcomes.append(run_part(part, out, left_s) if left_s >= LEAST_S else Outcome(part.name, "skipped", 0.0))
        print(f"{part.name}: {outcomes[-1].ended}, {outcomes[-1].seconds:.0f} s", flush=True)
        (out / "session.json").write_text(json.dumps(_record(outcomes), indent=1), encoding="utf-8")
    return outcomes


def run_part(part: Part, out: Path, left_s: float) -> Outcome:
    """Run a part with its output in a log; end all of its processes where it takes too long."""
    own = [] if part.writes is None else [part.writes, str(out / f"{part.name}.json")]
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH"))))
    started = time.monotonic()
    with (out / f"{part.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*part.command, *own], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
        )  # fmt: skip
        try:
            status: int | None = process.wait(min(part.limit_s, left_s))
        except subprocess.TimeoutExpired:
            status = None
            _end(process)
    ended = "late" if status is None else "failed" if status else "ok"
    return Outcome(part.name, ended, time.monotonic() - started, status)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group as Ctrl-C does, so that it can still report, then whatever is left of it."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _record(outcomes: Sequence[Outcome]) -> dict[str, object]:
    return {"machine": describe_machine(), "parts": [asdict(outcome) for outcome in outcomes]}


def describe_machine() -> dict[str, str]:
    """Return what the figures were measured with."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", default=",".join(FIRST))
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    if options.list:
        for part in PARTS:
            print(f"{part.name} ({part.limit_s:.0f} s at most): {' '.join(part.command[1:])}")
        return 0
    known = {part.name: part for part in PARTS}
    names = options.parts.split(",")
    if options.out is None or set(names) - set(known):
        parser.error(f"--out DIR is needed, and parts are {', '.join(known)}; given: {options.parts}")
    outcomes = run_parts([known[name] for name in names], options.out.resolve(), options.minutes)
    return 0 if all(outcome.ended == "ok" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

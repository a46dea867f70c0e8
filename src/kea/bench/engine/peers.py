"""The systems that can be measured: where their python is, which precisions they have, how their weights are made.

Owns the table of peers and the cache of their weights. A peer that is not there, or whose weights cannot be made, is
an `Absent` with its reason.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kea.bench.engine.base import Precision, SystemSpec
from kea.bench.engine.shapes import Shape, make_checkpoint, write_tokenizer
from kea.errors import InvalidRequest

_DRIVERS = Path(__file__).parent / "drivers"
_CONVERT_S = 900.0
_GGUF_TYPES = {Precision.BF16: "bf16", Precision.F16: "f16", Precision.F32: "f32", Precision.INT8: "q8_0"}
_DTYPES = {Precision.BF16: "bfloat16", Precision.F16: "float16", Precision.F32: "float32"}


@dataclass(frozen=True, slots=True)
class Absent:
    """A system that cannot be measured here, and why."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's weights are: `made` by shape and cached, or `given` as a directory."""

    shape: Shape
    cache: Path
    given: Path | None = None

    def checkpoint(self, precision: Precision) -> Path:
        """Return the checkpoint to measure a precision with; int8 is quantised from the bfloat16 one."""
        if self.given is not None:
            return self.given
        return make_checkpoint(self.shape, _DTYPES.get(precision, "bfloat16"), self.cache)

    def converted(self, precision: Precision, suffix: str) -> Path:
        """Return where a peer's form of that checkpoint is kept."""
        source = self.checkpoint(precision)
        name = source.name
        if self.given is not None:
            name += "-" + hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]
        return self.cache / f"{name}-{suffix}"


@dataclass(frozen=True, slots=True)
class PeerKind:
    """`precisions`: those that it has; asked for another, it runs at the first. `prepare` makes and returns weights.
    `preloads` are libraries within its environment that its process is started with, where they are there. `is_own`:
    it needs nothing that Kea does not, and runs in Kea's python. `device`: the kind that it is driven on.
    """

    driver: str
    precisions: tuple[Precision, ...]
    prepare: Callable[[Path, Weights, Precision], tuple[Path, Mapping[str, object]]]
    env: Mapping[str, str] = field(default_factory=dict)
    preloads: tuple[str, ...] = ()
    is_own: bool = False
    device: str = "cpu"

    def process_env(self, folder: Path) -> Mapping[str, str]:
        """Return what is set for the process of the peer whose environment is in `folder`."""
        found = [str(folder / name) for name in self.preloads if (folder / name).exists()]
        return {**self.env, "LD_PRELOAD": ":".join(found)} if found else self.env


class ConversionFailed(Exception):
    """A peer's weights could not be made; the text says why. Ends as `Absent`."""


def native_precision(path: Path) -> Precision:
    """Return how a checkpoint in a directory holds its weights. Raises InvalidRequest for another type."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    known = {dtype: precision for precision, dtype in _DTYPES.items()}
    if dtype not in known:
        raise InvalidRequest(
            f"model {str(path)!r} holds weights in {dtype}; allowed: {', '.join(known)}.", param="model"
        )
    return known[dtype]


def kea_specs(weights: Weights, precisions: Sequence[Precision], kv_cache_dtype: str = "auto") -> list[SystemSpec]:
    """Return Kea at each precision of its weights."""
    driver = _DRIVERS / "drive_kea.py"
    specs = []
    for precision in precisions:
        own = {"quantize": "int8"} if precision is Precision.INT8 else {}
        load_args = {"kv_cache_dtype": kv_cache_dtype, **own}
        model = weights.checkpoint(precision)
        specs.append(SystemSpec("kea", precision, Path(sys.executable), driver, model, load_args=load_args))
    return specs


def machine_spec(device: str = "cpu") -> SystemSpec:
    """Return the bounds of a machine's device, as one more system."""
    driver = "drive_machine.py" if device == "cpu" else "drive_machine_gpu.py"
    return SystemSpec("machine", Precision.F32, Path(sys.executable), _DRIVERS / driver, Path())


def peer_specs(name: str, folder: Path, weights: Weights, precisions: Sequence[Precision]) -> list[SystemSpec | Absent]:
    """Return a peer at each precision that it has (at its own where it has none of them), its weights made.

    `folder` holds the environments that `make peers` makes. Raises InvalidRequest for a name that is no peer.
    """
    kind = PEERS.get(name)
    if kind is None:
        raise InvalidRequest(f"peers names {name!r}; peers are {', '.join(PEERS)}.", param="peers")
    wanted = [precision for precision in precisions if precision in kind.precisions] or [kind.precisions[0]]
    return [_peer_spec(name, kind, folder / name, weights, precision) for precision in wanted]


def _peer_spec(name: str, kind: PeerKind, folder: Path, weights: Weights, precision: Precision) -> SystemSpec | Absent:
    label = f"{name} {precision}"
    python = Path(sys.executable) if kind.is_own else folder / "bin" / "python"
    if not kind.is_own and not ((folder / "made").exists() and python.exists()):
        return Absent(label, f"{folder} has no finished environment; `make peers ARGS={name}` makes it")
    try:
        model, load_args = kind.prepare(folder, weights, precision)
    except ConversionFailed as error:
        return Absent(label, str(error))
    return SystemSpec(name, precision, python, _DRIVERS / kind.driver, model, kind.process_env(folder), load_args)


def as_is(_folder: Path, weights: Weights, _precision: Precision) -> tuple[Path, Mapping[str, object]]:
    """Give the bfloat16 checkpoint: on a CPU these systems widen it to fp32 when they load it."""
    return weights.checkpoint(Precision.BF16), {}


def as_gguf(folder: Path, weights: Weights, precision: Precision) -> tuple[Path, Mapping[str, object]]:
    kind = _GGUF_TYPES[precision]
    target = weights.converted(precision, f"{kind}.gguf")
    if not target.exists():
        making = target.with_name("making-" + target.name)
        convert = [str(folder / "convert"), "--outfile", str(making), "--outtype", kind]
        try:
            _run([*convert, str(weights.checkpoint(precision))])
        except ConversionFailed:
            if weights.given is None:
                raise
            with tempfile.TemporaryDirectory(prefix="kea-bench-") as stand_in:
                _link_weights(weights, Path(stand_in))
                _run([*convert, stand_in])
        making.rename(target)
    probe = [str(folder / "bin" / "python"), "-P", str(_DRIVERS / "drive_llamacpp.py"), str(target)]
    is_sound = subprocess.run(probe, capture_output=True, timeout=_CONVERT_S, check=False).returncode == 0
    return target, {} if is_sound else {"repack": False}


def _link_weights(weights: Weights, folder: Path) -> None:
    """Give a checkpoint with a tokenizer made up: the converter knows few, and prompts come as numbers."""
    source = weights.checkpoint(Precision.F32)
    for path in (source / "config.json", *source.glob("*.safetensors*")):
        (folder / path.name).symlink_to(path.resolve())
    write_tokenizer(weights.shape.vocab_size, folder)


def _as_openvino(folder: Path, weights: Weights, precision: Precision) -> tuple[Path, Mapping[str, object]]:
    kind = {Precision.F32: "fp32", Precision.INT8: "int8"}[precision]
    target = weights.converted(Precision.BF16, f"openvino-{kind}")
    if not (target / "openvino_model.xml").exists():
        making = target.with_name("making-" + target.name)
        command = [str(folder / "bin" / "optimum-cli"), "export", "openvino", "--model"]
        command += [str(weights.checkpoint(Precision.BF16)), "--task", "text-generation-with-past"]
        _run([*command, "--weight-format", kind, str(making)])
        making.rename(target)
    return target, {}


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_CONVERT_S, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConversionFailed(f"its weights could not be made: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConversionFailed(f"its weights could not be made: {last[:300]}")


_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

PEERS: dict[str, PeerKind] = {
    "llamacpp": PeerKind("drive_llamacpp.py", tuple(_GGUF_TYPES), as_gguf),
    "openvino": PeerKind("drive_openvino.py", (Precision.F32,), _as_openvino, _OFFLINE),
    "vllm": PeerKind(
        "drive_vllm.py",
        (Precision.F32,),
        as_is,
        {
            **_OFFLINE,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        },
        preloads=("lib/libiomp5.so",),  # vLLM's own advice for x86; 5 to 15 % faster
    ),
    "transformers": PeerKind("drive_transformers.py", (Precision.F32,), as_is, _OFFLINE),
    "transformers-static": PeerKind(
        "drive_transformers_static.py", (Precision.BF16,), as_is, _OFFLINE, is_own=True, device="cuda"
    ),
    "transformers-batching": PeerKind(
        "drive_transformers_batching.py", (Precision.BF16,), as_is, _OFFLINE, is_own=True, device="cuda"
    ),
}


def peers_of(device: str) -> tuple[str, ...]:
    """Return the peers that can be driven on a device ("cpu", "cuda:0")."""
    return tuple(name for name, kind in PEERS.items() if device.startswith(kind.device))

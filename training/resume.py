"""Makes the folder of a run out of a shipped model directory, so that training can go on from its weights.

    python -m training.resume --model src/kea/models/embedded --progress training/log/progress.json --out .train/plain

Knows nothing of training itself: `training.train` continues whatever folder it is given.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from training.command_line import in_one_sentence, need_files


def resume(model: Path, progress: Path, out: Path) -> None:
    """Write weights in fp32, the tokenizer and the progress into `out`; refuse a folder that holds weights."""
    target = out / "master.safetensors"
    if target.exists():
        raise FileExistsError(f"{target} is there already: continue that run, or name another folder")
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(model / "model.safetensors")
    shutil.copy(progress, out / "state.json")
    save_file({name.removeprefix("model."): weight.float() for name, weight in weights.items()}, target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, out / name)


def main() -> None:
    """Make the folder as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory that training.export wrote")
    parser.add_argument("--progress", type=Path, required=True, help="state.json of the run it came from")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run to make")
    arguments = parser.parse_args()
    with in_one_sentence():
        need_files(
            arguments.model, ("model.safetensors", "tokenizer.json", "tokenizer_config.json"), "a model directory"
        )
        resume(arguments.model, arguments.progress, arguments.out)
        print(f"wrote the folder of a run into {arguments.out}")


if __name__ == "__main__":
    main()

"""Digests of what a checkout computes, to compare two of them bit for bit.

    python tests/support/nothing_moved.py CHECKOUT OUT.json

It uses public commands and names alone, so it runs on any revision: the generations of o3-tiny with the
scores of every estimate, the model after three steps of SFT and after one iteration of GSPO, and exports.
Run it on both revisions on one machine, one after the other, and compare the two files.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_EXPORT = """
import sys
import o3jax
model = o3jax.load("o3-tiny")
o3jax.export_hf(model, sys.argv[1])
o3jax.export_hf(model, sys.argv[2], dtype="bfloat16")
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(folder.glob("*.safetensors"))}


def measured(row: dict[str, Any]) -> list[Any]:
    """Returns a generation's text and what its estimates are worth, in full precision."""
    estimate = row.get("decoder") or row.get("head") or {}  # its earlier name
    return [row["text"], row["tIoU"], row["vIoU"], row["time_off_s"], *estimate.values()]


def main(checkout: str, out: str) -> None:
    root = Path(checkout).absolute()
    environment = os.environ | {"PYTHONPATH": str(root)}

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], cwd=root, env=environment, check=True)

    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for level, count in ((1, 60), (2, 20)):
            result = place / f"level{level}.json"
            flags = (f"--level={level}", f"--num_questions={count}", f"--out={result}")
            run("-m", "experiments.evaluate", "--benchmark=synthetic", *flags)
            generations = json.loads(result.read_text(encoding="utf-8"))["generations"]
            text = json.dumps([measured(row) for row in generations])
            found[f"level {level}"] = hashlib.sha256(text.encode()).hexdigest()
        run(
            *("-m", "experiments.sft", "--config=configs/sft_tiny.py", f"--workdir={place / 'sft'}"),
            *("--config.model_name_or_path=o3-tiny", "--config.max_steps=3"),
        )
        found["sft, 3 steps"] = weights(place / "sft" / "model")
        run(
            *("-m", "experiments.gspo", "--config=configs/gspo_tiny.py", f"--workdir={place / 'gspo'}"),
            *("--config.max_steps=4", "--config.eval_every=0"),
        )
        found["gspo, 1 iteration"] = weights(place / "gspo" / "model")
        run("-c", _EXPORT, str(place / "same"), str(place / "bfloat16"))
        found["export"] = {name: weights(place / name) for name in ("same", "bfloat16")}
        found["export, other files"] = {
            path.name: digest(path)
            for path in sorted((place / "same").iterdir())
            if path.suffix != ".safetensors"
        }
    Path(out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

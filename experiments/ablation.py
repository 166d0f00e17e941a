"""`python -m experiments.ablation --workdir=runs/ablation`: what each part of the evidence is worth.

Trains and evaluates the cells of configs/ablation_tiny.py and prints a table. A run that is already in the
folder is used again, and evaluated anew for another number of questions; one that was cut off goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from configs.ablation_tiny import CELLS
from experiments.cli import shell
from experiments.studies.runs import at, command, entry
from o3jax.errors import UserError
from o3jax.files import read_json

_WORKDIR = flags.DEFINE_string("workdir", "runs/ablation", "Folder of all runs.")
_SOURCE = flags.DEFINE_string("source", "runs/questions_tiny/model", "The text-only model to start from.")
_SEEDS = flags.DEFINE_multi_string(
    "seeds",
    ["no_encoder=0,1,2", "full=0,1,2", "prompt=0,1,2"],
    "Seeds of a cell, CELL=N,...; the others have seed 0.",
)
_NUM_QUESTIONS = flags.DEFINE_integer("num_questions", 200, "Test questions of an evaluation.")

_COLUMNS = {
    "accuracy": ("accuracy",),
    "text m_tIoU": ("m_tIoU",),
    "decoder m_tIoU": ("decoder", "m_tIoU"),
    "text m_vIoU": ("m_vIoU",),
    "decoder m_vIoU": ("decoder", "m_vIoU"),
    "decoder interval error, s": ("decoder", "time_error_mean_s"),
    "decoder moment error, s": ("decoder", "point_error_mean_s"),
    "correlation, interval": ("decoder", "error_correlation", "interval"),
}


def run(cell: str, seed: int) -> dict[str, Any]:
    """Returns the metrics of a cell's model, after training and evaluating it where that is not done.

    Raises:
        UserError: if the run that is there started from another model.
    """
    folder = Path(_WORKDIR.value) / f"{cell}_{seed}"
    result = folder / "evaluation.json"
    questions = None  # of the evaluation that is there
    if result.exists():
        source = _read(folder / "config.json")["model_name_or_path"]
        if source != _SOURCE.value:
            raise UserError(
                f"{folder} started from {source}, not from {_SOURCE.value}: give another --workdir, or that "
                "model as --source"
            )
        questions = _read(result)["protocol"]["questions"]
    else:
        command("sft", f"--config=configs/ablation_tiny.py:{cell}", f"--config.seed={seed}",
                f"--config.model_name_or_path={_SOURCE.value}", f"--workdir={folder}")  # fmt: skip
    if questions != _NUM_QUESTIONS.value:
        clips = Path(_WORKDIR.value) / f"questions_{_NUM_QUESTIONS.value}"  # it holds no other number
        command("evaluate", f"--model_path={folder / 'model'}", f"--num_questions={_NUM_QUESTIONS.value}",
                f"--data_root={clips}", f"--out={result}")  # fmt: skip
    return _read(result)["metrics"]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path)


def seeds_of(cell: str) -> list[int]:
    """Returns the seeds that the flags name for a cell."""
    named = dict(text.partition("=")[::2] for text in _SEEDS.value)
    if unknown := [name for name in named if name not in CELLS]:
        raise UserError(f"--seeds names the cell '{unknown[0]}'; there is {', '.join(CELLS)}")
    try:
        return [int(seed) for seed in named.get(cell, "0").split(",")]
    except ValueError:
        raise UserError(f"--seeds={cell}={named[cell]} is wrong; write numbers, as in {cell}=0,1,2") from None


def main(argv: Sequence[str]) -> None:
    del argv
    rows = []
    for cell in CELLS:
        found = [run(cell, seed) for seed in seeds_of(cell)]
        rows.append([cell, *(entry([at(metrics, path) for metrics in found]) for path in _COLUMNS.values())])
    print(f"| cell | {' | '.join(_COLUMNS)} |\n|{'---|' * (1 + len(_COLUMNS))}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    shell.run(main)

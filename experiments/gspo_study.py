"""`python -m experiments.gspo_study`: what GSPO teaches o3-tiny, and what GRPO and a ratio of 1 do instead.

Trains configs/gspo_tiny.py with three seeds and its rivals with one, evaluates the models before and
after, prints a table and draws WORKDIR/curves.png. What is already in the folder is used again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import cli
from experiments.study import at, command, entry

_WORKDIR = flags.DEFINE_string("workdir", "runs/gspo_study", "Folder of all runs.")
_SOURCE = flags.DEFINE_string("source", "o3-tiny", "The fine-tuned model to start from.")
_NUM_QUESTIONS = flags.DEFINE_integer("num_questions", 200, "Test questions of an evaluation.")

RUNS = {"gspo": (0, 1, 2), "scaled": (0,), "grpo": (0,), "one": (0,)}
_TOP = 3.0  # the reward `overlap` of a perfect answer, without the term for the format
_METRICS = {
    "accuracy": ("accuracy",),
    "m_tIoU": ("m_tIoU",),
    "m_vIoU": ("m_vIoU",),
    "decoder m_tIoU": ("head", "m_tIoU"),
    "decoder m_vIoU": ("head", "m_vIoU"),
}


def evaluate(model: str, out: Path) -> dict[str, Any]:
    """Returns the metrics of a model on test questions, after evaluating it where that is not done."""
    if not out.exists():
        command(
            "evaluate", f"--model_path={model}", f"--num_questions={_NUM_QUESTIONS.value}", f"--out={out}"
        )
    return json.loads(out.read_text(encoding="utf-8"))["metrics"]


def train(kind: str, seed: int) -> Path:
    """Returns the folder of a run, after training it where that is not done."""
    folder = Path(_WORKDIR.value) / f"{kind}_{seed}"
    if not (folder / "model").exists():
        command("gspo", f"--config=configs/gspo_tiny.py:{kind}", f"--config.seed={seed}",
                f"--config.sft_model_path={_SOURCE.value}", f"--workdir={folder}")  # fmt: skip
    return folder


def held_out(folder: Path, prefix: str = "") -> tuple[list[int], list[float]]:
    """Returns steps, and the mean reward of the held-out prompts at each, the term for the format excluded.

    Args:
        prefix: "" for greedy completions, "sampled/" for those of the policy.
    """
    lines = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return (
        [line["step"] for line in lines],
        [line[f"{prefix}reward"] - line[f"{prefix}reward/format"] for line in lines],
    )


def draw(folders: Sequence[Path], path: Path) -> None:
    """Writes the curves of some runs as a PNG: held-out rewards, clip fraction and entropy by step."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    (greedy, sampled), (clipped, entropy) = figure.subplots(2, 2)
    for folder in folders:
        for axes, prefix in ((greedy, ""), (sampled, "sampled/")):
            axes.plot(*held_out(folder, prefix), marker=".")
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for axes, name in ((clipped, "clip_fraction"), (entropy, "entropy")):
            values = np.array([line[name] for line in log])
            smooth = np.convolve(np.pad(values, 4, mode="edge"), np.full(9, 1 / 9), mode="valid")
            axes.plot([line["step"] for line in log], smooth, label=folder.name.replace("_", ", seed "))
    greedy.set_title("held-out reward without format, greedy")
    sampled.set_title("the same, sampled by the policy")
    clipped.set_title("share of completions that the clip holds back")
    entropy.set_title("entropy of a token, nats")
    for axes in (clipped, entropy):
        axes.set_xlabel("optimizer step")
    clipped.legend()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str]) -> None:
    del argv
    study = Path(_WORKDIR.value)
    study.mkdir(parents=True, exist_ok=True)
    folders = {kind: [train(kind, seed) for seed in seeds] for kind, seeds in RUNS.items()}
    draw([folder for some in folders.values() for folder in some], study / "curves.png")
    names = ["greedy", "of the headroom", "sampled", "of the headroom", *_METRICS]
    print(f"| | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    before = evaluate(_SOURCE.value, study / "before.json")
    print(_row("before", folders["gspo"][:1], [before], 0))
    for kind, some in folders.items():
        after = [evaluate(str(folder / "model"), folder / "evaluation.json") for folder in some]
        print(_row(kind, some, after, -1))
    print(f"curves: {study / 'curves.png'}")


def _row(name: str, folders: Sequence[Path], found: Sequence[dict[str, Any]], line: int) -> str:
    """Returns a row of the table.

    Args:
        found: the metrics of each run's model.
        line: of the held-out rewards, 0 for those before training and -1 for the last.
    """
    cells = [name]
    for prefix in ("", "sampled/"):
        rewards = [held_out(folder, prefix)[1] for folder in folders]
        cells.append(entry([mine[line] for mine in rewards]))
        cells.append(entry([(mine[line] - mine[0]) / (_TOP - mine[0]) for mine in rewards]))
    cells += [entry([at(metrics, path) for metrics in found]) for path in _METRICS.values()]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cli.run(main)

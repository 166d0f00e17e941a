"""`python -m experiments.gspo_study`: what GSPO teaches o3-tiny, and what GRPO and a ratio of 1 do instead.

Trains configs/gspo_tiny.py with three seeds and its rivals with one, evaluates the models before and
after on two splits, prints a table and draws WORKDIR/curves.png. What is already in the folder is used again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.cli import shell
from experiments.data.audit import as_record
from experiments.evaluation.synthetic import questions_of
from experiments.studies.runs import at, command, entry
from o3jax.errors import UserError
from o3jax.files import read_json, write_json
from o3jax.rewards import overlap

_WORKDIR = flags.DEFINE_string("workdir", "runs/gspo_study", "Folder of all runs.")
_SOURCE = flags.DEFINE_string("source", "o3-tiny", "The fine-tuned model to start from.")
_NUM_QUESTIONS = flags.DEFINE_integer("num_questions", 200, "Questions of each split in an evaluation.")

RUNS = {"gspo": (0, 1, 2), "grpo": (0,), "one": (0,)}
_TOP = 3.0  # the reward `overlap` of a perfect answer, without the term for the format
SPLITS = ("test", "val")
_WHERE = ("held-out greedy", "held-out sampled", *SPLITS)
_METRICS = {
    "accuracy": ("accuracy",),
    "m_tIoU": ("m_tIoU",),
    "m_vIoU": ("m_vIoU",),
    "decoder m_tIoU": ("decoder", "m_tIoU"),
    "decoder m_vIoU": ("decoder", "m_vIoU"),
}


def check_folder(folder: Path, source: str, num_questions: int) -> None:
    """Notes in the folder what it is the study of, since runs and evaluations are found again by name alone.

    Raises:
        UserError: if it is that of another model, or of another number of questions.
    """
    path, asked = folder / "study.json", {"source": source, "num_questions": num_questions}
    if path.exists() and (found := read_json(path)) != asked:
        flags_of = [" ".join(f"--{name}={value}" for name, value in one.items()) for one in (found, asked)]
        raise UserError(
            f"{folder} holds a study with {flags_of[0]}, not {flags_of[1]}; name another --workdir"
        )
    write_json(path, asked)


def evaluate(model: str, stem: Path) -> dict[str, dict[str, Any]]:
    """Returns what `experiments.evaluate` writes of a model on each split; what is there already is read."""
    found = {}
    for split in SPLITS:
        out = stem.with_name(f"{stem.name}_{split}.json")
        if not out.exists():
            command("evaluate", f"--model_path={model}", f"--num_questions={_NUM_QUESTIONS.value}",
                    f"--split={split}", f"--out={out}")  # fmt: skip
        found[split] = read_json(out)
    return found


def reward(evaluation: dict[str, Any], split: str) -> float:
    """Returns the mean reward of the texts of a split's evaluation, the term for the format excluded."""
    generations = evaluation["generations"]
    asked = questions_of(split, len(generations), 1, 0)
    rewards = []
    for question, generation in zip(asked, generations, strict=True):
        terms = overlap.score(generation["text"], as_record(question.sample))
        rewards.append(sum(terms.values()) - terms["format"])
    return float(np.mean(rewards))


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
    check_folder(study, _SOURCE.value, _NUM_QUESTIONS.value)
    folders = {kind: [train(kind, seed) for seed in seeds] for kind, seeds in RUNS.items()}
    draw([folder for some in folders.values() for folder in some], study / "curves.png")
    names = [f"{where}, {what}" for where in _WHERE for what in ("reward", "gained")]
    names += [f"{name}, {split}" for name, split in itertools.product(_METRICS, SPLITS)]
    print(f"| | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    before = evaluate(_SOURCE.value, study / "before")
    start = [held_out(folders["gspo"][0], prefix)[1][0] for prefix in ("", "sampled/")]
    start += [reward(before[split], split) for split in SPLITS]
    print(_row("before", start, [start], [before]))
    for kind, some in folders.items():
        after = [evaluate(str(folder / "model"), folder / "evaluation") for folder in some]
        ends = [
            [held_out(folder, prefix)[1][-1] for prefix in ("", "sampled/")]
            + [reward(found[split], split) for split in SPLITS]
            for folder, found in zip(some, after, strict=True)
        ]
        print(_row(kind, start, ends, after))
    print(f"curves: {study / 'curves.png'}")


def _row(
    name: str,
    start: Sequence[float],
    ends: Sequence[Sequence[float]],
    evaluations: Sequence[dict[str, dict[str, Any]]],
) -> str:
    """Returns a row of the table: of each reward the mean of the runs and what it gained of the headroom.

    Args:
        start: the rewards that `_WHERE` names, before training.
        ends: of each run, the same after it.
        evaluations: of each run, those of the splits.
    """
    cells = [name]
    for first, last in zip(start, zip(*ends, strict=True), strict=True):
        cells += [entry(last), entry([(one - first) / (_TOP - first) for one in last])]
    for path, split in itertools.product(_METRICS.values(), SPLITS):
        cells.append(entry([at(found[split]["metrics"], path) for found in evaluations]))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    shell.run(main)

"""The evaluation on the synthetic world: clips are made, questions answered, tables printed.

`experiments.evaluation.scores` says how it is scored.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_pipelines.synthetic.scenes import level_of
from experiments.cli import terminal
from experiments.evaluation import figures, scores
from experiments.evaluation import synthetic as synthetic_questions
from o3jax.api import Model

_ROWS = {  # of the first table: the metric, and how it is printed
    "accuracy": "answer accuracy",
    "m_tIoU": "m_tIoU",
    "m_vIoU": "m_vIoU",
    "m_vIoU_answer": "m_vIoU of the answer",
    "mAM": "mAM",
    "mLGM": "mLGM",
    "time_error_mean_s": "mean time error, s",
    "time_error_median_s": "median time error, s",
}
_ESTIMATES = {  # of the table that compares the text with the evidence decoder
    "m_tIoU": "m_tIoU",
    "m_vIoU": "m_vIoU",
    "time_error_mean_s": "mean error of an interval's end, s",
    "time_error_median_s": "median error of an interval's end, s",
    "point_error_mean_s": "mean error of the moment, s",
    "point_error_median_s": "median error of the moment, s",
}
_ERRORS = {
    "wrong_answer": "a wrong answer",
    "time_off_more_than_3s": "a time > 3 s off",
    "no_time": "no time",
    "no_claim": "no object",
    "wrong_object_claimed": "another object",
    "malformed": "malformed text",
}
_LEGEND = (
    "chance: a random valid response; prior: the best constant one, fitted on the train split; "
    "copy: what the question itself says, else the prior; ceiling: the truth, rounded as the text rounds it"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked, and how it is answered."""

    level: int = 1
    split: str = "test"
    seed: int = 0
    num_questions: int = 200
    batch_size: int = 16
    max_new_tokens: int = 256


def run_synthetic(
    model: Model, model_path: str, data_root: str | None, settings: Settings, console: Console
) -> dict[str, Any]:
    """Returns the report on the synthetic world, printed as tables too.

    Args:
        data_root: the folder of the clips, made there or used again; None: a temporary one.
    """
    if data_root is None:
        with tempfile.TemporaryDirectory(prefix="o3jax-") as folder:
            return run_synthetic(model, model_path, folder, settings, console)
    folder = Path(data_root)
    count, began = settings.num_questions, time.perf_counter()
    with terminal.progress() as progress:
        bar = progress.add_task("rendering clips", total=count)
        step = level_of(settings.level).questions
        questions = synthetic_questions.make_questions(
            folder, settings.split, count, settings.level, settings.seed, lambda: progress.advance(bar, step)
        )
        bar = progress.add_task("answering", total=count)
        responses = synthetic_questions.generate(
            model,
            questions,
            folder,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            on_batch=lambda done: progress.advance(bar, done),
        )
    seconds = time.perf_counter() - began

    def scored(answers: Sequence[str]) -> list[scores.Scored]:
        return [scores.score(q, text) for q, text in zip(questions, answers, strict=True)]

    baselines = synthetic_questions.baseline_texts(questions, settings.seed)
    answered = [
        scores.score(q, response.text, response.estimates)
        for q, response in zip(questions, responses, strict=True)
    ]
    result = {
        "benchmark": "synthetic",
        "model_path": model_path,
        "protocol": {
            "level": settings.level,
            "split": settings.split,
            "seed": settings.seed,
            "questions": count,
            "questions_per_clip": step,
            "decoding": "greedy",
            "max_new_tokens": settings.max_new_tokens,
        },
        "seconds": seconds,
        **figures.report(answered),
        "baselines": {name: figures.report(scored(answers)) for name, answers in baselines.items()},
        "generations": [one.to_json() for one in answered],
    }
    _print(result, console)
    return result


def _print(result: dict[str, Any], console: Console) -> None:
    protocol, others = result["protocol"], result["baselines"]
    systems = {"model": result, **others}
    title = (
        f"{result['model_path']}: {protocol['questions']} questions of the synthetic world, "
        f"level {protocol['level']}, {protocol['split']} split"
    )
    table = Table("", *systems, title=title)
    for metric, words in _ROWS.items():
        table.add_row(words, *(_number(system["metrics"][metric]) for system in systems.values()))
    for metric in ("mIoU", "R1@0.5"):
        row = (_number(system["metrics"]["tvg"][metric]) for system in systems.values())
        table.add_row(f"TVG {metric} (interval)", *row)
    console.print(table)

    decoded = result["metrics"].get("decoder")
    if decoded:
        table = Table("", "text", "evidence decoder", title="the two estimates of when and where")
        for metric, words in _ESTIMATES.items():
            table.add_row(words, _number(result["metrics"][metric]), _number(decoded[metric]))
        console.print(table)
        correlation = {name: _number(value) for name, value in decoded["error_correlation"].items()}
        console.print(f"correlation of their errors: {correlation}")
        right = decoded["right_object"]
        console.print(
            f"evidence decoder where the text claims the right object ({right['N']} of "
            f"{protocol['questions']}): m_tIoU {_number(right['m_tIoU'])}, m_vIoU {_number(right['m_vIoU'])}"
        )

    compared = [name for name in others if name != "ceiling"]
    headings = ("N", "accuracy", "m_tIoU", "m_vIoU", *compared)
    table = Table("", *headings, title="the model by kind and language, and the baselines' accuracy")
    for field in ("by_kind", "by_language"):
        for group, values in result[field].items():
            numbers = [values[metric] for metric in ("accuracy", "m_tIoU", "m_vIoU")]
            numbers += [others[name][field][group]["accuracy"] for name in compared]
            table.add_row(group, str(values["N"]), *map(_number, numbers))
        table.add_section()
    console.print(table)

    table = Table("share of responses with", *systems)
    for name, words in _ERRORS.items():
        table.add_row(words, *(_number(system["errors"][name]) for system in systems.values()))
    console.print(table)
    console.print(_LEGEND)
    console.print("worst: " + ", ".join(case["id"] for case in result["errors"]["worst"]))
    console.print(f"rendered and answered in {result['seconds']:.0f} s")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

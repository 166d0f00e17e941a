"""What an iteration sampled, for people: JSON lines, and a page with each prompt's best and worst."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.formats.sample import Sample
from experiments.training.scoring import Scored
from o3jax.files import write_text
from o3jax.report.pages import page_template


def write_samples(
    workdir: Path,
    iteration: int,
    samples: Sequence[Sample | None],
    texts: Sequence[Sequence[str]],
    scored: Sequence[Sequence[Scored]],
    advantages: np.ndarray,
    finished: np.ndarray,
) -> None:
    """Writes WORKDIR/samples/ITERATION.jsonl, a completion a line, and ITERATION.html beside it."""
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
    lines, groups = [], []
    for row, sample in enumerate(samples):
        if sample is None:
            continue
        asked = {"id": sample.id, "task": sample.task, "question": sample.question, "truth": sample.answer}
        group = [
            {
                "completion": text,
                "reward": one.total,
                "terms": one.terms,
                "error": one.error,
                "advantage": float(advantages[row, number]),
                "finished": bool(finished[row, number]),
            }
            for number, (text, one) in enumerate(zip(texts[row], scored[row], strict=True))
        ]
        lines += [json.dumps(asked | one, ensure_ascii=False) + "\n" for one in group]
        for one in group:
            one["shown_terms"] = ", ".join(f"{name} {value:.3g}" for name, value in one["terms"].items())
        ranked = sorted(group, key=lambda one: one["reward"])
        shown = (("best", ranked[-1]), ("worst", ranked[0])) if len(ranked) > 1 else (("only", ranked[0]),)
        groups.append(asked | {"shown": shown, "spread": ranked[-1]["reward"] - ranked[0]["reward"]})
    groups.sort(key=lambda group: -group["spread"])
    write_text(folder / f"{iteration:06d}.jsonl", "".join(lines))
    template = page_template(Path(__file__).with_name("samples_page.html"))
    page = template.render(title=f"Iteration {iteration}", groups=groups, size=len(texts[0]))
    write_text(folder / f"{iteration:06d}.html", page)

"""`o3jax evaluate --benchmark voting`: one answer from N samples, by majority, by the published weights of
evidence, and by calibrated confidence, all from the same samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from experiments.cli import terminal
from experiments.evaluation.benchmarks.command import model_digest
from experiments.evaluation.observing import MAX_NEW_TOKENS
from experiments.evaluation.scores import Question, score
from experiments.evaluation.shifts import write_clips
from experiments.library.records import RunFolder
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.generate.sampling import Sampling
from o3jax.inference.respond import Request, Response
from o3jax.inference.samples import sampling_steps
from o3jax.prompts import coords, grammar
from o3jax.verify.signals import VERSION
from o3jax.verify.verdict import verdict
from o3jax.verify.voting import CROPPED, MOST_CROPS, evidence_prompt, evidence_weight, vote
from o3jax.video import Clip

WAYS = ("greedy", "single", "majority", "evidence (published)", "confidence")
_LEVELS = (1, 2)


def run_voting(
    load: Callable[[], Model], folder: Path, count: int, samples: int, seed: int, console: Console
) -> dict[str, Any]:
    """Returns the accuracy of each way, printed as a table too; votes that the folder holds are not taken
    again.

    Args:
        count: questions, in equal shares of levels 1 and 2.
        samples: N, of each question, at temperature 1.

    Raises:
        UserError: if the model has no calibration, or the folder holds another run.
    """
    model = load()
    if model.calibration is None:
        raise UserError(
            f"{model.folder} has no calibration to vote by: fit one with o3jax evaluate --calibrate"
        )
    run = RunFolder(folder)
    made_with = {"model": model_digest(model.folder), "samples": samples, "seed": seed, "signals": VERSION}
    run.begin(made_with)
    known, rows = run.records(), []
    with terminal.progress() as progress:
        bar = progress.add_task("voting", total=count)
        for level in _LEVELS:
            share = -(-count // len(_LEVELS))
            for question, path in write_clips(folder / "clips", "none", "test", share, level, seed):
                row = known.get(question.sample.id)
                if row is None:
                    row = {"id": question.sample.id, "level": level}
                    row |= _voted(model, question, path, samples, seed)
                    run.add([row])
                rows.append(row)
                progress.advance(bar)
    table = Table(
        "", *map(str, _LEVELS), "all", title=f"accuracy from {samples} samples of {len(rows)} questions"
    )
    result: dict[str, Any] = {"benchmark": "voting", "samples": samples, "N": len(rows)}
    for way in WAYS:
        by = [float(np.mean([row[way] for row in rows if row["level"] == level])) for level in _LEVELS]
        result[way] = {"levels": by, "all": float(np.mean([row[way] for row in rows]))}
        table.add_row(way, *(f"{value:.3f}" for value in (*by, result[way]["all"])))
    console.print(table)
    return result


def _voted(model: Model, question: Question, path: Path, count: int, seed: int) -> dict[str, float]:
    """Returns whether each way's answer is right; of single samples the mean."""
    request, clip = model.request(path, question.sample.question)
    greedy = model.respond([request], max_new_tokens=MAX_NEW_TOKENS)[0]
    asking = copy.copy(model)
    asking.steps = sampling_steps(count, Sampling(), seed)
    responses = asking.respond([request] * count, max_new_tokens=MAX_NEW_TOKENS)
    right = [score(question, said.text, said.estimates).correct for said in responses]
    answers = [grammar.parse(said.text).answer for said in responses]
    sure = [
        verdict(model.observe(said, question.sample.question, clip), model.calibration).confidence
        for said in responses
    ]
    published = [evidence_weight(_reply(model, request, clip, said)) for said in responses]
    return {
        "greedy": float(score(question, greedy.text, greedy.estimates).correct),
        "single": float(np.mean(right)),
        "majority": float(right[vote(answers)]),
        "evidence (published)": float(right[vote(answers, published)]),
        "confidence": float(right[vote(answers, sure)]),
    }


def _reply(model: Model, request: Request, clip: Clip, said: Response) -> str:
    """Returns what the model says of the crops of a response's evidence; nothing where there are none."""
    crops = list(_crops(clip, said.text))
    if not 0 < len(crops) <= MOST_CROPS:
        return ""
    system, text = evidence_prompt(model.processor.tokenizer.quoted(request.question))
    content = [*({"type": "image"} for _ in crops), {"type": "text", "text": text}]
    chat = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    inputs = model.processor(text=[model.processor.apply_chat_template(chat)], images=crops)
    return model.processor.decode(model.generate(max_new_tokens=4, **inputs)[0])


def _crops(clip: Clip, text: str) -> Sequence[np.ndarray]:
    """Yields the crops that the published voting takes: the frame nearest to each time, cut to the box, and
    resized to the whole frame."""
    height, width = clip.size
    for _, box, stamp in CROPPED.findall(grammar.parse(text).think):
        time, corners = coords.parse_number(stamp), coords.parse_box(box)
        if time is None or corners is None or time > clip.duration_s:
            continue
        frame = Image.fromarray(clip.frames[np.abs(clip.times_s - time).argmin()])
        box = coords.convert(corners, coords.PER_MILLE, coords.pixels(frame.width, frame.height))
        x1, y1, x2, y2 = (int(c) for c in box)
        if 0 <= x1 < x2 <= frame.width and 0 <= y1 < y2 <= frame.height:
            yield np.asarray(frame.crop((x1, y1, x2, y2)).resize((width, height), Image.Resampling.BILINEAR))

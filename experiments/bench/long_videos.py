"""`python -m experiments.bench.long_videos`: questions about hours, searched and read at 2 frames per second;
memory by length; what the second question costs.

Videos are level 4 of the synthetic world, an mp4 with a key frame every 10 s, made once in --folder. Uniform
reading differs in one thing: every half second of the whole video is decoded, encoded and matched in place of
what a search looks at. What is read closely then, and the answer, are made alike.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.bench.tables import Row, table
from experiments.bench.timing import peak_bytes
from experiments.cli import shell
from experiments.evaluation.scores import Question, Scored, score
from o3jax.arrays import read_arrays, write_arrays
from o3jax.files import write_json
from o3jax.searched import Pass, Search

_FOLDER = flags.DEFINE_string("folder", "data/level4", "Where the videos are made, and stay.")
_VIDEOS = flags.DEFINE_integer("videos", 8, "How many videos; five questions about each.", lower_bound=1)
_SECONDS = flags.DEFINE_integer("seconds", 3600, "How long they are.", lower_bound=60)
_MODEL = flags.DEFINE_string("model_path", "o3-tiny", "A model folder, or the embedded o3-tiny.")
_SPLIT = flags.DEFINE_string("split", "test", "Whose scenes.")
_UNIFORM = flags.DEFINE_integer("uniform", 8, "How many of them are also read uniformly: minutes each.")
_MEMORY = flags.DEFINE_bool("memory", True, "Also ask videos of 10 minutes and 3 hours for their memory.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to.")
_ASK = flags.DEFINE_string("ask", None, "One video, asked in this process for its memory; the command's own.")

_UNIFORM_S = 0.5
_SHORT_S = 5.0  # events shorter than this are counted apart


def videos(count: int, seconds: int) -> list[tuple[Path, list[Question]]]:
    """Returns so many videos of level 4 with their questions; what is not there is made."""
    from data_pipelines.synthetic.datasets import write_video
    from data_pipelines.synthetic.questions import make_samples
    from data_pipelines.synthetic.scenes import make_scene, scene_seed

    folder, found = Path(_FOLDER.value), []
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = make_scene(scene_seed(_SPLIT.value, index), 4, seconds=seconds)
        path = folder / f"{scene.id}-{scene.duration:.0f}.mp4"
        if not path.exists():
            write_video(scene, path)
        found.append((path, [Question(sample, scene) for sample in make_samples(scene)]))
    return found


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an answer is worth, how it was searched, and what it took."""

    scored: Scored
    search: Search
    wall_s: float
    cpu_s: float


def ask(model: Any, path: Path, question: Question, uniform: bool = False) -> Asked:
    """Returns what becomes of a question; read uniformly, with what that reading took."""
    from o3jax.inference import search

    sample, respond = question.sample, functools.partial(model.respond, max_new_tokens=256)
    whole, before = None, np.zeros(2)
    if uniform:
        whole, before = every_half_second(model, path)
        kept = search.coarse_features, search.STEPS_S
        search.coarse_features, search.STEPS_S = lambda *_, **__: whole, ()
    begun = _spent()
    try:
        read = model.request(path, sample.question, budget=1.0 if uniform else None)
        ((response, *_),) = model.respond_searching(respond, [read])
    finally:
        if uniform:
            search.coarse_features, search.STEPS_S = kept
    wall_s, cpu_s = (_spent() - begun + before).tolist()
    found = response.search
    if whole is not None:
        decoded = Pass(name="uniform", every_s=_UNIFORM_S, read=len(whole.times_s), decoded=whole.frames)
        found = dataclasses.replace(found, passes=(decoded, *found.passes))
    return Asked(score(question, response.text, response.estimates), found, wall_s, cpu_s)


def every_half_second(model: Any, video: Path) -> tuple[Any, np.ndarray]:
    """Returns the features of a video read uniformly, decoded from start to end, and the seconds that took.

    Both stay beside the video; the seconds are of the machine as it was then.
    """
    from o3jax.inference.coarse import CoarseFeatures, look
    from o3jax.notes import Note

    kept = video.with_name(f"{video.stem}-{Path(_MODEL.value).name}.npz")
    with model.open_sparse(video) as reader:
        duration_s, frames = reader.duration_s, reader.cues.frames
        if not kept.exists():
            begun = _spent()
            reader.forward = Note("key frames", 1)
            found = look(model, reader, np.arange(0, duration_s, _UNIFORM_S), "uniform", _UNIFORM_S)
            made = {"times_s": found.times_s, "features": found.features, "cells": found.cells}
            write_arrays(kept, **made, spent=_spent() - begun)
    made = read_arrays(kept)
    spent = made.pop("spent")
    # What it cost is told beside the budget, which is for reading closely then.
    return CoarseFeatures(**made, duration_s=duration_s, frames=frames, passes=(), forward=True), spent


def _spent() -> np.ndarray:
    """Returns the seconds on the wall and of this process."""
    return np.array([time.monotonic(), time.process_time()])


def row(name: str, answers: Sequence[Asked]) -> Row:
    """Returns the figures of some answers."""
    there = [one.scored for one in answers if one.scored.question.sample.mentions]
    return {
        "": name,
        "questions": len(answers),
        "accuracy": _mean([one.scored.correct for one in answers]),
        "of what appears": _mean([one.correct for one in there]),
        "m_tIoU text": _mean([one.t_iou for one in there]),
        "m_tIoU decoder": _mean([one.decoded.t_iou if one.decoded else 0.0 for one in there]),
        "m_vIoU text": _mean([one.v_iou for one in there]),
    }


def cost(name: str, answers: Sequence[Asked]) -> Row:
    """Returns what some answers took."""
    decoded, encoded = (
        [100 * getattr(one.search, kind) / one.search.frames for one in answers]
        for kind in ("decoded", "encoded")
    )
    return {
        "": name,
        "questions": len(answers),
        "decoded %": _mean(decoded),
        "at most %": max(decoded),
        "encoded %": _mean(encoded),
        "s a question": _mean([one.wall_s for one in answers]),
        "CPU s a question": _mean([one.cpu_s for one in answers]),
    }


def _mean(values: Sequence[float]) -> float | str:
    return float(np.mean(values)) if len(values) else ""


def lasting(question: Question) -> float:
    """Returns the seconds that the event which answers lasts."""
    moment = question.sample.mentions[0].time_s
    return min(b - a for a, b in question.target.visible if a <= moment <= b)


def about_short_events(asked: Sequence[Question]) -> list[Question]:
    """Returns a question when it is seen about each thing of a scene that is there for less than 5 s."""
    from data_pipelines.synthetic.questions import make_samples

    scene = asked[0].scene
    alone = [
        dataclasses.replace(scene, objects=(thing,), kinds=("interval",))
        for thing in scene.objects
        if all(end - start < _SHORT_S for start, end in thing.visible)
    ]
    return [Question(sample, scene) for one in alone for sample in make_samples(one)]


def by_kind(answers: Sequence[Asked]) -> list[Row]:
    """Returns the figures by what is asked, and by how long the event lasts."""
    kinds = {one.scored.question.sample.kind: [] for one in answers}
    for one in answers:
        kinds[one.scored.question.sample.kind].append(one)
    there = [one for one in answers if one.scored.question.sample.mentions]
    short = [one for one in there if lasting(one.scored.question) < _SHORT_S]
    kinds |= {f"event < {_SHORT_S:g} s": short}
    kinds |= {f"event >= {_SHORT_S:g} s": [one for one in there if one not in short]}
    return [row(name, some) for name, some in kinds.items()]


def by_order(answers: dict[Path, list[Asked]]) -> list[Row]:
    """Returns what the first question about a video takes, what the others do, and one that is repeated."""
    first, later, again = ([some[0] for some in answers.values()] for _ in range(3))
    later = [one for some in answers.values() for one in some[1:-1]]
    again = [some[-1] for some in answers.values()]
    names = ("first about a video", "later", "the last of them again")
    return [cost(name, some) for name, some in zip(names, (first, later, again), strict=True)]


def memory() -> list[Row]:
    """Returns the peak memory of asking about 10 minutes, an hour and 3 hours, each in its own process."""
    rows = []
    for seconds in (600, 3600, 10800):
        path, _ = videos(1, seconds)[0]
        flags_ = [f"--ask={path}", f"--model_path={_MODEL.value}", f"--folder={_FOLDER.value}"]
        with tempfile.TemporaryDirectory() as cache:
            done = subprocess.run(
                [sys.executable, "-m", "experiments.bench.long_videos", *flags_],
                env=os.environ | {"O3JAX_CACHE": cache},
                capture_output=True,
                text=True,
                check=True,
            )
        spent, peak = map(float, done.stdout.split()[-2:])
        rows.append({"length s": seconds, "peak MB": peak, "s": spent})
    return rows


def main(argv: Sequence[str]) -> None:
    shell.use_compilation_cache()
    import o3jax

    model = o3jax.load(_MODEL.value)
    if _ASK.value:
        begun = time.monotonic()
        model.answer(_ASK.value, "When is the red circle visible?", verify="cheap")
        peak = peak_bytes() / 1e6
        print(time.monotonic() - begun, peak)
        return
    made = videos(_VIDEOS.value, _SECONDS.value)
    ask(model, made[0][0], made[0][1][0])  # programs are compiled
    with tempfile.TemporaryDirectory() as cache:
        os.environ["O3JAX_CACHE"] = cache
        searched = {path: [ask(model, path, one) for one in [*asked, asked[-1]]] for path, asked in made}
        short = [ask(model, path, one) for path, asked in made for one in about_short_events(asked)]
    every = [one for some in searched.values() for one in some[:-1]]
    tables = {
        "what it is worth": [row("searched", every), *by_kind(every)],
        "what it takes": [cost("searched", every), *by_order(searched)],
    }
    if short:
        tables["what it is worth"].append(row(f"every event < {_SHORT_S:g} s", short))
    if few := made[: _UNIFORM.value]:
        uniform = [ask(model, path, one, uniform=True) for path, asked in few for one in asked]
        some = [one for path, _ in few for one in searched[path][:-1]]
        for name, figures in (("what it is worth", row), ("what it takes", cost)):
            tables[name].append(figures(f"searched, {len(few)} videos", some))
            tables[name].append(figures("2 frames per second", uniform))
    if _MEMORY.value:
        tables["memory"] = memory()
    for title, rows in tables.items():
        print(f"\n{title}\n\n{table(rows)}")
    if _OUT.value:
        lines = [
            {**one.scored.to_json(), "search": one.search.to_dict(), "s": one.wall_s, "cpu_s": one.cpu_s}
            for one in [*every, *short]
        ]
        write_json(_OUT.value, {"tables": tables, "searched": lines})


if __name__ == "__main__":
    shell.run(main)

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
import resource
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
from experiments.cli import shell
from experiments.evaluation.scores import Question, Scored, score
from o3jax.files import write_json

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


def ask(model: Any, path: Path, question: Question, uniform: bool) -> tuple[Scored, Any, float]:
    """Returns what an answer is worth, how it was searched, and the seconds it took."""
    from o3jax.inference import search
    from o3jax.inference.further import search_on

    begun = time.monotonic()
    if uniform:
        search.coarse_features, kept = every_half_second, search.coarse_features
        search.STEPS_S, steps = (), search.STEPS_S
    try:
        request, clip = model.request(path, question.sample.question, budget=1.0 if uniform else None)
        respond = functools.partial(model.respond, max_new_tokens=256)
        response, request, _ = search_on(
            respond, request, clip, respond([request])[0], question.sample.language
        )
    finally:
        if uniform:
            search.coarse_features, search.STEPS_S = kept, steps
    spent = time.monotonic() - begun
    found = response.search
    if uniform:
        whole, took = _reading[path]
        found = dataclasses.replace(found, passes=(*whole.passes, found.passes[-1]))
        spent += took if spent < took else 0.0  # it was read for an earlier question, and is read for each
    return score(question, response.text, response.estimates), found, spent


_reading: dict[Path, tuple[Any, float]] = {}  # features of a video read uniformly, and the seconds it took


def every_half_second(model: Any, video: Path, *, progress: Any = None) -> Any:
    """Returns the features of a video read uniformly, decoded from start to end."""
    from o3jax.inference.coarse import look
    from o3jax.notes import Note

    if video not in _reading:
        begun = time.monotonic()
        with model.open_sparse(video) as reader:
            reader.forward = Note("key frames", 1)
            times = np.arange(0, reader.duration_s, _UNIFORM_S)
            found = look(model, reader, times, "uniform", _UNIFORM_S)
        _reading[video] = found, time.monotonic() - begun
    # What it cost is told beside the budget, which is for reading closely then.
    found, _ = _reading[video]
    return dataclasses.replace(found, passes=(), forward=True)


def row(name: str, answers: Sequence[tuple[Scored, Any, float]]) -> Row:
    """Returns the figures of one way of reading."""
    scored = [one for one, _, _ in answers]
    there = [one for one in scored if one.question.sample.mentions]
    frames = answers[0][1].frames
    decoded = [100 * found.decoded / frames for _, found, _ in answers]
    encoded = [100 * found.encoded / frames for _, found, _ in answers]
    short = [s for s in there if lasting(s) < _SHORT_S]
    return {
        "reading": name,
        "questions": len(answers),
        "accuracy": float(np.mean([one.correct for one in scored])),
        "of what appears": float(np.mean([one.correct for one in there])),
        "m_tIoU text": float(np.mean([one.t_iou for one in there])),
        "m_tIoU decoder": float(np.mean([one.decoded.t_iou if one.decoded else 0.0 for one in there])),
        "m_vIoU text": float(np.mean([one.v_iou for one in there])),
        f"events < {_SHORT_S:g} s": len(short),
        "their accuracy": float(np.mean([one.correct for one in short])) if short else "",
        "their m_tIoU": float(np.mean([one.t_iou for one in short])) if short else "",
        "decoded %": float(np.mean(decoded)),
        "at most %": max(decoded),
        "encoded %": float(np.mean(encoded)),
        "s a question": float(np.mean([spent for _, _, spent in answers])),
    }


def lasting(one: Scored) -> float:
    """Returns the seconds that the event which answers lasts."""
    moment = one.question.sample.mentions[0].time_s
    return min(b - a for a, b in one.question.target.visible if a <= moment <= b)


def by_order(answers: dict[str, list[tuple[Scored, Any, float]]]) -> list[Row]:
    """Returns what the first question about a video takes, and what the others do."""
    first = [asked[0] for asked in answers.values()]
    later = [one for asked in answers.values() for one in asked[1:]]
    return [
        {
            "question": name,
            "s": [spent for _, _, spent in some],
            "frames decoded": [float(found.decoded) for _, found, _ in some],
            "of them from afar": [
                float(sum(p.decoded for p in found.passes if p.name in ("coarse", "cues")))
                for _, found, _ in some
            ],
        }
        for name, some in (("first about a video", first), ("later", later))
    ]


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
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(time.monotonic() - begun, peak)
        return
    made = videos(_VIDEOS.value, _SECONDS.value)
    ask(model, *_one(made), uniform=False)  # programs are compiled
    tables: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["O3JAX_CACHE"] = cache
        searched = {path.name: [ask(model, path, one, False) for one in asked] for path, asked in made}
    tables["reading"] = [row("searched", [one for some in searched.values() for one in some])]
    tables["the second question"] = by_order(searched)
    if _UNIFORM.value:
        few = made[: _UNIFORM.value]
        uniform = [ask(model, path, one, True) for path, asked in few for one in asked]
        some = [one for path, _ in few for one in searched[path.name]]
        tables["reading"] += [
            row(f"searched, {len(few)} videos", some),
            row("2 frames per second", uniform),
        ]
    if _MEMORY.value:
        tables["memory"] = memory()
    for title, rows in tables.items():
        print(f"\n{title}\n\n{table(rows)}")
    if _OUT.value:
        lines = [
            {**one.to_json(), "search": found.to_dict(), "s": spent}
            for some in searched.values()
            for one, found, spent in some
        ]
        write_json(_OUT.value, {"tables": tables, "searched": lines})


def _one(made: Sequence[tuple[Path, list[Question]]]) -> tuple[Path, Question]:
    return made[0][0], made[0][1][0]


if __name__ == "__main__":
    shell.run(main)

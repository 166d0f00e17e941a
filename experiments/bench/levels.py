"""`python -m experiments.bench.levels --level=3`: what of a level is hard for a model.

Questions of the kinds that level 1 has are asked about the clips as they are, about the right part of each
alone, and about that part of clips in which one thing, and then all, is as at level 1.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_pipelines.synthetic import scenes
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.questions import make_samples
from experiments.bench.tables import Row, table
from experiments.cli import shell
from experiments.evaluation.figures import metrics
from experiments.evaluation.scores import Question, Scored, score
from experiments.evaluation.synthetic import in_batches
from o3jax.api import Model, load

_LEVEL = flags.DEFINE_enum("level", "3", ["2", "3"], "Of the synthetic world.")
_CLIPS = flags.DEFINE_integer("clips", 20, "Two questions about each, in every row.", lower_bound=1)
_MODEL = flags.DEFINE_string("model_path", "o3-tiny", "A model folder, or the embedded o3-tiny.")

_MARGIN_S = 1.0  # that the right part shows before and after what answers


def easier(level: int) -> dict[str, scenes.Level]:
    """Returns the level with one thing as at level 1, by name, and with all of them."""
    spec, one = scenes.LEVELS[level], scenes.LEVELS[1]
    share = spec.size[0] / one.size[0]
    changes = {
        "no object shares a colour": {"distractors": False},
        "objects as large as level 1's": {"side": (one.side[0] * share, one.side[1] * share)},
        "no noise, less compression": {"noise": one.noise, "crf": one.crf},
        "nothing drifts, grows, hides or comes back": {
            "drift": one.drift,
            "growth": one.growth,
            "occluder": one.occluder,
            "reappear": one.reappear,
        },
    }
    changes["all of these"] = {name: value for some in changes.values() for name, value in some.items()}
    return {name: dataclasses.replace(spec, **some) for name, some in changes.items()}


def asked(model: Model, level: int, spec: scenes.Level, clips: int, part: bool, folder: Path) -> list[Scored]:
    """Returns what a model answers about unseen clips of a level, changed to `spec`.

    Args:
        part: whether it is shown the part of the clip alone in which the answer is.
    """
    kept, scenes.LEVELS[level] = scenes.LEVELS[level], spec
    respond, found = in_batches(model, 1, 128), []
    try:
        for index in range(clips):
            scene = scenes.make_scene(scenes.scene_seed("test", index), level)
            path = folder / f"{scene.id}.mp4"
            write_video(scene, path)
            for sample in make_samples(scene):
                if sample.kind not in scenes.LEVELS[1].kinds:
                    continue
                shown = {}
                if part:
                    start, end = sample.intervals[0]
                    shown["start_s"] = max(start - _MARGIN_S, 0.0)
                    shown["end_s"] = min(end + _MARGIN_S, scene.duration)
                read = model.request(path, sample.question, **shown)
                ((response, *_),) = model.respond_searching(respond, [read])
                found.append(score(Question(sample, scene), response.text, response.estimates))
    finally:
        scenes.LEVELS[level] = kept
    return found


def row(name: str, answers: Sequence[Scored]) -> Row:
    """Returns the figures of some answers."""
    found = metrics(answers)
    decoder = found.get("decoder", {})
    return {
        "": name,
        "N": found["N"],
        "accuracy": found["accuracy"],
        "right object": decoder["right_object"]["N"] / found["N"] if decoder else 0.0,
        "m_tIoU text": found["m_tIoU"],
        "decoder": decoder.get("m_tIoU", 0.0),
        "m_vIoU text": found["m_vIoU"],
        "decoder's": decoder.get("m_vIoU", 0.0),
    }


def main(argv: Sequence[str]) -> None:
    shell.use_compilation_cache()
    model, level = load(_MODEL.value), int(_LEVEL.value)
    spec = scenes.LEVELS[level]
    runs = {"as it is": (spec, False), "the right part alone": (spec, True)}
    runs |= {f"and {name}": (some, True) for name, some in easier(level).items()}
    rows = []
    for name, (some, part) in runs.items():
        with tempfile.TemporaryDirectory(prefix="o3jax-") as folder:
            rows.append(row(name, asked(model, level, some, _CLIPS.value, part, Path(folder))))
        print(f"\n{table(rows)}", flush=True)


if __name__ == "__main__":
    shell.run(main)

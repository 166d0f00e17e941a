"""The synthetic world as the published files have it: every task and source, in their tree and spelling.

A small stand-in for data of many gigabytes, to try a pipeline with; and the article's format with
candidates whose order is known.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from data_pipelines.formats import published, stgr
from data_pipelines.formats.article import to_article
from data_pipelines.formats.fields import save_records
from data_pipelines.formats.sample import Candidate, KeyFrame, Sample
from data_pipelines.synthetic.datasets import claim_folder, make_dataset, write_key_frames, write_video
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import Scene, make_scene, scene_seed
from o3jax.errors import UserError
from o3jax.grounding import Grounding, Interval
from o3jax.prompts import coords, grammar
from o3jax.tasks import FREE_FORM, MCQ, SPATIO_TEMPORAL, TEMPORAL, TEMPORAL_MCQ, VISUAL

_STR = ("plm_rdcap", "qvhighlight", "activitynet", "coin", "didemo", "queryd")
_TVG = ("tacos", "internvid_vtime", "QVhighlight", "ActivityNet", "didemo", "queryd", "hirest_grounding")
_BOTH, _SFT, _RL = ("sft", "rl"), ("sft",), ("rl",)
# Source, task, the files that have it, and the folder inside the source's own that its media lie in.
GROUPS = (
    *((f"STR_{name}", SPATIO_TEMPORAL, _BOTH, "" if name == "plm_rdcap" else name) for name in _STR),
    *((f"TVG_{name}", TEMPORAL, _SFT, "GroundedVLLM") for name in _TVG),
    ("TreeVGR", VISUAL, _SFT, "images"),
    ("videor1_mcq", MCQ, _BOTH, "LLaVA-Video-178K"),
    ("videor1_free_from", FREE_FORM, _BOTH, "STAR"),  # the published spelling
    ("videoespresso_train_video", SPATIO_TEMPORAL, _RL, ""),
    ("timerft", TEMPORAL, _RL, ""),
    ("TVG_qvhighlight", TEMPORAL_MCQ, _RL, "videomind_data"),
    ("TVG_activitynet", TEMPORAL_MCQ, _RL, "videomind_data"),
    ("gqa", VISUAL, _RL, ""),
)
_KINDS = {
    SPATIO_TEMPORAL: "where",
    TEMPORAL: "interval",
    TEMPORAL_MCQ: "mcq",
    VISUAL: "where",
    MCQ: "mcq",
    FREE_FORM: "attribute",
}
_SHORTEST = 0.2  # seconds that must be left of an interval which is moved to the end of its video
_PICTURES_LEVEL = 3  # whose frames are wider than high


def make_published(
    out_dir: str | os.PathLike,
    split: str,
    count: int,
    level: int = 1,
    seed: int = 0,
    on_clip: Callable[[], None] = lambda: None,
) -> dict[published.Stage, list[Sample]]:
    """Returns the samples of `json_data/STGR-SFT.json` and `STGR-RL.json`, which it writes with their media.

    Args:
        count: number of videos and images, at least one for each of `GROUPS`, taken in turn; one question
            each.

    Raises:
        UserError: if an argument is out of range or the folder holds something else.
    """
    if count < len(GROUPS):
        raise UserError(f"count must be at least {len(GROUPS)}, one for each published source, not {count}")
    make_scene(scene_seed(split, 0, seed), level)  # refuses wrong arguments before a folder exists
    out = Path(out_dir)
    made_from = {"world": "published", "split": split, "count": count, "level": level, "seed": seed}
    claim_folder(out, made_from, ("json_data", "videos"))
    samples: dict[published.Stage, list[Sample]] = {"sft": [], "rl": []}
    for index in range(count):
        source, task, stages, folder = GROUPS[index % len(GROUPS)]
        scene = make_scene(scene_seed(split, index, seed), _PICTURES_LEVEL if task == VISUAL else level)
        sample = _sample(scene, source, task, folder)
        _write_media(out, scene, sample)
        for stage in stages:
            samples[stage].append(sample if stage == "sft" else dataclasses.replace(sample, reasoning=""))
        on_clip()
    for stage, name in (("sft", "STGR-SFT.json"), ("rl", "STGR-RL.json")):
        save_records(
            out / "json_data" / name, [stgr.to_published(sample, stage) for sample in samples[stage]]
        )
    return samples


def _sample(scene: Scene, source: str, task: str, folder: str) -> Sample:
    """Returns the question that a published source asks about a scene."""
    (asked,) = make_samples(dataclasses.replace(scene, kinds=(_KINDS[task],)), "en")
    roots = published.roots(source, task)
    base = roots.media + (folder and folder + "/") + scene.id
    sample = dataclasses.replace(
        asked,
        id=f"{source}-{scene.id}",
        source=source,
        task=task,
        kind="",
        duration=None,
        video_path=f"{base}.mp4",
        mentions=(),
        key_frames=(),
        intervals=(),
    )
    if task == VISUAL:
        return _about_an_image(sample, scene, asked.mentions[0], f"{base}.jpg")
    if task == SPATIO_TEMPORAL:
        keys = [
            KeyFrame(k.index, k.time, f"{roots.key_frames}{folder and folder + '/'}{scene.id}_{k.index}.jpg")
            for k in asked.key_frames
        ]
        # The published answers of this task are words; where the thing is stands in the reasoning.
        return dataclasses.replace(
            sample, answer=f"the {asked.mentions[0].object}", mentions=asked.mentions, key_frames=tuple(keys)
        )
    if task == TEMPORAL_MCQ:
        interval = tuple(round(t, 1) for t in asked.intervals[0])
        answer = f"{grammar.render_interval(*interval)}.\nCorrect Option: {asked.answer}"
        return dataclasses.replace(sample, answer=answer, intervals=(interval,))
    # Only the inventory of the reasoning: these tasks have no evidence beside the answer.
    sample = dataclasses.replace(sample, reasoning=asked.reasoning.partition("<obj>")[0].strip())
    if task == TEMPORAL:
        return dataclasses.replace(
            sample, intervals=grammar.parse(sample.answer, coords.NORMALISED).intervals
        )
    return sample


def _about_an_image(sample: Sample, scene: Scene, mention: Grounding, path: str) -> Sample:
    """Returns the question where a thing is in one frame, its box in whole pixels of that."""
    height, width = scene.size
    pixels = coords.convert(mention.boxes[0], coords.NORMALISED, coords.pixels(width, height))
    box = coords.convert(pixels, coords.Space(width, height), coords.FINE)
    claim = f"<obj>{mention.object}</obj><box>{coords.format_box(box, coords.FINE)}</box>"
    return dataclasses.replace(
        sample,
        question=f"Where is the {mention.object}?",
        answer=claim,
        reasoning=f"The {claim} can be seen.",
        video_path=None,
        image_path=path,
        image_size=(width, height),
        mentions=(Grounding(mention.object, boxes=grammar.parse(claim, coords.NORMALISED).claims[0].boxes),),
    )


def _write_media(out: Path, scene: Scene, sample: Sample) -> None:
    """Writes what a sample names; a file that is there already was made from the same scene."""
    paths = [sample.video_path or sample.image_path, *(frame.path for frame in sample.key_frames)]
    for path in paths:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
    write_key_frames(out, scene, sample)
    if sample.image_path is not None:
        (asked,) = make_samples(dataclasses.replace(scene, kinds=("where",)), "en")
        picture = scene.render([asked.mentions[0].time_s])[0]
        Image.fromarray(picture).save(out / sample.image_path, quality=95)
    elif not (out / sample.video_path).exists():
        write_video(scene, out / sample.video_path)


def make_article(
    out_dir: str | os.PathLike,
    split: str,
    count: int,
    level: int = 1,
    seed: int = 0,
    on_clip: Callable[[], None] = lambda: None,
) -> list[Sample]:
    """Returns the samples of a data set in the article's format, which it writes.

    The folder holds `videos/`, `annotations.json` for the cold start and `annotations_rl.json`, whose
    records have candidates.

    Args:
        count: number of clips, each with two questions.

    Raises:
        UserError: if an argument is out of range or the folder holds something else.
    """
    samples = make_dataset(out_dir, split, count, level, seed, on_clip)
    (Path(out_dir) / "stgr.json").unlink()
    path = Path(out_dir) / "annotations_rl.json"
    save_records(path, [to_article(with_candidates(sample)) for sample in samples])
    return samples


def with_candidates(sample: Sample) -> Sample:
    """Returns the sample with three candidates in an order of its own: the truth, 1 s off and 3 s off.

    Their preferences are 2, 1 and 0. An interval is cut off at the end of the video; a time is moved
    later, or earlier where that would leave the video.
    """
    candidates = [_moved(sample, seconds, 2.0 - place) for place, seconds in enumerate((0.0, 1.0, 3.0))]
    random.Random(sample.id).shuffle(candidates)
    return dataclasses.replace(sample, candidates=tuple(candidates))


def _moved(sample: Sample, seconds: float, preference: float) -> Candidate:
    def move(time: float) -> float:
        return round(time + seconds if time + seconds <= sample.duration else time - seconds, 2)

    def stretch(interval: Interval) -> Interval:
        start, end = interval
        if start + seconds <= sample.duration - _SHORTEST:
            return round(start + seconds, 2), round(min(end + seconds, sample.duration), 2)
        return round(max(start - seconds, 0), 2), round(end - seconds, 2)

    answer = sample.answer
    if seconds and sample.task == TEMPORAL:
        said = grammar.parse(answer, coords.NORMALISED)
        if said.intervals:
            answer = grammar.render_interval(*stretch(said.intervals[0]), sample.language)
        else:
            (time,) = said.times
            answer = answer.replace(grammar.render_time(time), grammar.render_time(move(time)))
    mentions = tuple(dataclasses.replace(m, time_s=move(m.time_s)) for m in sample.mentions)
    claims = [grammar.render_claim(m.object, m.boxes, m.time_s, coords.NORMALISED) for m in mentions]
    return Candidate(
        answer, preference, "; ".join(claims), mentions, tuple(stretch(i) for i in sample.intervals)
    )

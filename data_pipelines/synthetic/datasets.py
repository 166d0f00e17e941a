"""The synthetic world as files: mp4s, and a folder of our own format."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.formats import stgr
from data_pipelines.formats.article import to_article
from data_pipelines.formats.fields import save_records
from data_pipelines.formats.sample import Sample
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import FPS, LEVELS, Scene, make_scene, scene_seed
from o3jax.errors import UserError
from o3jax.files import PART, read_json, whole_file, write_json


def write_video(scene: Scene, path: str | os.PathLike, crf: int | None = None, fps: int = FPS) -> None:
    """Writes the whole clip as an H.264 mp4 (yuv420p); the same bytes for the same scene.

    The file appears under its name only when it is complete.

    Args:
        crf: strength of the compression, 0-51; by default the level's.
        fps: another camera's frames per second, of the same events.
    """
    crf = LEVELS[scene.level].crf if crf is None else crf
    with whole_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = scene.size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "fast"}
        stream.gop_size = LEVELS[scene.level].gop_s * fps
        stream.thread_count = 1  # the number of threads would change the bytes
        count = round(scene.duration * fps)
        for begin in range(0, count, 10 * fps):
            numbers = np.arange(begin, min(begin + 10 * fps, count))
            still = scene.is_still(begin / fps, (numbers[-1] + 1) / fps)
            frames = map(_frame, scene.render((numbers[:1] if still else numbers) / fps))
            if still:  # what was converted once serves again
                frames = itertools.repeat(next(frames))
            for number, frame in zip(numbers.tolist(), frames, strict=False):
                frame.pts = number
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _frame(picture: UInt8[np.ndarray, "H W 3"]) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")


def make_dataset(
    out_dir: str | os.PathLike,
    split: str,
    count: int,
    level: int = 1,
    seed: int = 0,
    on_clip: Callable[[], None] = lambda: None,
) -> list[Sample]:
    """Returns the samples of the data set that it writes; an interrupted call can be repeated.

    The folder holds `videos/`, the key frames of the evidence in `kfs/`, `stgr.json` (published record
    format), `annotations.json` (the article's) and `dataset.json` (what the set was made from).

    Args:
        count: number of clips; each has as many questions as the level asks.
        on_clip: called after every clip.

    Raises:
        UserError: if an argument is out of range or the folder holds something else.
    """
    if count < 1:
        raise UserError(f"count must be at least 1, not {count}")
    make_scene(scene_seed(split, 0, seed), level)  # refuses wrong arguments before a folder exists
    out = Path(out_dir)
    claim_folder(out, {"world": "synthetic", "split": split, "count": count, "level": level, "seed": seed})
    samples = []
    for index in range(count):
        scene = make_scene(scene_seed(split, index, seed), level)
        asked, video = make_samples(scene), out / "videos" / f"{scene.id}.mp4"
        if not video.exists():
            for sample in asked:
                write_key_frames(out, scene, sample)
            write_video(scene, video)
        samples += asked
        on_clip()
    save_records(out / "stgr.json", [stgr.to_stgr(sample) for sample in samples])
    save_records(out / "annotations.json", [to_article(sample) for sample in samples])
    return samples


def claim_folder(
    out: Path, made_from: dict[str, str | int], inside: Sequence[str] = ("videos", "kfs")
) -> None:
    """Creates the folder with those inside it, or checks that it holds this very data set or nothing."""
    marker = out / "dataset.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made a folder ({error.strerror}); choose another one") from error
    if marker.exists():
        found = read_json(marker)
        if found != made_from:
            raise UserError(f"{out} holds another data set ({found}); remove it or choose another folder")
    elif any(not path.name.endswith(PART) for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no synthetic data set; choose another folder")
    else:
        write_json(marker, made_from)
    for folder in inside:
        (out / folder).mkdir(exist_ok=True)


def write_key_frames(folder: Path, scene: Scene, sample: Sample) -> None:
    """Writes the sample's key frames, whose paths are relative to the folder, from the scene."""
    for key_frame in sample.key_frames:
        Image.fromarray(scene.render([key_frame.time])[0]).save(folder / key_frame.path, quality=95)

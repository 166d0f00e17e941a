"""A moment as a picture, and as a short annotated video that says what it was cut from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from o3jax.files import whole_file, write_json
from o3jax.report import annotate
from o3jax.report.answer import Evidence
from o3jax.report.moments import Moment
from o3jax.video import OpenVideo, Wanted, read_video

MARGIN_S = 2.0  # shown before and after a moment
MOST_S = 120.0  # of a clip
_SIDE = 360  # of a thumbnail's longest side, pixels
_FPS = 25.0


def write_thumbnail(video: str | os.PathLike[str], moment: Moment, path: str | os.PathLike[str]) -> None:
    """Writes the frame that shows a moment best as a JPEG, its box drawn in.

    Raises:
        UserError: if the frame cannot be read, or the picture cannot be written.
    """
    key = moment.key
    time_s = key.time_s if key else (moment.start_s + moment.end_s) / 2
    picture = Image.fromarray(read_video(video, times_s=[max(0.0, time_s)]).frames[0])
    scale = _SIDE / max(picture.size)
    picture = picture.resize(tuple(max(1, round(side * scale)) for side in picture.size))
    if key and key.box:
        draw = ImageDraw.Draw(picture)
        corner = annotate.draw_box(draw, key.box, picture.size, annotate.COLORS[0], 3)[:2]
        annotate.draw_label(draw, corner, picture.width, annotate.COLORS[0], moment.label, 14)
    Path(path).parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary:
        picture.save(temporary, "JPEG", quality=85)


def write_clip(
    video: str | os.PathLike[str], moment: Moment, about: dict[str, Any], path: str | os.PathLike[str]
) -> None:
    """Writes a moment and what is around it as an mp4 with its boxes drawn, and a JSON file beside it.

    The JSON holds what `about` says and which seconds of the video the clip shows.

    Raises:
        UserError: if the video cannot be read there, or the files cannot be written.
    """
    start = max(0.0, moment.start_s - MARGIN_S)
    end = min(moment.end_s + MARGIN_S, start + MOST_S)
    shown = [
        Evidence(moment.label, e.time_s, boxes=e.boxes, confidence=e.confidence, frame=0)
        for e in moment.evidence
    ]
    tracks, unit = annotate.tracks(shown), 14
    with OpenVideo(video, measure=False) as file:
        info = file.info()
        width, height = annotate.display_size(info.width, info.height, smallest=0)
        clip = file.read(Wanted(_FPS, start_s=start, end_s=end, size=(height, width)))[0]
    Path(path).parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary, annotate.Mp4Writer(temporary, _FPS, width, height) as writer:
        for time_s, frame in zip(clip.times_s.tolist(), clip.frames, strict=True):
            picture = Image.fromarray(frame)
            draw = ImageDraw.Draw(picture)
            for track in tracks:
                if box := annotate.box_at(track, time_s):
                    corner = annotate.draw_box(draw, box, picture.size, track.color, 3)[:2]
                    annotate.draw_label(draw, corner, width, track.color, track.object, unit)
            writer.write(np.asarray(picture))
    shows = {"start_s": float(clip.times_s[0]), "end_s": float(clip.times_s[-1] + 1 / _FPS), "fps": _FPS}
    write_json(Path(path).with_suffix(".json"), about | {"clip": shows}, indent=1)

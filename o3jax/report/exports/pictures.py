"""Formats of pictures with boxes, COCO and YOLO: the frames that the evidence shows are saved beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from PIL import Image

from o3jax.files import write_json
from o3jax.grounding import Box
from o3jax.report.exports.common import Run, boxes, frame_at, labels, named, pixels
from o3jax.report.moments import VideoMoments
from o3jax.video import read_video

_AT_ONCE = 16  # frames of a video that are read together


def _pictures(
    videos: Sequence[VideoMoments], folder: Path, run: Run
) -> Iterator[tuple[int, str, VideoMoments, float, list[tuple[str, Box, float]]]]:
    """Yields (number of the video, file, video, seconds, [(label, box, confidence)]); the file is written."""
    folder.mkdir(parents=True)
    for number, (name, video) in enumerate(named(videos), 1):
        shown: dict[int, tuple[float, list[tuple[str, Box, float]]]] = {}
        for moment in video.moments:
            for time_s, box in boxes(moment):
                here = shown.setdefault(frame_at(video, time_s), (time_s, []))[1]
                here.append((moment.label, box, moment.confidence))
        frames = sorted(shown)
        for begin in range(0, len(frames), _AT_ONCE):
            part = frames[begin : begin + _AT_ONCE]
            clip = run(read_video, video.file, times_s=[shown[n][0] for n in part])
            for n, picture in zip(part, clip.frames, strict=False):
                file = f"{name}_{n:06d}.jpg"
                Image.fromarray(picture).save(folder / file, quality=92)
                yield number, file, video, *shown[n]


def write_coco(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes annotations.json as COCO has it, with videos as its successors for video, and images/."""
    names = labels(videos)
    ids = {name: number for number, name in enumerate(names, 1)}
    images, annotations = [], []
    for number, file, video, time_s, found in _pictures(videos, folder / "images", run):
        image = {"id": len(images) + 1, "file_name": file, "width": video.size[0], "height": video.size[1]}
        images.append(image | {"video_id": number, "frame_id": frame_at(video, time_s), "time_s": time_s})
        for label, box, confidence in found:
            x1, y1, x2, y2 = pixels(video, box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": ids[label],
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    "iscrowd": 0,
                    "score": confidence,
                }
            )
    values = {
        "info": {"description": "o3jax"},
        "licenses": [],
        "videos": [{"id": n, "file_name": video.file} for n, video in enumerate(videos, 1)],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()],
    }
    write_json(folder / "annotations.json", values)


def write_yolo(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes data.yaml, images/ and labels/ as YOLO's trainers read them: class, centre, width and height."""
    names = labels(videos)
    (folder / "labels" / "train").mkdir(parents=True)
    for _, file, _, _, found in _pictures(videos, folder / "images" / "train", run):
        rows = []
        for label, box, _ in found:
            x1, y1, x2, y2 = (min(max(c, 0.0), 1.0) for c in box)
            numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            rows.append(" ".join([str(names.index(label)), *(f"{n:.6f}" for n in numbers)]))
        target = folder / "labels" / "train" / Path(file).with_suffix(".txt").name
        target.write_text("\n".join(rows) + "\n", encoding="utf-8")
    values = {"path": ".", "train": "images/train", "val": "images/train", "names": dict(enumerate(names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")

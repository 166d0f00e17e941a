"""Label Studio: tasks with predictions, and the labelling interface that they belong to."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from o3jax.files import write_json
from o3jax.report.exports.common import Run, boxes, frame_at, frames_of, labels, xml_text
from o3jax.report.moments import Moment, VideoMoments


def write_label_studio(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes tasks.json and config.xml: boxes as `VideoRectangle`, stretches of time as `TimelineLabels`."""
    tasks = [
        {
            "id": number,
            "data": {"video": video.file},
            "predictions": [{"model_version": "o3jax", "result": _results(video)}],
        }
        for number, video in enumerate(videos, 1)
    ]
    write_json(folder / "tasks.json", tasks, indent=1)
    view = ET.Element("View")
    ET.SubElement(view, "TimelineLabels", name="when", toName="video")
    ET.SubElement(view, "Video", name="video", value="$video", framerate=f"{_rate(videos):g}")
    ET.SubElement(view, "VideoRectangle", name="box", toName="video")
    ET.SubElement(view, "Labels", name="what", toName="video", allowEmpty="true")
    for label in labels(videos):
        for parent in (view[0], view[3]):
            ET.SubElement(parent, "Label", value=xml_text(label))
    ET.indent(view)
    ET.ElementTree(view).write(folder / "config.xml", encoding="utf-8")


def _rate(videos: Sequence[VideoMoments]) -> float:
    return videos[0].fps if videos else 25.0


def _results(video: VideoMoments) -> list[dict[str, Any]]:
    found = []
    for number, moment in enumerate(video.moments):
        # Frames are numbered from 1.
        first, last = frame_at(video, moment.start_s) + 1, frame_at(video, moment.end_s) + 1
        ranges = {"ranges": [{"start": first, "end": last}], "timelinelabels": [moment.label]}
        common = {"to_name": "video", "score": moment.confidence}
        found.append(
            {"id": f"t{number}", "type": "timelinelabels", "from_name": "when", "value": ranges, **common}
        )
        if sequence := _sequence(video, moment, first, last):
            count, seconds = frames_of(video), video.duration_s
            value = {"framesCount": count, "duration": seconds, "sequence": sequence}
            value["labels"] = [moment.label]
            found.append(
                {"id": f"b{number}", "type": "videorectangle", "from_name": "box", "value": value, **common}
            )
    return found


def _sequence(video: VideoMoments, moment: Moment, first: int, last: int) -> list[dict[str, Any]]:
    """Returns the key frames of a track: shown from its first to its last, in percent of the picture."""
    keys = {frame_at(video, time_s) + 1: box for time_s, box in boxes(moment)}
    if not keys:
        return []
    keys.setdefault(min(first, *keys), keys[min(keys)])
    keys.setdefault(max(last, *keys), keys[max(keys)])
    rows = []
    for frame in sorted(keys):
        x1, y1, x2, y2 = (100 * min(max(c, 0.0), 1.0) for c in keys[frame])
        place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
        shown = frame != max(keys)  # at the last the track ends
        rows.append({"frame": frame, "time": (frame - 1) / video.fps, "enabled": shown, **place})
    return rows

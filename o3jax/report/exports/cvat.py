"""CVAT's XML for video 1.1: one file for each video, a track for each moment that has boxes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from o3jax.report.annotate import COLORS
from o3jax.report.exports.common import Run, boxes, frame_at, frames_of, labels, named, pixels, xml_text
from o3jax.report.moments import Moment, VideoMoments


def write_cvat(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes NAME.xml for each video; a track begins with its moment and ends, outside, behind it."""
    for name, video in named(videos):
        root = ET.Element("annotations")
        _add(root, "version", "1.1")
        _meta(root, name, video)
        tracks = [moment for moment in video.moments if boxes(moment)]
        for number, moment in enumerate(tracks):
            _track(root, number, video, moment)
        ET.indent(root)
        ET.ElementTree(root).write(folder / f"{name}.xml", encoding="utf-8", xml_declaration=True)


def _meta(root: ET.Element, name: str, video: VideoMoments) -> None:
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    frames = frames_of(video)
    for tag, text in (
        *(("id", "0"), ("name", name), ("size", str(frames)), ("mode", "interpolation")),
        *(("overlap", "0"), ("bugtracker", ""), ("flipped", "False")),
        *(("start_frame", "0"), ("stop_frame", str(frames - 1)), ("frame_filter", "")),
    ):
        _add(task, tag, text)
    listed = ET.SubElement(task, "labels")
    for number, label in enumerate(labels([video])):
        one = ET.SubElement(listed, "label")
        _add(one, "name", label)
        _add(one, "color", COLORS[number % len(COLORS)])
        _add(one, "type", "rectangle")
        ET.SubElement(one, "attributes")
    size = ET.SubElement(task, "original_size")
    _add(size, "width", str(video.size[0]))
    _add(size, "height", str(video.size[1]))
    _add(task, "source", Path(video.file).name)


def _track(root: ET.Element, number: int, video: VideoMoments, moment: Moment) -> None:
    track = ET.SubElement(root, "track", id=str(number), label=xml_text(moment.label), source="auto")
    keys = {frame_at(video, time_s): pixels(video, box) for time_s, box in boxes(moment)}
    first, last = frame_at(video, moment.start_s), frame_at(video, moment.end_s)
    keys.setdefault(min(first, *keys), keys[min(keys)])
    keys.setdefault(max(last, *keys), keys[max(keys)])
    rows = [(frame, keys[frame], "0") for frame in sorted(keys)]
    if rows[-1][0] + 1 < frames_of(video):
        rows.append((rows[-1][0] + 1, rows[-1][1], "1"))
    for frame, box, outside in rows:
        values = {"frame": str(frame), "keyframe": "1", "outside": outside, "occluded": "0", "z_order": "0"}
        values |= dict(zip(("xtl", "ytl", "xbr", "ybr"), (f"{c:.2f}" for c in box), strict=True))
        ET.SubElement(track, "box", values)


def _add(parent: ET.Element, tag: str, text: str) -> None:
    ET.SubElement(parent, tag).text = xml_text(text)

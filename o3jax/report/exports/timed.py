"""Formats that say when: JSON, CSV, WebVTT, SRT, EDL (CMX 3600), and ActivityNet's."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from o3jax.files import write_json
from o3jax.report.exports.common import Run, boxes, frame_at, named, pixels
from o3jax.report.moments import Moment, VideoMoments

_COLUMNS = ("file", "kind", "label", "start_s", "end_s", "confidence", "needs_review")
_COLUMNS += ("time_s", "frame", "x1", "y1", "x2", "y2", "text")


def write_json_file(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes moments.json: for each video its chapters and its moments, with times and boxes."""
    listed = []
    for video in videos:
        some = {"moments": video.moments, "chapters": video.chapters}
        listed.append(
            dataclasses.asdict(video) | {name: [m.to_dict() for m in found] for name, found in some.items()}
        )
    write_json(folder / "moments.json", {"videos": listed}, indent=1)


def write_csv(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes moments.csv: a row for each box of each moment, one for a moment without boxes; pixels."""
    with (folder / "moments.csv").open("w", encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for video in videos:
            kinds = (("chapter", video.chapters), ("moment", video.moments))
            for kind, moment in ((kind, m) for kind, found in kinds for m in found):
                head = (video.file, kind, _line(moment.label), f"{moment.start_s:.3f}", f"{moment.end_s:.3f}")
                head += (f"{moment.confidence:.4f}", int(moment.needs_review))
                for time_s, box in boxes(moment) or [(None, None)]:
                    where = ("",) * 6
                    if box is not None:
                        where = (f"{time_s:.3f}", frame_at(video, time_s), *pixels(video, box))
                    rows.writerow((*head, *where, _line(moment.text)))


def write_vtt(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes NAME.vtt for each video, and NAME.chapters.vtt where it has chapters."""
    for name, video in named(videos):
        for end, found in (("vtt", video.moments), ("chapters.vtt", video.chapters)):
            if end == "vtt" or found:
                cues = [
                    f"{_clock(m.start_s, '.')} --> {_clock(_after(m), '.')}\n{_escaped(m.label)}\n"
                    for m in found
                ]
                _write(folder / f"{name}.{end}", "\n".join(["WEBVTT\n", *cues]))


def write_srt(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes NAME.srt for each video: its moments, or its chapters where it has none."""
    for name, video in named(videos):
        cues = [
            f"{number}\n{_clock(m.start_s, ',')} --> {_clock(_after(m), ',')}\n{_line(m.label)}\n"
            for number, m in enumerate(video.moments or video.chapters, 1)
        ]
        _write(folder / f"{name}.srt", "\n".join(cues))


def write_edl(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes NAME.edl for each video (CMX 3600): the moments one after the other, as an editor cuts them."""
    for name, video in named(videos):
        base = max(1, round(video.fps))  # of the time code, which does not drop frames
        lines, at = [f"TITLE: {_line(name)[:60]}", "FCM: NON-DROP FRAME", ""], 0
        for number, moment in enumerate(video.moments or video.chapters, 1):
            first = frame_at(video, moment.start_s)
            last = max(first + 1, frame_at(video, moment.end_s))
            codes = [_time_code(n, base) for n in (first, last, at, at + last - first)]
            at += last - first
            lines += [
                f"{number:03d}  AX       V     C        {' '.join(codes)}",
                f"* FROM CLIP NAME: {_line(Path(video.file).name)}",
                f"* COMMENT: {_line(moment.label)}",
                "",
            ]
        _write(folder / f"{name}.edl", "\n".join(lines))


def write_activitynet(videos: Sequence[VideoMoments], folder: Path, run: Run) -> None:
    """Writes activitynet.json, as ActivityNet's annotation files are made: a database of segments."""
    database = {
        name: {
            "duration": video.duration_s,
            "subset": "validation",
            "resolution": "{}x{}".format(*video.size),
            "url": video.file,
            "annotations": [
                {"segment": [m.start_s, m.end_s], "label": m.label, "score": m.confidence}
                for m in video.moments
            ],
        }
        for name, video in named(videos)
    }
    names = sorted({m.label for video in videos for m in video.moments})
    tree = [
        {"nodeName": name, "nodeId": number, "parentId": 0, "parentName": "Root"}
        for number, name in enumerate(names, 1)
    ]
    values = {"version": "VERSION 1.3", "taxonomy": tree, "database": database}
    write_json(folder / "activitynet.json", values, indent=1)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")


def _line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") or "-"


def _after(moment: Moment) -> float:
    """Returns the end of a cue, which must be later than its start."""
    return max(moment.end_s, moment.start_s + 0.001)


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    whole, rest = divmod(milliseconds, 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{rest:03d}"


def _time_code(frame: int, base: int) -> str:
    seconds, frames = divmod(frame, base)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frames:02d}"

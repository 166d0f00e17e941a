"""One self-contained HTML page: the video, the answer, and evidence that seeks the video on click."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from o3jax import notes
from o3jax.files import whole_file
from o3jax.metrics.boxes import box_iou
from o3jax.printing import fine_clock
from o3jax.report import annotate
from o3jax.report.answer import Answer, Evidence, format_time, segments
from o3jax.report.embedded import Embedded, embed
from o3jax.report.pages import page_template
from o3jax.verify import confidence
from o3jax.video import VideoError, probe, read_video

# What a page holds of an answer at most: a model may print anything, and as much as it likes.
MAX_CHARACTERS = 20_000  # of each text
MAX_EVIDENCE, MAX_PICTURED = 200, 50

_FRAME_SIDE, _CROP_SIDE = 480, 240  # longest sides of the evidence pictures, pixels
_CROP_MARGIN = 0.15  # of the box's size, on each side

# What the page says, by language.
_TEXTS = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))


def write_report(
    answer: Answer, video_path: str | os.PathLike[str], out_path: str | os.PathLike[str]
) -> None:
    """Writes the report page; it loads nothing from anywhere, and appears complete or not at all.

    The page holds the original file if that is H.264 in mp4 of at most 15 MiB, else a reduced copy of it, or
    what surrounds the evidence of a long video; and says which. Its labels are in the question's language.

    Raises:
        UserError: if the output folder does not exist, or the video cannot be read (`VideoError`).
    """
    info = probe(video_path)
    size, duration_s = (info.width, info.height), annotate.video_duration(answer, info)
    answer, left_out = _bounded(answer)
    texts, colors = _TEXTS[answer.language], annotate.object_colors(answer.evidence)
    with whole_file(out_path) as path:
        copy = embed(answer, video_path, size, duration_s, texts)
        page = page_template(Path(__file__).with_name("report.html")).render(
            answer=answer,
            t=texts,
            language=answer.language,
            label=confidence.LABELS[answer.language][answer.label],
            confidence=confidence.format_confidence(answer.confidence),
            percent=min(max(answer.confidence, 0.0), 1.0),
            kind=texts["words"].get(answer.confidence_kind, answer.confidence_kind),
            items=list(_evidence_items(answer, video_path, size, duration_s)),
            left_out=texts["more"].format(left_out) if left_out else "",
            reasoning=list(segments(answer.reasoning.strip())),
            colors=colors,
            lanes=_lanes(answer, colors),
            curve=_curve(answer, duration_s),
            gaps=copy.gaps,
            legend=_legend(answer, copy),
            text_label=annotate.TEXT_LABEL[answer.language],
            facts=list(_facts(answer, video_path, size, duration_s)),
            ticks=list(_ticks(duration_s)),
            place=lambda time_s: round(100 * min(max(time_s / duration_s, 0.0), 1.0), 3),
            video=base64.b64encode(copy.data).decode(),
            embedded=copy.said,
            pieces=copy.pieces,
            looked=[time_s for time_s, _ in answer.search.relevance] if answer.search else [],
            bands=answer.search.intervals if answer.search else answer.candidates,
            size=size,
            tracks=[dataclasses.asdict(track) for track in annotate.tracks(answer.evidence)],
            evidence=[
                {"object": e.object, "time_s": e.time_s, "box": e.box, "interval": e.interval}
                for e in answer.evidence
            ],
            hold=annotate.HOLD_S,
            join=annotate.JOIN_S,
            duration=duration_s,
            nonce=secrets.token_hex(16),
        )
        path.write_text(page, encoding="utf-8", errors="replace")


def _bounded(answer: Answer) -> tuple[Answer, int]:
    """Returns what of the answer a page can hold, and how many pieces of evidence that leaves out."""
    more = _TEXTS[answer.language]["cut"]

    def cut(text: str) -> str:
        over = len(text) - MAX_CHARACTERS
        return text if over <= 0 else text[:MAX_CHARACTERS] + more.format(over)

    def named(item: Evidence) -> Evidence:
        return dataclasses.replace(item, object=item.object[:200], text=item.text and named(item.text))

    kept = answer.evidence[:MAX_EVIDENCE]
    texts = {name: cut(getattr(answer, name)) for name in ("question", "text", "reasoning", "raw", "model")}
    bounded = dataclasses.replace(
        answer,
        **texts,
        evidence=tuple(named(item) for item in kept),
        intervals=answer.intervals[:MAX_EVIDENCE],
        candidates=answer.candidates[:MAX_EVIDENCE],
    )
    return bounded, len(answer.evidence) - len(kept)


def _evidence_items(
    answer: Answer, video_path: str | os.PathLike[str], size: tuple[int, int], duration_s: float
) -> Iterator[dict[str, Any]]:
    """Yields what the page shows of each piece of evidence, in the order of the answer."""
    texts, colors = _TEXTS[answer.language], annotate.object_colors(answer.evidence)
    fps = annotate.presented_fps(answer)
    for number, item in enumerate(answer.evidence):
        time = format_time(item.time_s, answer.language)
        shown_s = item.frame / fps  # the frame that the answer names; it may start just after the time
        frame_jpeg = crop_jpeg = None
        if not 0 <= shown_s <= duration_s + 1 / fps:  # a model may name a time that the video does not have
            frame = texts["outside"]
        else:
            frame = texts["frame"].format(item.frame)
            if number < MAX_PICTURED:
                try:
                    picture = Image.fromarray(read_video(video_path, times_s=[shown_s]).frames[0])
                    frame_jpeg, crop_jpeg = _pictures(picture, item, colors[item.object])
                except VideoError:  # past the end by less than a frame, or damaged there
                    frame = texts["outside" if shown_s >= duration_s else "lost"]
        yield {
            "name": item.object,
            "time": time,
            "seek": _within(shown_s, duration_s),
            "text_time": format_time(item.text.time_s, answer.language) if item.text else None,
            "text_seek": _within(item.text.frame / fps, duration_s) if item.text else None,
            "rows": list(_rows(item, time, frame, texts, duration_s)),
            "interval": item.interval,
            "visible": texts["visible"].format(*item.interval) if item.interval else None,
            "color": colors[item.object],
            "confidence": confidence.format_confidence(item.confidence),
            "label": confidence.label(item.confidence),
            "frame_jpeg": frame_jpeg,
            "crop_jpeg": crop_jpeg,
        }


def _within(time_s: float, duration_s: float) -> float:
    return round(min(max(time_s, 0.0), duration_s), 4)


def _rows(
    item: Evidence, time: str, frame: str, texts: dict[str, Any], duration_s: float
) -> Iterator[tuple[str, str, str]]:
    """Yields (line style, whose, what): each estimate of when and where, then how far they are apart.

    Where there are two, a line breaks between their parts and not inside one.
    """
    if not item.text:
        yield "", "", " · ".join([time, frame, *_corners(item)])
        return
    second = texts["second"]
    spread = "" if item.spread_s is None else f" ± {item.spread_s:.2f}"
    parts = [f"{item.time_s:.2f}{spread}{second}", frame, *_corners(item)]
    if item.interval:
        parts.append(texts["visible"].format(*item.interval))
    yield "solid", texts["decoder"], _unbroken(parts)
    inside = 0 <= item.text.time_s <= duration_s
    frame = texts["frame"].format(item.text.frame) if inside else texts["outside"]
    parts = [f"{item.text.time_s:.2f}{second}", frame, *_corners(item.text)]
    yield "dashed", texts["stated"], _unbroken(parts)
    parts = [texts["apart"].format(f"{abs(item.time_s - item.text.time_s):.2f}{second}")]
    if item.box and item.text.box:
        parts.append(texts["overlap"].format(box_iou(item.box, item.text.box)))
    yield "", "", _unbroken(parts)


def _unbroken(parts: Iterable[str]) -> str:
    return " · ".join(part.replace(" ", "\u00a0") for part in parts)


def _corners(where: Evidence) -> list[str]:
    return ["[{}, {}, {}, {}] px".format(*where.box_px)] if where.box_px else []


def _curve(answer: Answer, duration_s: float) -> dict[str, str] | None:
    """Returns the relevance over time as SVG paths, 1000 wide and 100 high, and in words."""
    points = annotate.relevance_curve(answer, duration_s)
    if not points:
        return None
    texts = _TEXTS[answer.language]
    xs = [f"{1000 * time_s / duration_s:.1f}" for time_s, _ in points]
    line = "M" + " L".join(f"{x},{100 - 100 * value:.1f}" for x, (_, value) in zip(xs, points, strict=True))
    peak_s, peak = max(points[1:-1], key=lambda point: point[1])
    words = [texts["curve"].format(peak, format_time(peak_s, answer.language))]
    if spans := [f"{start:.1f}–{end:.1f}{texts['second']}" for start, end in answer.candidates]:
        words.append(texts["searched"].format(", ".join(spans)))
    return {"line": line, "area": f"{line} V100 H{xs[0]} Z", "title": "; ".join(words)}


def _legend(answer: Answer, copy: Embedded) -> list[tuple[str, str]]:
    """Returns (mark, meaning) of the marks that not every page has."""
    compared = any(item.text for item in answer.evidence)
    shown = {
        "solid": compared,
        "dashed": compared,
        "bar": any(item.interval for item in answer.evidence),
        "area": bool(answer.relevance),
        "band": bool(answer.relevance and answer.candidates and not answer.search),
        "gap": bool(copy.gaps),
        "looked": bool(answer.search),
        "read": bool(answer.search and answer.search.intervals),
        "piece": bool(copy.pieces),
    }
    return [(mark, meaning) for mark, meaning in _TEXTS[answer.language]["legend"].items() if shown[mark]]


def _lanes(answer: Answer, names: Iterable[str]) -> dict[str, int]:
    """Returns the row of each object's visible intervals under the rail; nothing if there are none."""
    shown = {item.object for item in answer.evidence if item.interval}
    return {name: index for index, name in enumerate(name for name in names if name in shown)}


def _pictures(picture: Image.Image, item: Evidence, color: str) -> tuple[str, str | None]:
    """Returns base64 JPEGs: the frame with the boxes drawn in, and the part around the first."""
    crop = None
    if item.box is not None:
        ranges = []
        for low, high, side in zip(item.box[:2], item.box[2:], picture.size, strict=True):
            margin = _CROP_MARGIN * (high - low) * side + 1
            ranges.append((max(0, low * side - margin), min(side, high * side + margin)))
        (x1, x2), (y1, y2) = ranges
        crop = _jpeg(_fit(picture.crop((x1, y1, x2, y2)), _CROP_SIDE))
    picture = _fit(picture, _FRAME_SIDE)
    draw, line = ImageDraw.Draw(picture), _FRAME_SIDE // 96
    if item.box is not None:
        annotate.draw_box(draw, item.box, picture.size, color, line)
    if item.text and item.text.box is not None:
        annotate.draw_box(draw, item.text.box, picture.size, color, line - 1, dashed=True)
    return _jpeg(picture), crop


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """Returns the picture with its longest side at `side` pixels, enlarged or reduced."""
    scale = side / max(picture.size)
    return picture.resize(tuple(max(1, round(s * scale)) for s in picture.size), Image.Resampling.LANCZOS)


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()


def _facts(
    answer: Answer, video_path: str | os.PathLike[str], size: tuple[int, int], duration_s: float
) -> Iterator[tuple[str, str, bool]]:
    """Yields (name, value, whether it is a warning) of what was read and by which model."""
    texts, video = _TEXTS[answer.language], answer.video
    status = str(video.get("status", ""))
    said = [notes.text(note, answer.language) for note in video.get("notes", ())]
    values = (
        (os.path.basename(video.get("path") or video_path), False),
        ("{}×{}".format(*size), False),
        (format_time(duration_s, answer.language), False),
        (texts["at"].format(video["fps"]) if "fps" in video else "", False),
        (texts["words"].get(status, status), status != "complete"),
        ("\n".join(_searched(answer)), False),
        ("; ".join(said), True),
        (answer.model, False),
    )
    for name, (value, flagged) in zip(texts["facts"], values, strict=True):
        if value:
            yield name, value, flagged


def _searched(answer: Answer) -> Iterator[str]:
    """Yields what was read of a long video, pass by pass."""
    if answer.search is None:
        return
    texts = _TEXTS[answer.language]["passes"]
    yield answer.search.text(answer.language)
    for one in answer.search.passes:
        spans = ", ".join(f"{fine_clock(start)}–{fine_clock(end)}" for start, end in one.intervals)
        every = texts["every"].format(one.every_s) if one.every_s else ""
        yield texts["pass"].format(texts[one.name], one.read, one.decoded) + every + (spans and f": {spans}")


def _ticks(duration_s: float) -> Iterator[tuple[float, str]]:
    """Yields (seconds, text) for at most nine round times."""
    steps = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 86400)
    step = next((step for step in steps if duration_s / step <= 8), duration_s / 8)
    for index in range(int(duration_s / step) + 1):
        time = index * step
        minutes = int(time // 60)
        yield time, f"{minutes}:{int(time % 60):02d}" if duration_s >= 60 else f"{time:g}"

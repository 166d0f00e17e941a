"""One self-contained HTML page: the video, the answer, and evidence that seeks the video on click."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import jinja2
from PIL import Image, ImageDraw

from o3jax.report import annotate
from o3jax.report.answer import LABELS, Answer, Evidence, format_confidence, format_time, segments
from o3jax.video import VideoError, probe, read_video

VIDEO_BYTES = 15 * 2**20  # of the embedded video; base64 makes 20 MiB of it

_FRAME_SIDE, _CROP_SIDE = 480, 240  # longest sides of the evidence pictures, pixels
_CROP_MARGIN = 0.15  # of the box's size, on each side
# (least bits per second, longest side, frames per second) of a reduced copy; the first that fits is taken
_COPIES = ((500_000, 854, 25.0), (150_000, 480, 12.5), (0, 320, 5.0))

_TEXTS = {
    "en": {
        "question": "Question",
        "confidence": "Confidence",
        "review": "Low confidence: this answer needs review by a person.",
        "video": "Video",
        "unplayable": "This browser cannot play the embedded video; the pictures show the evidence.",
        "evidence": "Evidence",
        "no_evidence": "The answer names no evidence.",
        "frame_alt": "Frame at",
        "reasoning": "Reasoning",
        "decoded": "What was read",
        "raw": "Generated text",
        "second": " s",
        "frame": "frame {}",
        "original": "The embedded video is the original file.",
        "copy": "The embedded video is a reduced copy ({width}×{height}, {fps:g} frames per second, "
        "no sound), so that this page stays below 20 MB and plays in any browser.",
        "outside": "not in the video",
        "words": {},
        "facts": ("File", "Picture", "Length", "Frame numbers", "Status", "Notes", "Model"),
        "at": "at {:g} per second",
    },
    "zh": {
        "question": "问题",
        "confidence": "置信度",
        "review": "置信度低，需人工核实。",
        "video": "视频",
        "unplayable": "此浏览器无法播放内嵌视频，证据见图片。",
        "evidence": "证据",
        "no_evidence": "该回答没有给出证据。",
        "frame_alt": "画面",
        "reasoning": "推理过程",
        "decoded": "读取情况",
        "raw": "生成的原文",
        "second": "秒",
        "frame": "第{}帧",
        "original": "内嵌视频为原始文件。",
        "copy": "内嵌视频为压缩副本（{width}×{height}，每秒{fps:g}帧，无声音），"
        "使本页小于20 MB，可在任何浏览器中播放。",
        "outside": "不在视频中",
        "words": {"mean token probability": "词元平均概率", "complete": "完整", "partial": "不完整"},
        "facts": ("文件", "画面", "时长", "帧号", "状态", "说明", "模型"),
        "at": "按每秒{:g}帧计",
    },
}


def write_report(
    answer: Answer, video_path: str | os.PathLike[str], out_path: str | os.PathLike[str]
) -> None:
    """Writes the report page; it loads nothing from anywhere, and appears complete or not at all.

    The page holds the original file if that is H.264 in mp4 of at most 15 MiB, else a reduced copy of it,
    and says which. Its labels are in the question's language.

    Raises:
        UserError: if the output folder does not exist, or the video cannot be read (`VideoError`).
    """
    info = probe(video_path)
    size, duration_s = (info.width, info.height), annotate.video_duration(answer, info)
    texts = _TEXTS[answer.language]
    with annotate.whole_file(out_path) as path:
        video, embedded = _embedded_video(answer, video_path, size, duration_s)
        page = _template().render(
            answer=answer,
            t=texts,
            language=answer.language,
            label=LABELS[answer.language][answer.label],
            confidence=format_confidence(answer.confidence),
            percent=min(max(answer.confidence, 0.0), 1.0),
            kind=texts["words"].get(answer.confidence_kind, answer.confidence_kind),
            items=list(_evidence_items(answer, video_path, size, duration_s)),
            reasoning=list(segments(answer.reasoning.strip())),
            colors=annotate.object_colors(answer.evidence),
            facts=list(_facts(answer, video_path, size, duration_s)),
            ticks=list(_ticks(duration_s)),
            place=lambda time_s: round(100 * min(max(time_s / duration_s, 0.0), 1.0), 3),
            video=base64.b64encode(video).decode(),
            embedded=embedded,
            size=size,
            tracks=[dataclasses.asdict(track) for track in annotate.tracks(answer.evidence)],
            hold=annotate.HOLD_S,
            join=annotate.JOIN_S,
            duration=duration_s,
            nonce=secrets.token_hex(16),
        )
        path.write_text(page, encoding="utf-8", errors="replace")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html")


def _embedded_video(
    answer: Answer, video_path: str | os.PathLike[str], size: tuple[int, int], duration_s: float
) -> tuple[bytes, str]:
    """Returns the mp4 to embed, and the sentence that says what it is."""
    texts = _TEXTS[answer.language]
    whole = answer.video.get("status") != "partial"
    if whole and os.path.getsize(video_path) <= VIDEO_BYTES and _plays_as_it_is(video_path):
        return Path(video_path).read_bytes(), texts["original"]
    rate = min(2_000_000, 0.9 * VIDEO_BYTES * 8 / duration_s)
    side, fps = next((side, fps) for least, side, fps in _COPIES if rate >= least)
    width, height = annotate.display_size(*size, smallest=0, largest=min(side, max(size)))
    options = {"crf": "25", "maxrate": f"{rate:.0f}", "bufsize": f"{rate:.0f}"}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.mp4"
        with annotate.Mp4Writer(copy, fps, width, height, options) as writer:
            for _, frame in annotate.frames(video_path, fps, width, height):
                writer.write(frame)
        return copy.read_bytes(), texts["copy"].format(width=width, height=height, fps=fps)


def _plays_as_it_is(video_path: str | os.PathLike[str]) -> bool:
    """Whether a browser shows the file as the video reader does: H.264 in mp4, upright, starting at zero."""
    try:
        # The format is named, so that nothing but an mp4 is opened; the reader has checked the file before.
        with av.open(os.path.abspath(video_path), format="mp4") as container:
            stream = container.streams.video[0]
            return (
                stream.codec_context.name == "h264"
                and stream.codec_context.pix_fmt == "yuv420p"
                and not stream.start_time
                and next(container.decode(stream)).side_data.get("DISPLAYMATRIX") is None
                and stream.sample_aspect_ratio in (None, 0, 1)
            )
    except (av.FFmpegError, IndexError, StopIteration):
        return False


def _evidence_items(
    answer: Answer, video_path: str | os.PathLike[str], size: tuple[int, int], duration_s: float
) -> Iterator[dict[str, Any]]:
    """Yields what the page shows of each piece of evidence, in the order of the answer."""
    texts, colors = _TEXTS[answer.language], annotate.object_colors(answer.evidence)
    fps = annotate.presented_fps(answer)
    for item in answer.evidence:
        time = format_time(item.time_s, answer.language)
        shown_s = item.frame / fps  # the frame that the answer names; it may start just after the time
        frame_jpeg = crop_jpeg = None
        try:
            picture = Image.fromarray(read_video(video_path, times_s=[shown_s]).frames[0])
        except VideoError:  # a model may name a time that the video does not have
            where = [time, texts["outside"]]
        else:
            where = [time, texts["frame"].format(item.frame)]
            frame_jpeg, crop_jpeg = _pictures(picture, item, colors[item.object])
        if item.box_px:
            where.append("[{}, {}, {}, {}] px".format(*item.box_px))
        yield {
            "name": item.object,
            "time": time,
            "seek": round(min(max(shown_s, 0.0), duration_s), 4),
            "where": " · ".join(where),
            "color": colors[item.object],
            "confidence": format_confidence(item.confidence),
            "label": dataclasses.replace(answer, confidence=item.confidence).label,
            "frame_jpeg": frame_jpeg,
            "crop_jpeg": crop_jpeg,
        }


def _pictures(picture: Image.Image, item: Evidence, color: str) -> tuple[str, str | None]:
    """Returns base64 JPEGs: the frame with the box drawn in, and the part around the box."""
    crop = None
    if item.box is not None:
        ranges = []
        for low, high, side in zip(item.box[:2], item.box[2:], picture.size, strict=True):
            margin = _CROP_MARGIN * (high - low) * side + 1
            ranges.append((max(0, low * side - margin), min(side, high * side + margin)))
        (x1, x2), (y1, y2) = ranges
        crop = _jpeg(_fit(picture.crop((x1, y1, x2, y2)), _CROP_SIDE))
    picture = _fit(picture, _FRAME_SIDE)
    if item.box is not None:
        annotate.draw_box(ImageDraw.Draw(picture), item.box, picture.size, color, line=_FRAME_SIDE // 96)
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
    status, notes = str(video.get("status", "")), [str(note) for note in video.get("notes", ())]
    values = (
        (os.path.basename(video.get("path") or video_path), False),
        ("{}×{}".format(*size), False),
        (format_time(duration_s, answer.language), False),
        (texts["at"].format(video["fps"]) if "fps" in video else "", False),
        (texts["words"].get(status, status), status != "complete"),
        ("; ".join(notes), True),
        (answer.model, False),
    )
    for name, (value, flagged) in zip(texts["facts"], values, strict=True):
        if value:
            yield name, value, flagged


def _ticks(duration_s: float) -> Iterator[tuple[float, str]]:
    """Yields (seconds, text) for at most nine round times."""
    steps = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 86400)
    step = next((step for step in steps if duration_s / step <= 8), duration_s / 8)
    for index in range(int(duration_s / step) + 1):
        time = index * step
        minutes = int(time // 60)
        yield time, f"{minutes}:{int(time % 60):02d}" if duration_s >= 60 else f"{time:g}"

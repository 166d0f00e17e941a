"""The video with its evidence drawn in: boxes at their times, and a timeline under the picture."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from o3jax.files import whole_file
from o3jax.grounding import Box
from o3jax.report.answer import Answer, Evidence, format_time
from o3jax.video import PRESENTED_FPS, OpenVideo, VideoError, VideoInfo, probe

HOLD_S = 0.5  # a box is shown this long before and after its time
JOIN_S = 2.0  # consecutive mentions of one object up to this far apart are joined by a moving box
COLORS = ("#22d3ee", "#fb923c", "#a3e635", "#f472b6", "#facc15", "#a78bfa")
TEXT_LABEL = {"en": "text", "zh": "文本"}  # at the box that the text states
GAP_LABEL = {"en": "damaged: last good picture", "zh": "文件损坏:保持上一画面"}

_MAX_FPS = 30.0
_MAX_FRAMES = 10**6  # of a written video
_MAX_CURVE = 2000  # points of the relevance
_MIN_SIDE, _MAX_SIDE = 360, 1920  # of the annotated picture, pixels
_PANEL, _RAIL, _SPAN, _TEXT = "#0f172a", "#334155", "#2dd4bf", "#e2e8f0"
_BAND, _AREA = "#1e3a4c", "#0f766e"  # what was searched, and the relevance over it
_GAP = "#dc2626"  # where the file is damaged
_RELEVANCE = {"en": "relevance", "zh": "相关度"}
# Fonts with Chinese, by file name and face; Pillow finds them in the system's font folders.
_CJK_FONTS = (
    ("NotoSansCJK-Regular.ttc", 2),
    ("NotoSansCJKsc-Regular.otf", 0),
    ("SourceHanSansSC-Regular.otf", 0),
    ("wqy-zenhei.ttc", 0),
    ("wqy-microhei.ttc", 0),
    ("DroidSansFallbackFull.ttf", 0),
    ("PingFang.ttc", 0),
    ("msyh.ttc", 0),
)


@dataclasses.dataclass(frozen=True)
class Track:
    """The boxes of one object over time."""

    object: str
    color: str  # #rrggbb; the same for every track of this object
    keys: tuple[tuple[float, Box], ...]  # (seconds, normalised box), in the order of time
    stated: bool = False  # what the text says, beside what the evidence decoder says; drawn dashed


def object_colors(evidence: Iterable[Evidence]) -> dict[str, str]:
    """Returns the colour of each object name, in the order of first mention."""
    names = dict.fromkeys(item.object for item in evidence)
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def tracks(evidence: Sequence[Evidence]) -> list[Track]:
    """Returns the tracks of all evidence that has a box, and after them those that the text states beside it.

    Mentions of one name make one track; several boxes of one name at the same time are several things,
    and make several.
    """
    colors = object_colors(evidence)
    places: list[tuple[bool, str, Evidence]] = [(False, item.object, item) for item in evidence]
    places += [(True, item.object, item.text) for item in evidence if item.text]
    keys: dict[tuple[bool, str, int], list[tuple[float, Box]]] = {}
    seen: dict[tuple[bool, str, float], int] = {}
    for stated, name, where in sorted(places, key=lambda place: (place[0], place[2].time_s)):
        if where.box is not None:
            at = stated, name, where.time_s
            rank = seen[at] = seen.get(at, -1) + 1
            keys.setdefault((stated, name, rank), []).append((where.time_s, where.box))
    return [Track(name, colors[name], tuple(boxes), stated) for (stated, name, _), boxes in keys.items()]


def box_at(track: Track, time_s: float) -> Box | None:
    """Returns the track's normalised box at a time, None where it is not shown.

    Between two mentions that are near it moves from one to the other; else the nearest mention's box
    is held for `HOLD_S` on both sides.
    """
    for (start, first), (end, second) in zip(track.keys, track.keys[1:], strict=False):
        if start <= time_s < end <= start + JOIN_S:
            part = (time_s - start) / (end - start)
            return tuple(a + part * (b - a) for a, b in zip(first, second, strict=True))
    time, box = min(track.keys, key=lambda key: abs(key[0] - time_s))
    return box if abs(time - time_s) <= HOLD_S else None


def annotate_video(
    video_path: str | os.PathLike[str], answer: Answer, out_path: str | os.PathLike[str]
) -> None:
    """Writes an H.264 mp4 (yuv420p, no sound) that shows the answer's evidence in the video.

    Each box is drawn around its time with its object's name, and the box that the text states dashed; a
    strip under the picture shows the intervals, the evidence times, the relevance over time (where the
    answer has it) and the position. The rate is that of the answer's frame numbers, 30
    per second at most; a small picture is enlarged so that labels can be read. The file appears
    complete or not at all.

    Raises:
        UserError: if the output folder does not exist, or the video cannot be read (`VideoError`).
    """
    fps = min(presented_fps(answer), _MAX_FPS)
    info = probe(video_path)
    width, height = display_size(info.width, info.height)
    painter = _Painter(answer, width, height, video_duration(answer, info))
    with whole_file(out_path) as path, Mp4Writer(path, fps, width, height + painter.strip) as writer:
        for time_s, frame, held in frames(video_path, fps, width, height):
            writer.write(painter.paint(frame, time_s, held))


def frames(
    video_path: str | os.PathLike[str], fps: float, width: int, height: int
) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"], bool]]:
    """Yields (seconds, frame, whether it is held) at a constant rate to the end of the video.

    A frame that cannot be decoded is replaced by the last good one, so that times stay true.

    Raises:
        VideoError: if the video cannot be read, or is too long, for which one wrong timestamp is enough.
    """
    with OpenVideo(video_path, "auto") as video:
        if (duration_s := video.info().duration_s) * fps > _MAX_FRAMES:
            raise VideoError(
                f"{video_path} lasts {duration_s:.0f} s by its timestamps: too long to be shown; cut it."
            )
        yield from video.at_rate(fps, (height, width))


def presented_fps(answer: Answer) -> float:
    """Returns the frames per second that the answer's frame numbers count."""
    return float(answer.video.get("fps") or PRESENTED_FPS)


def video_duration(answer: Answer, info: VideoInfo) -> float:
    """Returns the seconds that the timeline shows: as the answer knows them, else as the file says."""
    return max(float(answer.video.get("duration_s") or info.duration_s), 1e-3)


def relevance_curve(answer: Answer, duration_s: float) -> list[tuple[float, float]]:
    """Returns the (seconds, probability) pairs to draw, in the order of time, within the video and [0, 1].

    Of very many the highest of each stretch are drawn. Each value stands for a stretch of time, so the first
    and the last are held for half a step.
    """
    # From afar too, where a long video was searched.
    parts = answer.search.intervals if answer.search else ()
    afar = answer.search.relevance if answer.search else ()
    outside = [point for point in afar if not any(start <= point[0] <= end for start, end in parts)]
    points = [
        (min(max(time_s, 0.0), duration_s), min(max(value, 0.0), 1.0))
        for time_s, value in sorted([*answer.relevance, *outside])
        if math.isfinite(time_s) and math.isfinite(value)
    ]
    if not points:
        return []
    many = -(-len(points) // _MAX_CURVE)
    points = [max(points[i : i + many], key=lambda point: point[1]) for i in range(0, len(points), many)]
    (first_s, first), (last_s, last) = points[0], points[-1]
    half = (last_s - first_s) / (2 * (len(points) - 1)) if last_s > first_s else duration_s
    return [(max(first_s - half, 0.0), first), *points, (min(last_s + half, duration_s), last)]


def display_size(
    width: int, height: int, smallest: int = _MIN_SIDE, largest: int = _MAX_SIDE
) -> tuple[int, int]:
    """Returns an even (width, height) of the same shape whose sides fit, as far as both limits can hold.

    `smallest` is for the short side, `largest` for the long one, which counts more.
    """
    scale = min(max(1.0, smallest / min(width, height)), largest / max(width, height))
    return tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))


class _Painter:
    """Draws the evidence onto frames of one size."""

    def __init__(self, answer: Answer, width: int, height: int, duration_s: float):
        self.tracks = tracks(answer.evidence)
        self.duration_s = duration_s
        self.curve = relevance_curve(answer, duration_s)
        self.language = answer.language
        self.width, self.height = width, height
        self.unit = max(8, round(min(width, height) / 28))  # text height; all else follows from it
        self.rail = 2 * self.unit  # height of the row with the rail
        self.strip = self.rail * (2 if self.curve else 1)  # below the picture; even, as yuv420p asks
        self.background = self._strip_background(answer)

    def paint(
        self, frame: UInt8[np.ndarray, "H W 3"], time_s: float, held: bool = False
    ) -> UInt8[np.ndarray, "H2 W 3"]:
        """Returns the frame with boxes and with the strip below; a held one says so.

        The rail keeps a mark for each held frame.
        """
        image = Image.new("RGB", (self.width, self.height + self.strip))
        image.paste(Image.fromarray(frame))
        draw = ImageDraw.Draw(image)
        drawn = []
        for track in self.tracks:
            if box := box_at(track, time_s):
                line = max(2, self.unit // 8) if track.stated else max(2, self.unit // 5)
                size = self.width, self.height
                drawn.append((track, draw_box(draw, box, size, track.color, line, track.stated)))
        for track, (x1, y1, _, y2) in drawn:  # after all boxes, whose lines would cross them
            if track.stated:  # its label is small and below, where the other box has none
                small = max(8, 3 * self.unit // 4)
                foot = min(y2 + small + small // 3 + 1, self.height)
                draw_label(draw, (x1, foot), self.width, track.color, TEXT_LABEL[self.language], small)
            else:
                draw_label(draw, (x1, y1), self.width, track.color, track.object, self.unit)
        if held:
            mark_held(draw, (self.width, self.height), self.language, self.unit)
            middle, x = self.rail // 2, self._x(time_s)
            ImageDraw.Draw(self.background).line((x, middle - 1, x, middle + 1), _GAP, 2)
        image.paste(self.background, (0, self.height))
        middle = self.height + self.rail // 2
        font = _font("", self.unit)
        draw.text((self.unit // 2, middle), format_time(time_s, "en"), _TEXT, font, anchor="lm")
        x = self._x(time_s)
        draw.line((x, self.height + 3, x, self.height + self.strip - 4), "white", max(2, self.unit // 6))
        return np.asarray(image)

    def _x(self, time_s: float) -> int:
        """Returns the column of a time on the rail."""
        left, right = 5 * self.unit, self.width - self.unit
        return left + round(min(max(time_s / self.duration_s, 0.0), 1.0) * (right - left))

    def _strip_background(self, answer: Answer) -> Image.Image:
        image = Image.new("RGB", (self.width, self.strip), _PANEL)
        draw = ImageDraw.Draw(image)
        middle, thickness = self.rail // 2, max(2, self.unit // 6)
        if self.curve:
            self._draw_curve(draw, answer)
        rail = (self._x(0), middle - thickness, self._x(self.duration_s), middle + thickness)
        draw.rounded_rectangle(rail, thickness, _RAIL)
        for start, end in answer.intervals:
            x1, x2 = sorted((self._x(start), self._x(end)))
            draw.rounded_rectangle((x1, rail[1], max(x1 + 2, x2), rail[3]), thickness, _SPAN)
        colors = object_colors(answer.evidence)
        radius = max(3, self.unit // 3)
        for item in answer.evidence:
            if item.text:
                draw.circle((self._x(item.text.time_s), middle), radius, _PANEL, colors[item.object], 2)
        for item in answer.evidence:
            draw.circle((self._x(item.time_s), middle), radius, colors[item.object], _PANEL)
        return image

    def _draw_curve(self, draw: ImageDraw.ImageDraw, answer: Answer) -> None:
        """Draws the relevance over time, and what was searched, in the row below the rail's."""
        top, bottom = self.rail, self.strip - max(2, self.unit // 4)
        for start, end in answer.candidates:
            x1, x2 = sorted((self._x(start), self._x(end)))
            draw.rectangle((x1, top, max(x1 + 1, x2), bottom), _BAND)
        line = [(self._x(time_s), round(bottom - value * (bottom - top))) for time_s, value in self.curve]
        draw.polygon([(line[0][0], bottom), *line, (line[-1][0], bottom)], _AREA)
        draw.line(line, _SPAN, max(1, self.unit // 8))
        word, size = _RELEVANCE[self.language], 3 * self.unit // 4
        if font := _font(word, size):
            draw.text((self.unit // 2, (top + bottom) // 2), word, _TEXT, font, anchor="lm")


def marked_held(frame: UInt8[np.ndarray, "H W 3"], language: str) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a picture that says that it only stands for one that is lost."""
    image = Image.fromarray(frame)
    mark_held(ImageDraw.Draw(image), image.size, language, max(8, min(image.size) // 20))
    return np.asarray(image)


def mark_held(draw: ImageDraw.ImageDraw, size: tuple[int, int], language: str, text_px: int) -> None:
    """Draws what says that the picture of (width, height) only stands for one that is lost."""
    width, height = size
    draw.rectangle((0, 0, width - 1, height - 1), outline=_GAP, width=max(2, text_px // 4))
    label = GAP_LABEL[language]
    draw_label(draw, (0, height - 2 * text_px), width, _GAP, label if _font(label, text_px) else "!", text_px)


def draw_box(
    draw: ImageDraw.ImageDraw, box: Box, size: tuple[int, int], color: str, line: int, dashed: bool = False
) -> tuple[int, int, int, int]:
    """Draws a normalised box with lines of `line` pixels, and returns its corners in pixels.

    A solid box gets a dark rim, a dashed one dark gaps, so that either shows on any picture. `size` is
    (width, height) of the area that the box is relative to, from the picture's top left.
    """
    width, height = size
    x1, y1, x2, y2 = (round(v * s) for v, s in zip(box, (width, height) * 2, strict=True))
    x1, y1 = min(max(x1, 0), width - 2), min(max(y1, 0), height - 2)
    x2, y2 = min(max(x2, x1 + 1), width - 1), min(max(y2, y1 + 1), height - 1)
    if dashed:
        draw.rectangle((x1, y1, x2, y2), outline="black", width=line)
        dash = 6 * line
        for x in range(x1, x2 + 1, dash + dash // 2):
            for y in (y1, max(y1, y2 - line + 1)):
                draw.rectangle((x, y, min(x + dash - 1, x2), min(y + line - 1, y2)), fill=color)
        for y in range(y1, y2 + 1, dash + dash // 2):
            for x in (x1, max(x1, x2 - line + 1)):
                draw.rectangle((x, y, min(x + line - 1, x2), min(y + dash - 1, y2)), fill=color)
    else:
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=line + 2)
        draw.rectangle((x1, y1, x2, y2), outline=color, width=line)
    return x1, y1, x2, y2


def draw_label(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, color: str, text: str, text_px: int
) -> None:
    """Draws a label above a corner (below it where there is no room), within a picture of `width`."""
    text = "".join(character for character in " ".join(text.split()) if character.isprintable())
    font = _font(text, text_px)
    text, font = (text, font) if font else ("?", _font("", text_px))
    text = text if len(text) <= 40 else text[:39] + "…"
    pad = text_px // 3
    label_width, label_height = round(draw.textlength(text, font)) + 2 * pad, text_px + pad
    x, y = corner
    left, top = min(x, max(0, width - label_width)), y - label_height if y >= label_height else y
    draw.rectangle((left, top, left + label_width, top + label_height), fill=color)
    draw.text((left + pad, top + label_height // 2), text, _PANEL, font, anchor="lm")


@functools.lru_cache(maxsize=256)
def _font(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Returns a font that has the text's characters; None, and one warning, if there is none."""
    if all(ord(character) < 0x250 for character in text):
        return ImageFont.load_default(size)
    for name, face in _CJK_FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size, index=face)
    logging.warning("no font with Chinese is installed: label '%s' is drawn as '?'", text)
    return None


class Mp4Writer:
    """Encodes RGB frames of one size to an H.264 mp4 that browsers play; a context manager."""

    def __init__(
        self, path: Path, fps: float, width: int, height: int, options: dict[str, str] | None = None
    ):
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        # What swscale makes of RGB: without these tags a player guesses by the size, and colours shift.
        codec = self._stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc = Colorspace.ITU601, 1, 1
        self._stream.options = {"preset": "veryfast", "crf": "21"} | (options or {})

    def write(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Appends one frame."""
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()

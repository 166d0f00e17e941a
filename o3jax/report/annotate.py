"""The video with its evidence drawn in: boxes at their times, and a timeline under the picture."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from o3jax.errors import UserError
from o3jax.report.answer import Answer, Box, Evidence, format_time
from o3jax.video import VideoError, VideoInfo, probe, read_video

HOLD_S = 0.5  # a box is shown this long before and after its time
JOIN_S = 2.0  # consecutive mentions of one object up to this far apart are joined by a moving box
COLORS = ("#22d3ee", "#fb923c", "#a3e635", "#f472b6", "#facc15", "#a78bfa")

_MAX_FPS = 30.0
_MIN_SIDE, _MAX_SIDE = 360, 1920  # of the annotated picture, pixels
_CHUNK_BYTES = 128 * 2**20  # of decoded frames held at a time
_PANEL, _RAIL, _SPAN, _TEXT = "#0f172a", "#334155", "#2dd4bf", "#e2e8f0"
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


def object_colors(evidence: Iterable[Evidence]) -> dict[str, str]:
    """Returns the colour of each object name, in the order of first mention."""
    names = dict.fromkeys(item.object for item in evidence)
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def tracks(evidence: Sequence[Evidence]) -> list[Track]:
    """Returns the tracks of all evidence that has a box.

    Mentions of one name make one track; several boxes of one name at the same time are several things,
    and make several.
    """
    colors = object_colors(evidence)
    keys: dict[tuple[str, int], list[tuple[float, Box]]] = {}
    seen: dict[tuple[str, float], int] = {}
    for item in sorted(evidence, key=lambda item: item.time_s):
        if item.box is not None:
            rank = seen[item.object, item.time_s] = seen.get((item.object, item.time_s), -1) + 1
            keys.setdefault((item.object, rank), []).append((item.time_s, item.box))
    return [Track(name, colors[name], tuple(boxes)) for (name, _), boxes in keys.items()]


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

    Each box is drawn around its time with its object's name; a strip under the picture shows the
    intervals, the evidence times and the position. The rate is that of the answer's frame numbers, 30
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
        for time_s, frame in frames(video_path, fps, width, height):
            writer.write(painter.paint(frame, time_s))


def frames(
    video_path: str | os.PathLike[str], fps: float, width: int, height: int
) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    """Yields (seconds, frame) at a constant rate to the end of the video, holding a few seconds in memory.

    A frame that cannot be decoded is replaced by its neighbour, so that times stay true.
    """
    chunk = max(1, _CHUNK_BYTES // (width * height * 3))
    for begin in itertools.count(0, chunk):
        try:
            clip = read_video(
                video_path, fps, start_s=begin / fps, end_s=(begin + chunk) / fps, size=(height, width)
            )
        except VideoError:
            if begin == 0:
                raise
            return  # the video ended with the last chunk
        last = round(clip.times_s[-1] * fps)
        for time_s in np.arange(begin, last + 1) / fps:
            shown = np.searchsorted(clip.times_s, time_s + 1e-6, side="right") - 1
            yield float(time_s), clip.frames[max(shown, 0)]
        if last < begin + chunk - 1:
            return


def presented_fps(answer: Answer) -> float:
    """Returns the frames per second that the answer's frame numbers count."""
    return float(answer.video.get("fps") or 25.0)


def video_duration(answer: Answer, info: VideoInfo) -> float:
    """Returns the seconds that the timeline shows: as the answer knows them, else as the file says."""
    return max(float(answer.video.get("duration_s") or info.duration_s), 1e-3)


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
        self.width, self.height = width, height
        self.unit = max(8, round(min(width, height) / 28))  # text height; all else follows from it
        self.strip = 2 * self.unit  # height below the picture; even, as yuv420p asks
        self.background = self._strip_background(answer)

    def paint(self, frame: UInt8[np.ndarray, "H W 3"], time_s: float) -> UInt8[np.ndarray, "H2 W 3"]:
        """Returns the frame with boxes and with the strip below."""
        image = Image.new("RGB", (self.width, self.height + self.strip))
        image.paste(Image.fromarray(frame))
        draw = ImageDraw.Draw(image)
        for track in self.tracks:
            if box := box_at(track, time_s):
                corner = draw_box(draw, box, (self.width, self.height), track.color, max(2, self.unit // 5))
                draw_label(draw, corner, self.width, track.color, track.object, self.unit)
        image.paste(self.background, (0, self.height))
        middle = self.height + self.strip // 2
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
        middle, thickness = self.strip // 2, max(2, self.unit // 6)
        rail = (self._x(0), middle - thickness, self._x(self.duration_s), middle + thickness)
        draw.rounded_rectangle(rail, thickness, _RAIL)
        for start, end in answer.intervals:
            x1, x2 = sorted((self._x(start), self._x(end)))
            draw.rounded_rectangle((x1, rail[1], max(x1 + 2, x2), rail[3]), thickness, _SPAN)
        colors = object_colors(answer.evidence)
        radius = max(3, self.unit // 3)
        for item in answer.evidence:
            draw.circle((self._x(item.time_s), middle), radius, colors[item.object], _PANEL)
        return image


def draw_box(
    draw: ImageDraw.ImageDraw, box: Box, size: tuple[int, int], color: str, line: int
) -> tuple[int, int]:
    """Draws a normalised box with lines of `line` pixels and a dark rim, and returns its top left corner.

    `size` is (width, height) of the area that the box is relative to, from the picture's top left.
    """
    width, height = size
    x1, y1, x2, y2 = (round(v * s) for v, s in zip(box, (width, height) * 2, strict=True))
    x1, y1 = min(max(x1, 0), width - 2), min(max(y1, 0), height - 2)
    x2, y2 = min(max(x2, x1 + 1), width - 1), min(max(y2, y1 + 1), height - 1)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=line + 2)
    draw.rectangle((x1, y1, x2, y2), outline=color, width=line)
    return x1, y1


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


@contextlib.contextmanager
def whole_file(out_path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `out_path`, which takes its name if the block ends well, and else goes.

    Raises:
        UserError: if the folder does not exist.
    """
    target = Path(out_path)
    if not target.parent.is_dir():
        raise UserError(f"cannot write {target}: its folder does not exist; create it first")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)

"""Videos whose frames say which frame they are.

Each frame carries its number twice, as sixteen black or white cells along the top edge and inverted along
the bottom edge, so that a wrong, mirrored or turned frame cannot pass for a right one. The middle is red
on the left and blue on the right. The list of timestamps given to the writer is the oracle of a reader's
tests: it never passes through a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

BITS = 16


def draw(number: int, height: int = 96, width: int = 160) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an RGB picture that says `number`."""
    cell = np.arange(width) * BITS // width
    bits = (number >> (BITS - 1 - cell)) & 1
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2, 0] = 220
    picture[:, width // 2 :, 2] = 220
    picture[: height // 3] = (bits * 255)[None, :, None]
    picture[height - height // 3 :] = (255 - bits * 255)[None, :, None]
    return picture


def read_number(picture: UInt8[np.ndarray, "H W 3"]) -> int:
    """Returns the number drawn in `picture` of any size; AssertionError unless it is whole and upright."""
    height, width, _ = picture.shape
    columns = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    top, middle, bottom = (picture[int(height * y), :].astype(int) for y in (1 / 6, 1 / 2, 5 / 6))
    bits = top[columns].mean(-1) > 127
    assert np.array_equal(bits, bottom[columns].mean(-1) <= 127), "the two copies of the number differ"
    left, right = middle[width // 4], middle[3 * width // 4]
    assert left[0] > left[2] + 60 and right[2] > right[0] + 60, "left is not red or right is not blue"
    return int("".join("1" if bit else "0" for bit in bits), 2)


def textured(number: int, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Returns what `draw` does, with a moving texture, which a decoder has to work for."""
    picture, band = draw(number, height, width), slice(height // 3, height - height // 3)
    noise = np.random.default_rng(0).integers(0, 120, (height, width), np.uint8)
    picture[band, :, 1] = np.roll(noise, 2 * number, 1)[band]
    return picture


@dataclass(frozen=True)
class Fixture:
    """A written file and the truth about it: frame i is shown from times[i] until times[i + 1] or end."""

    path: Path
    times: tuple[Fraction, ...]  # seconds from the first shown frame
    end: Fraction  # seconds; when the last frame disappears
    first: int = 0  # number on the first shown frame

    def shown_at(self, t: Fraction) -> int:
        """Returns the number of the frame shown at `t`, by looking at every frame."""
        return self.first + max(i for i, start in enumerate(self.times) if start <= t)

    def numbers_at(self, fps: Fraction | int) -> list[int]:
        """Returns the numbers shown at 0, 1/fps, 2/fps, ... as long as there is something to see."""
        times = []
        while (t := Fraction(len(times)) / fps) < self.end:
            times.append(t)
        return [self.shown_at(t) for t in times]


def write_video(
    path: Path,
    pts: Sequence[int],
    time_base: Fraction,
    *,
    last_duration: int | None = None,
    codec: str = "libx264",
    size: tuple[int, int] = (96, 160),
    gop: int = 12,
    pix_fmt: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    hflip: bool = False,
    audio_s: float = 0.0,
    numbers: Sequence[int] | None = None,
    picture_of: Callable[..., UInt8[np.ndarray, "H W 3"]] = draw,
) -> Fixture:
    """Returns the truth about a file written with one numbered picture per timestamp.

    Args:
      pts: strictly increasing timestamps in units of `time_base`.
      last_duration: how long the last frame is shown, in `time_base`; the last step by default.
      size: (height, width) of the coded picture.
      rotation: degrees that a player must turn the coded picture counter-clockwise to show it upright.
      hflip: a player must then also mirror the picture left to right.
      audio_s: length of a silent sound track; none by default.
      numbers: what the pictures say; 0, 1, 2, ... by default.
      picture_of: draws a number at a height and width.
    """
    height, width = size
    upright = (width, height) if rotation % 180 else (height, width)
    steps = [*np.diff(pts), last_duration or pts[-1] - pts[-2]]
    with av.open(str(path), "w", options=container_options or {}) as out:
        rate = Fraction(len(pts) - 1, 1) / ((pts[-1] - pts[0]) * time_base)
        stream = out.add_stream(codec, rate=rate.limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        stream.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.codec_context.options = codec_options or DEFAULT_OPTIONS.get(codec, {})
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
        sound = out.add_stream("aac", rate=48000) if audio_s else None
        duration_of = dict(zip(pts, steps, strict=True))
        packets = []
        for i, stamp in enumerate(pts):
            number = i if numbers is None else numbers[i]
            picture = picture_of(number, *upright)
            picture = np.rot90(picture[:, ::-1] if hflip else picture, -(rotation // 90))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = stamp, time_base
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets:
            packet.duration = int(duration_of[packet.pts])
        if sound is not None:
            packets = sorted(packets + silence(sound, audio_s), key=lambda p: p.dts * p.time_base)
        for packet in packets:
            out.mux(packet)
    times = tuple((p - pts[0]) * time_base for p in pts)
    first = 0 if numbers is None else numbers[0]
    return Fixture(path, times, times[-1] + int(steps[-1]) * time_base, first)


DEFAULT_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "24", "bf": "2"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "35", "b": "0"},
    "libsvtav1": {"preset": "8", "crf": "20", "svtav1-params": "lp=1"},
}


def silence(stream: av.AudioStream, seconds: float) -> list[av.Packet]:
    """Returns the packets of a silent sound track."""
    packets = []
    for start in range(0, int(seconds * 48000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        packets += stream.encode(frame)
    return packets + stream.encode(None)

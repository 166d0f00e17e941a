"""Videos of all containers and clocks, by name: what writes each, and what is true of it."""

import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from tests.support.numbered import Fixture, write_video

MS = Fraction(1, 1000)
TICK = Fraction(1, 90000)
AS_STORED = {"avoid_negative_ts": "disabled"}


def irregular(count: int, seed: int = 1) -> list[int]:
    """Timestamps in ms of a variable-rate video."""
    steps = random.Random(seed).choices([7, 15, 33, 60, 100, 150], k=count - 1)
    return np.cumsum([0, *steps]).tolist()


def without_start(fixture: Fixture, hidden: int) -> Fixture:
    """The truth about a file whose first `hidden` frames come before time zero and are not shown."""
    start = fixture.times[hidden]
    times = tuple(t - start for t in fixture.times[hidden:])
    return Fixture(fixture.path, times, fixture.end - start, hidden)


def every(step: int, count: int, start: int = 0) -> range:
    return range(start, start + step * count, step)


WRITERS: dict[str, Callable[[Path], Fixture]] = {
    "cfr10.mp4": lambda p: write_video(p, range(40), Fraction(1, 10)),
    "cfr25.mp4": lambda p: write_video(p, range(75), Fraction(1, 25)),
    "ntsc.mp4": lambda p: write_video(p, every(1001, 100), Fraction(1, 30000)),
    "cfr60.mp4": lambda p: write_video(p, range(150), Fraction(1, 60)),
    "cfr25.mkv": lambda p: write_video(p, every(40, 75), MS),
    "ntsc_rounded.mkv": lambda p: write_video(p, [round(i * 1001 / 30) for i in range(80)], MS),
    "live.mkv": lambda p: write_video(p, every(40, 75), MS, container_options={"live": "1"}),
    "cfr25.ts": lambda p: write_video(p, every(3600, 150), TICK),
    "mpeg4.ts": lambda p: write_video(p, range(100), Fraction(1, 25), codec="mpeg4"),
    "cfr25.flv": lambda p: write_video(p, every(40, 75), MS),
    "mpeg4.avi": lambda p: write_video(p, range(75), Fraction(1, 25), codec="mpeg4"),
    "b_frames.avi": lambda p: write_video(p, range(75), Fraction(1, 25)),
    "vfr.mp4": lambda p: write_video(p, irregular(80), MS, last_duration=90),
    "vfr.mkv": lambda p: write_video(p, irregular(80), MS, last_duration=90),
    "late.mp4": lambda p: write_video(p, every(3600, 60, start=90000), TICK),
    "late.mkv": lambda p: write_video(p, every(40, 60, start=5000), MS),
    # The muxer hides what lies before zero with an edit list (mp4) or stores no timestamp for it (mkv).
    "edit_list.mp4": lambda p: without_start(
        write_video(p, every(3600, 80, start=-20 * 3600), TICK, container_options=AS_STORED), 20
    ),
    "negative.mkv": lambda p: without_start(
        write_video(p, every(40, 80, start=-800), MS, container_options=AS_STORED), 20
    ),
    "rotated90.mp4": lambda p: write_video(p, range(30), Fraction(1, 25), rotation=90),
    "rotated180.mp4": lambda p: write_video(p, range(30), Fraction(1, 25), rotation=180),
    "rotated-90.mkv": lambda p: write_video(p, every(40, 30), MS, rotation=-90),
    "mirrored.mp4": lambda p: write_video(p, range(30), Fraction(1, 25), hflip=True),
    "rotated_mirrored.mp4": lambda p: write_video(p, range(30), Fraction(1, 25), rotation=90, hflip=True),
    "odd.mp4": lambda p: write_video(p, range(30), Fraction(1, 25), size=(97, 161), pix_fmt="yuv444p"),
    "ten_bit.mp4": lambda p: write_video(p, range(30), Fraction(1, 25), pix_fmt="yuv420p10le"),
    "hevc.mp4": lambda p: write_video(p, range(60), Fraction(1, 25), codec="libx265"),
    "vp9.webm": lambda p: write_video(p, every(40, 60), MS, codec="libvpx-vp9", size=(97, 161)),
    "av1.mp4": lambda p: write_video(p, range(40), Fraction(1, 25), codec="libsvtav1"),
    "sound_goes_on.mp4": lambda p: write_video(p, range(60), Fraction(1, 25), audio_s=4.0),
    "sound_goes_on.mkv": lambda p: write_video(p, every(40, 60), MS, audio_s=4.0),
    "long.mp4": lambda p: write_video(p, range(500), Fraction(1, 25)),
    "long.mkv": lambda p: write_video(p, every(40, 500), MS),
    "long.ts": lambda p: write_video(p, every(3600, 500), TICK),
    "one_keyframe.mp4": lambda p: write_video(p, range(250), Fraction(1, 25), gop=250),
    "one_keyframe.ts": lambda p: write_video(p, every(3600, 250), TICK, gop=250),
    "faststart.mp4": lambda p: write_video(
        p, range(250), Fraction(1, 25), container_options={"movflags": "faststart"}
    ),
    "faststart_sound.mp4": lambda p: write_video(
        p, range(250), Fraction(1, 25), container_options={"movflags": "faststart"}, audio_s=10.0
    ),
}

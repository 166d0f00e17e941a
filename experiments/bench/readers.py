"""The reader rows of `python -m experiments.bench`: how fast ours and others are, and who is right.

Every frame carries its number as a picture, so what a reader returns tells whether it is the frame that a
viewer would see. The others are optional (requirements-bench.txt); each is used in the way that is right
most often, by timestamps, with one decoding thread. They take turns on the same files.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from experiments.bench.numbered import read_number, textured, write_video
from experiments.bench.tables import Row, Tables
from experiments.bench.timing import take_turns
from o3jax.video import read_video

SECONDS, FPS = 20, 30
LONGEST_S = 0.25  # a frame is shown: until the next one was read nobody knows how long
SMALL = (252, 448)  # what all frames are resized to
_CODED = {"codec_options": {"preset": "veryfast", "crf": "26", "sc_threshold": "0"}, "picture_of": textured}
Frames = Sequence[UInt8[np.ndarray, "H W 3"]]
Read = Callable[[Path, Sequence[float], tuple[int, int] | None], Frames]


def _ours() -> Read:
    return lambda path, times, size: read_video(path, times_s=times, size=size).frames


def _torchcodec() -> Read:
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    torch.set_num_threads(1)

    def read(path: Path, times: Sequence[float], size: tuple[int, int] | None) -> Frames:
        transforms = [Resize(size)] if size else []
        decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, transforms=transforms)
        start = decoder.metadata.begin_stream_seconds or 0.0
        return decoder.get_frames_played_at([start + t + 1e-4 for t in times]).data.numpy()

    return read


def _decord() -> Read:
    import decord

    def read(path: Path, times: Sequence[float], size: tuple[int, int] | None) -> Frames:
        sides = {"height": size[0], "width": size[1]} if size else {}
        reader = decord.VideoReader(str(path), num_threads=1, **sides)
        starts = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        indices = np.searchsorted(starts - starts[0], np.array(times) + 1e-4, "right") - 1
        return reader.get_batch(indices).asnumpy()

    return read


def _opencv() -> Read:
    import cv2

    cv2.setNumThreads(1)

    def read(path: Path, times: Sequence[float], size: tuple[int, int] | None) -> Frames:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        out: list[np.ndarray] = []
        zero, shown = None, None
        # Its seeking misses frames, so it reads on, and converts a frame only where it is wanted.
        while len(out) < len(times):
            more = capture.grab()
            start = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if more else float("inf")
            zero = start if zero is None else zero
            while len(out) < len(times) and start - zero > times[len(out)] + 1e-4:
                out.append(shown)
            if not more:
                break
            if len(out) < len(times) and start - zero + LONGEST_S > times[len(out)]:
                picture = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
                shown = (
                    picture
                    if size is None
                    else cv2.resize(picture, size[::-1], interpolation=cv2.INTER_CUBIC)
                )
        capture.release()
        return out

    return read


READERS = {
    "ours": ("av", _ours),
    "torchcodec": ("torchcodec", _torchcodec),
    "eva-decord": ("eva-decord", _decord),
    "opencv": ("opencv-python-headless", _opencv),
}


def _wrong(frames: Frames, numbers: Sequence[int]) -> int:
    """Returns how many frames are not the ones that a viewer would see."""
    right = 0
    for frame, number in zip(frames, numbers, strict=False):
        try:
            right += frame is not None and read_number(np.asarray(frame)) == number
        except AssertionError:  # the picture does not hold a whole number
            pass
    return len(numbers) - right


@dataclasses.dataclass(frozen=True)
class Case:
    """A file and when it is read."""

    name: str
    path: Path
    times: list[float]
    numbers: list[int]  # of the frames shown then
    size: tuple[int, int] | None = None  # that frames are resized to


def plain_cases(folder: Path) -> list[Case]:
    """Returns what is timed: files of a constant rate."""
    cases = []
    for size in ((360, 640), (720, 1280)):
        constant = {"pts": range(SECONDS * FPS), "time_base": Fraction(1, FPS), "size": size} | _CODED
        short, long = (
            write_video(folder / f"{size[0]}-{gop}.mp4", **constant, gop=gop).path for gop in (FPS, 250)
        )
        for name, path, times, resized in (
            ("all at 25 fps, resized", short, np.arange(25 * SECONDS) / 25, SMALL),
            ("16 uniform", short, np.linspace(0, (SECONDS * FPS - 1) / FPS, 16), None),
            ("one per 5 s, long GOP", long, np.arange(0.0, SECONDS, 5), None),
        ):
            numbers = (times * FPS + 1e-4).astype(int).tolist()
            cases.append(Case(f"{size[0]}p {name}", path, times.tolist(), numbers, resized))
    return cases


def odd_cases(folder: Path) -> list[Case]:
    """Returns files that readers stumble over."""
    steps, as_stored = np.random.default_rng(1).integers(1, 12, 119), {"avoid_negative_ts": "disabled"}
    ms = Fraction(1, 1000)
    written = {
        "variable rate, mp4": ("vfr.mp4", [0, *np.cumsum(steps).tolist()], Fraction(1, 60), {}),
        "MPEG-TS": ("a.ts", [133200 + 3600 * i for i in range(120)], Fraction(1, 90000), {}),
        "negative timestamps, mkv": ("a.mkv", [40 * i - 1000 for i in range(120)], ms, as_stored),
    }
    cases = []
    for name, (file, pts, base, options) in written.items():
        path = write_video(folder / file, pts, base, container_options=options, **_CODED).path
        # A viewer sees nothing of what lies before time zero.
        hidden = sum(stamp < 0 for stamp in pts)
        starts = [(stamp - pts[hidden]) * base for stamp in pts[hidden:]]
        end = starts[-1] + (pts[-1] - pts[-2]) * base
        times = [time for k in range(100) if (time := Fraction(2 * k + 1, 50)) < end]
        numbers = [hidden + bisect.bisect_right(starts, time) - 1 for time in times]
        cases.append(Case(name, path, [float(time) for time in times], numbers))
    return cases


def measure(scratch: Path, rounds: int) -> Tables:
    """Returns a row for each case and reader: frames per second and wrong frames."""
    readers, absent = {}, []
    for name, (package, make) in READERS.items():
        try:
            readers[f"{name} {version(package)}"] = make()
        except (ImportError, PackageNotFoundError, OSError, RuntimeError) as error:
            absent.append({"reader": name, "not installed": " ".join(str(error).split())[:60]})
    rows: list[Row] = []
    for case in plain_cases(scratch):
        wrong = {name: _tried(read, case) for name, read in readers.items()}
        able = {
            name: functools.partial(read, case.path, case.times, case.size)
            for name, read in readers.items()
            if not wrong[name].startswith("fails")
        }
        seconds = take_turns(able, rounds)
        for name in readers:
            row: Row = {"case": case.name, "reader": name}
            if name in able:
                clock, processor = (len(case.times) / seconds[name]).T.tolist()
                row |= {"frames / CPU s": processor, "frames / s": clock}
            rows.append(row | {"wrong frames": wrong[name]})
    odd = [
        {"file": case.name} | {name: _tried(read, case) for name, read in readers.items()}
        for case in odd_cases(scratch)
    ]
    tables: Tables = {"Video readers": rows, "Wrong frames of files that are harder to read": odd}
    return tables | ({"Not compared": absent} if absent else {})


def _tried(read: Read, case: Case) -> str:
    """Returns how many frames were wrong, or the reader's complaint."""
    try:
        wrong = _wrong(read(case.path, case.times, case.size), case.numbers)
    except Exception as error:  # each library raises its own kinds
        return f"fails: {type(error).__name__}"
    return f"{wrong} of {len(case.numbers)}" if wrong else "0"

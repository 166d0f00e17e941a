"""The reader rows of `python -m experiments.bench`: how fast ours and others are, and who is right.

Every frame carries its number as a picture, so what a reader returns tells whether it is the frame that a
viewer would see. The others are optional (requirements-bench.txt); each is used in the way that is right
most often, by timestamps, with one decoding thread. They take turns on the same files.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table

from experiments.bench.numbered import draw, read_number, write_video
from o3jax.video import read_video

SECONDS, FPS = 20, 30
LONGEST_S = 0.25  # a frame is shown: until the next one was read nobody knows how long
SMALL = (252, 448)  # what all frames are resized to
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


def write_numbered(path: Path, height: int, width: int, gop: int, seconds: int = SECONDS) -> Path:
    """Writes numbered pictures with a moving texture, which a decoder has to work for."""
    noise = np.random.default_rng(0).integers(0, 120, (height, width), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", gop
        stream.codec_context.options = {"preset": "veryfast", "crf": "26", "sc_threshold": "0"}
        for number in range(seconds * FPS):
            picture = draw(number, height, width)
            band = slice(height // 3, height - height // 3)
            picture[band, :, 1] = np.roll(noise, 2 * number, 1)[band]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def _wrong(frames: Frames, numbers: Sequence[int]) -> int:
    """Returns how many frames are not the ones that a viewer would see."""
    right = 0
    for frame, number in zip(frames, numbers, strict=False):
        try:
            right += frame is not None and read_number(np.asarray(frame)) == number
        except AssertionError:  # the picture does not hold a whole number
            pass
    return len(numbers) - right


def _odd_files(folder: Path) -> dict[str, tuple[Path, list[float], list[int]]]:
    """Returns files that readers stumble over, times to read and the numbers of the frames shown then."""
    steps = np.random.default_rng(1).integers(1, 12, 119)
    files = {
        "VFR mp4": write_video(folder / "vfr.mp4", [0, *np.cumsum(steps).tolist()], Fraction(1, 60)),
        "MPEG-TS": write_video(folder / "a.ts", [133200 + 3600 * i for i in range(120)], Fraction(1, 90000)),
        "negative": write_video(
            folder / "negative.mkv",
            [40 * i - 1000 for i in range(120)],
            Fraction(1, 1000),
            container_options={"avoid_negative_ts": "disabled"},
        ),
    }
    # A viewer sees nothing of what lies before time zero.
    start, hidden = files["negative"].times, 25
    files["negative"] = dataclasses.replace(
        files["negative"],
        times=tuple(t - start[hidden] for t in start[hidden:]),
        end=files["negative"].end - start[hidden],
        first=hidden,
    )
    out = {}
    for name, fixture in files.items():
        times = [Fraction(2 * k + 1, 50) for k in range(100) if Fraction(2 * k + 1, 50) < fixture.end]
        out[name] = (fixture.path, [float(t) for t in times], [fixture.shown_at(t) for t in times])
    return out


def measure_readers(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Returns a row for each case and reader: median frames per CPU second and per second, wrong frames."""
    readers, absent = {}, {}
    for name, (package, make) in READERS.items():
        try:
            readers[f"{name} {version(package)}"] = make()
        except (ImportError, PackageNotFoundError, OSError, RuntimeError) as error:
            absent[name] = " ".join(str(error).split())[:60]
    cases = []
    for height, width in ((360, 640), (720, 1280)):
        short = write_numbered(folder / f"{height}.mp4", height, width, gop=FPS)
        long = write_numbered(folder / f"{height}-long.mp4", height, width, gop=250)
        last = (SECONDS * FPS - 1) / FPS
        cases += [
            (f"{height}p all at 25 fps, resized", short, (np.arange(25 * SECONDS) / 25).tolist(), SMALL),
            (f"{height}p 16 uniform", short, np.linspace(0, last, 16).tolist(), None),
            (f"{height}p one per 5 s, long GOP", long, np.arange(0.0, SECONDS, 5).tolist(), None),
        ]
    rows = [{"case": "not installed", "reader": name, "wrong": why} for name, why in absent.items()]
    for case, path, times, size in cases:
        numbers = [int(t * FPS + 1e-4) for t in times]
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        wrong = {name: _tried(read, path, times, size, numbers) for name, read in readers.items()}
        for _ in range(rounds):
            for name, read in readers.items():
                if isinstance(wrong[name], str):
                    continue
                cpu, wall = time.process_time(), time.perf_counter()
                read(path, times, size)
                spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        for name, pairs in spent.items():
            row = {"case": case, "reader": name, "wrong": wrong[name]}
            if pairs:
                cpu, wall = (statistics.median(values) for values in zip(*pairs, strict=True))
                row |= {"per_cpu_s": len(times) / cpu, "per_s": len(times) / wall}
            rows.append(row)
    for case, (path, times, numbers) in _odd_files(folder).items():
        for name, read in readers.items():
            rows.append({"case": case, "reader": name, "wrong": _tried(read, path, times, None, numbers)})
    return rows


def _tried(
    read: Read, path: Path, times: Sequence[float], size: tuple[int, int] | None, numbers: Sequence[int]
) -> str | int:
    """Returns how many frames were wrong, or the reader's complaint."""
    try:
        return f"{wrong} of {len(numbers)}" if (wrong := _wrong(read(path, times, size), numbers)) else 0
    except Exception as error:  # each library raises its own kinds
        return f"fails: {type(error).__name__}"


def show_readers(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the rows as a table."""
    table = Table("case", "reader", "frames / CPU s", "frames / s", "wrong frames")
    for row in rows:
        rates = [f"{row[key]:.1f}" if key in row else "-" for key in ("per_cpu_s", "per_s")]
        table.add_row(row["case"], row["reader"], *rates, str(row["wrong"]))
    console.print(table)

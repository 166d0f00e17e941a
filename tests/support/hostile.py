"""Broken and hostile files, and functions that misbehave in the process of a guarded reader."""

from __future__ import annotations

import ctypes
import io
import os
import random
import struct
import sys
import time
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.reading.guarded import GuardedReader, Limits
from o3jax.errors import UserError
from o3jax.video import read_video
from o3jax.video.files import VideoError
from tests.support.numbered import draw, silence, write_video
from tests.support.videos import huge_pictures

FRAMES, FPS = 25, 25

# What a child is made to do. Each takes the path that the error is to name.


def hang(path: str) -> None:
    while True:
        pass


def crash(path: str) -> None:
    ctypes.string_at(0)


def leave(path: str) -> None:
    os._exit(3)


def eat(path: str) -> int:
    return len(bytearray(8 * 2**30))


def fail(path: str) -> float:
    return 1 / 0


def refuse(path: str) -> None:
    raise UserError(f"{path} is refused")


def sleep(path: str) -> None:
    time.sleep(600)


def arrays(count: int, size: int) -> list[UInt8[np.ndarray, " size"]]:
    return [np.full(size, i, np.uint8) for i in range(count)]


def strided() -> UInt8[np.ndarray, "6 4"]:
    return np.arange(48, dtype=np.uint8).reshape(6, 8)[::-1, ::2]


def process() -> tuple[int, list[str]]:
    """Returns the number of the process that runs this, and which heavy libraries it has loaded."""
    return os.getpid(), sorted({"jax", "torch", "tensorflow", "transformers", "grain"} & set(sys.modules))


def read_in_worker(reader: GuardedReader, path: str, answers: object) -> None:
    """What a data worker does: one call that hangs, one that reads."""
    try:
        reader.run(hang, "bad.mp4")
    except VideoError as error:
        answers.put(str(error))
    answers.put(len(reader.run(read_video, path, times_s=[0.0, 0.5]).frames))
    reader.close()


# Files


class Hostile(NamedTuple):
    """A file, and whether what is wrong with it can be known at all (flipped bits may decode)."""

    path: Path
    kind: str
    certain: bool


def good_videos(folder: Path) -> list[Path]:
    """Writes one small intact video of each common container."""
    ms = Fraction(1, 1000)
    write_video(folder / "good.mp4", range(FRAMES), Fraction(1, FPS), gop=6)
    write_video(folder / "good.mkv", range(0, 40 * FRAMES, 40), ms, gop=6)
    write_video(folder / "good.ts", range(0, 3600 * FRAMES, 3600), Fraction(1, 90000), gop=6)
    write_video(folder / "good.avi", range(FRAMES), Fraction(1, FPS), codec="mpeg4", gop=6)
    return [folder / f"good.{name}" for name in ("mp4", "mkv", "ts", "avi")]


def good_pictures(folder: Path) -> list[Path]:
    for name in ("good.jpg", "good.png"):
        Image.fromarray(draw(7)).save(folder / name)
    return [folder / "good.jpg", folder / "good.png"]


def hostile_files(folder: Path, seed: int = 0) -> list[Hostile]:
    """Writes about 300 files: damaged copies of intact ones, and those that were never videos."""
    rng = random.Random(seed)
    sources = folder / "sources"
    sources.mkdir()
    videos, pictures = good_videos(sources), good_pictures(sources)
    made: list[Hostile] = []

    def write(kind: str, suffix: str, data: bytes, certain: bool = True) -> None:
        path = folder / f"{len(made):03d}_{kind}{suffix}"
        path.write_bytes(data)
        made.append(Hostile(path, kind, certain))

    def flip(data: bytes, count: int, end: int | None = None) -> bytes:
        out = bytearray(data)
        for _ in range(count):
            out[rng.randrange(min(end or len(out), len(out)))] ^= 1 << rng.randrange(8)
        return bytes(out)

    for source in (*videos, *pictures):
        data, suffix = source.read_bytes(), source.suffix
        # An MPEG-TS nowhere says how long it should be; the last bytes of the others may be an index.
        for _ in range(15):
            cut = rng.randrange(1, len(data) * 9 // 10)
            write("truncated", suffix, data[:cut], certain=suffix not in (".ts", ".jpg", ".png"))
        for count in (1, 4, 16, 64, 256):
            write("bits", suffix, flip(data, count), certain=False)
            write("bits", suffix, flip(data, 2 * count), certain=False)
        for count in (1, 2, 4, 8, 32):
            write("header", suffix, flip(data, count, 600), certain=False)
            write("header_end", suffix, data[:-800] + flip(data[-800:], count), certain=False)
        for _ in range(5):
            at, length = rng.randrange(len(data) // 2), rng.randrange(1, len(data) // 2)
            write("zeros", suffix, data[:at] + bytes(length) + data[at + length :], certain=False)
            write("noise", suffix, data[:at] + rng.randbytes(length) + data[at + length :], certain=False)
        write("empty", suffix, b"")
        write("garbage", suffix, rng.randbytes(5000))
        write("text", suffix, b"<html>404 not found</html>\n")
        write("playlist", suffix, b"#EXTM3U\n#EXTINF:3,\n" + os.fsencode(videos[0]) + b"\n")

    write("ffconcat", ".mp4", b"ffconcat version 1.0\nfile 'sources/good.mp4'\n")
    write("sdp", ".mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\n")
    write("twice", ".ts", 2 * videos[2].read_bytes())  # its clock jumps back
    write("png_bomb", ".png", _png_header(16000, 16000))
    write("png_larger_bomb", ".png", _png_header(60000, 60000))
    write("moov_sizes", ".mp4", _absurd_sizes(videos[0].read_bytes()))

    def add(kind: str, suffix: str, write_file: Callable[[Path], object]) -> None:
        path = folder / f"{len(made):03d}_{kind}{suffix}"
        write_file(path)
        made.append(Hostile(path, kind, True))

    add("sound_only", ".mp4", _sound_only)
    add("bomb", ".mov", lambda path: huge_pictures(path, in_header=True))
    add("hidden_bomb", ".mov", lambda path: huge_pictures(path, in_header=False))
    ms, live = Fraction(1, 1000), {"live": "1"}  # so that no header says how long it is
    for suffix in (".mp4", ".mkv"):  # two pictures, ten hours between them
        add("still", suffix, lambda path: write_video(path, [0, 36_000_000], ms, last_duration=40))
    add("late", ".mkv", lambda p: write_video(p, [0, 36_000_000], ms, container_options=live))
    add("directory", ".mp4", Path.mkdir)
    add("pipe", ".mp4", os.mkfifo)
    add("loop", ".mp4", lambda path: path.symlink_to(path.name))
    add("missing", ".mp4", lambda path: None)
    return made


def _png_header(width: int, height: int) -> bytes:
    """Returns a PNG that promises a size, with a few rows of it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _absurd_sizes(data: bytes) -> bytes:
    """Returns an mp4 whose sample table says that it has 2^31 frames of 2^31 bytes."""
    at = data.index(b"stsz") + 8
    return data[:at] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + data[at + 8 :]


def _sound_only(path: Path) -> None:
    with av.open(str(path), "w") as out:
        out.mux(silence(out.add_stream("aac", rate=48000), 0.5))


def sideways_picture() -> bytes:
    """Returns a JPEG that must be turned by a quarter, as its EXIF says."""
    turned = Image.fromarray(np.rot90(draw(9)))
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    out = io.BytesIO()
    turned.save(out, "jpeg", exif=exif, quality=95)
    return out.getvalue()


SHORT = Limits(max_decode_s=1.0, max_memory_bytes=2 * 2**30)  # where a call is meant to hang

"""Hostile media files, made from a seed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from experiments.bench.numbered import draw, silence, write_video

MS, TICK = Fraction(1, 1000), Fraction(1, 90000)
_FRAMES = 40
_SAME = {"fflags": "bitexact"}  # no random ids
_AS_STORED = {"avoid_negative_ts": "disabled"} | _SAME
# Names of boxes and elements, after which a file's sizes, counts and times stand.
_FIELDS = (
    *b"mvhd tkhd mdhd stsd stsz stts ctts stco stsc elst moov mdat trun tfhd".split(),
    *b"avih strh strf idx1 movi LIST FLV\x01 onMetaData".split(),
    *b"\x1a\x45\xdf\xa3 \x44\x89 \x2a\xd7\xb1 \xb0 \xba \x23\xe3\x83 GIF89a NETSCAPE2.0".split(),
)
_WRONG_NAMES = ("mp4", "mkv", "avi", "ts", "flv", "gif", "webm", "mov", "txt", "jpg", "m3u8", "")


def make_media(folder: Path, count: int = 300, seed: int = 0) -> list[Path]:
    """Returns at least `count` paths in a new folder: good files of all kinds, and what chance made of them.

    They are remuxes with wrong timestamps, files cut, damaged, joined and misnamed, headers with absurd
    values, what is no video, and what is no file. The same seed does the same to them.
    """
    folder.mkdir(parents=True)
    good = _good_files(folder)
    made = [*good, *_remuxes(folder, good), *_no_videos(folder, good[0])]
    mutations: tuple[Callable[[random.Random, bytes], bytes], ...] = (
        *(_cut, _flip, _flip, _blank, _garble, _insert, _field, _field, _field, _repeat),
    )
    number = 0
    while len(made) < count:
        chance, source = random.Random(f"{seed} {number}"), good[number % len(good)]
        name = source.suffix[1:] if chance.random() < 0.8 else chance.choice(_WRONG_NAMES)
        data = source.read_bytes()
        for mutation in chance.choices(mutations, k=chance.choice((1, 1, 1, 2, 5))):
            data = mutation(chance, data)
        path = folder / f"mutant{number:04d}.{name}"
        path.write_bytes(data)
        made.append(path)
        number += 1
    return made


# Files that are as they should be


def _good_files(folder: Path) -> list[Path]:
    def every(step: int, start: int = 0) -> range:
        return range(start, start + step * _FRAMES, step)

    odd = np.cumsum([0, *random.Random(1).choices([7, 40, 90, 300], k=_FRAMES - 1)]).tolist()
    frames = {"pts": range(_FRAMES), "time_base": Fraction(1, 25)}
    ms = {"pts": every(40), "time_base": MS}
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    wanted = {
        "plain.mp4": frames,
        "faststart.mp4": frames | {"container_options": {"movflags": "faststart"}, "audio_s": 1.6},
        "fragments.mp4": frames | {"container_options": fragments},
        "fragments_sound.mp4": frames | {"container_options": fragments, "audio_s": 1.6},
        "sound_goes_on.mkv": ms | {"audio_s": 3.0},
        "sound_goes_on.flv": ms | {"audio_s": 3.0},
        "sound_stops.mp4": frames | {"audio_s": 0.5},
        "plain.mkv": ms,
        "live.mkv": ms | {"container_options": {"live": "1"}},
        "plain.ts": {"pts": every(3600), "time_base": TICK},
        "sound.ts": {"pts": every(3600), "time_base": TICK, "audio_s": 1.6},
        "plain.avi": frames | {"codec": "mpeg4"},
        "b_frames.avi": frames,
        "plain.flv": ms,
        "plain.mov": frames,
        "plain.mpg": frames | {"codec": "mpeg2video"},
        "plain.gif": frames | {"codec": "gif", "pix_fmt": "rgb8"},
        "vp9.webm": ms | {"codec": "libvpx-vp9"},
        "hevc.mp4": frames | {"codec": "libx265"},
        "odd_times.mp4": {"pts": odd, "time_base": MS},
        "odd_times.mkv": {"pts": odd, "time_base": MS},
        "late.ts": {"pts": every(3600, 900000), "time_base": TICK},
        "late.mkv": {"pts": every(40, 5000), "time_base": MS},
        "hidden_start.mp4": {
            "pts": every(3600, -36000), "time_base": TICK, "container_options": _AS_STORED,
        },
        "turned.mp4": frames | {"rotation": 90},
        "mirrored.mp4": frames | {"rotation": 180, "hflip": True},
        "odd_size.mp4": frames | {"size": (97, 161), "pix_fmt": "yuv444p"},
        "ten_bit.mp4": frames | {"pix_fmt": "yuv420p10le"},
        "tiny.mp4": frames | {"size": (16, 16)},
        "one_keyframe.mp4": frames | {"gop": 1000},
        "only_keyframes.mp4": frames | {"gop": 1},
        "two_frames.mp4": {"pts": range(2), "time_base": Fraction(1, 25)},
    }  # fmt: skip
    for name, how in wanted.items():
        how = how | {"container_options": _SAME | how.get("container_options", {})}
        write_video(folder / name, how.pop("pts"), how.pop("time_base"), **how)
    return [folder / name for name in wanted]


# The same packets with other times


def _remuxes(folder: Path, good: list[Path]) -> Iterator[Path]:
    def dts_only(number: int, packet: av.Packet) -> None:
        packet.pts = packet.dts

    def late(number: int, packet: av.Packet) -> None:
        packet.pts, packet.dts = packet.pts + 10**6, packet.dts + 10**6

    def early(number: int, packet: av.Packet) -> None:
        packet.pts, packet.dts = packet.pts - 10**4, packet.dts - 10**4

    def far(number: int, packet: av.Packet) -> None:
        packet.pts = packet.pts + (2**40 if number == 20 else 0)

    def twice(number: int, packet: av.Packet) -> None:
        packet.pts = packet.dts = number // 2 * 1000

    def no_length(number: int, packet: av.Packet) -> None:
        packet.duration = 0

    def at_once(number: int, packet: av.Packet) -> None:
        packet.pts = packet.dts = 0

    def restart(number: int, packet: av.Packet) -> None:
        packet.pts = packet.dts = number % 10 * 1000

    sources = [
        path
        for path in good
        if path.name in ("plain.mp4", "faststart.mp4", "plain.mkv", "only_keyframes.mp4")
    ]
    for source in sources:
        for change in (dts_only, late, early, far, twice, no_length, at_once, restart):
            for suffix in ("mp4", "mkv", "ts", "flv", "mov", "avi"):
                path = folder / f"{source.stem}_{source.suffix[1:]}_{change.__name__}.{suffix}"
                try:
                    remux(source, path, change, **_AS_STORED)
                except (av.FFmpegError, ValueError, TypeError, OverflowError):  # some muxers refuse
                    path.unlink(missing_ok=True)
                    continue
                yield path


def remux(
    source: Path, path: Path, change: Callable[[int, av.Packet], None] | None = None, **options: str
) -> Path:
    """Writes the same packets to another file; `change` may set other times on those of the video."""
    with av.open(str(source)) as read, av.open(str(path), "w", options=options) as out:
        tracks = {track.index: out.add_stream_from_template(track) for track in read.streams}
        number = 0
        for packet in read.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                if change is not None:
                    change(number, packet)
                number += 1
            packet.stream = tracks[packet.stream_index]
            out.mux(packet)
    return path


# What chance makes of the bytes


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _flip(chance: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 8, 64, 512))):
        if out:
            out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def _blank(chance: random.Random, data: bytes) -> bytes:
    start, length = chance.randrange(len(data) + 1), chance.randrange(1, len(data) // 4 + 2)
    return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]


def _garble(chance: random.Random, data: bytes) -> bytes:
    start, length = chance.randrange(len(data) + 1), chance.randrange(1, len(data) // 8 + 2)
    return data[:start] + chance.randbytes(min(length, len(data) - start)) + data[start + length :]


def _insert(chance: random.Random, data: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + chance.randbytes(chance.choice((1, 7, 188, 4096))) + data[start:]


def _repeat(chance: random.Random, data: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data + data[start:]


def _field(chance: random.Random, data: bytes) -> bytes:
    """Returns the file with an absurd value behind, or before, the name of a header's field."""
    names = [name for name in _FIELDS if name in data]
    if not names:
        return data
    name = chance.choice(names)
    at = data.index(name) + chance.choice((-4, len(name), len(name) + 4, len(name) + 8, len(name) + 12))
    value = chance.choice(
        (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\x80\0\0\0", chance.randbytes(4))
    )
    at = max(at, 0)
    return data[:at] + value + data[at + 4 :]


# What is no video, and what is no file


def _no_videos(folder: Path, good: Path) -> Iterator[Path]:
    data = good.read_bytes()
    texts = {
        "empty.mp4": b"",
        "one_byte.mkv": b"\0",
        "zeros.mp4": bytes(5000),
        "noise.avi": random.Random(0).randbytes(20000),
        "text.mp4": b"not a video\n" * 50,
        "page.webm": b"<!DOCTYPE html>\n<p>404 Not Found",
        "list.m3u8": b"#EXTM3U\n#EXTINF:3,\n" + os.fsencode(good) + b"\n",
        "list.mp4": b"\n#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1:9/v.mp4\n",
        "concat.txt": b"ffconcat version 1.0\nfile plain.mp4\n",
        "no_index.mp4": data[: data.index(b"moov") - 4],
        "index_alone.mp4": data[data.index(b"moov") - 4 :],
        "start_alone.mp4": data[:32],
        "a\nname.mp4": data,
        "-rf.mp4": data,
        "colon:1.mp4": data,
        os.fsdecode(b"bytes\xff\xfe.mp4"): data,
        "视频 🚗.mp4": data,
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
        yield folder / name
    for name in ("picture.png", "picture.jpg", "picture.webp", "picture.mp4"):
        Image.fromarray(draw(1)).save(folder / name, "PNG" if name.endswith("mp4") else None)
        yield folder / name
    for name in ("only_sound.m4a", "only_sound.mkv", "only_sound.ts"):
        with av.open(str(folder / name), "w", options=_SAME) as out:
            out.mux(silence(out.add_stream("aac", rate=48000), 0.5))
        yield folder / name
    for name, target in (
        *(("loop.mp4", "loop.mp4"), ("dangling.mp4", "nowhere.mp4"), ("zero.mp4", "/dev/zero")),
        *(("link.mp4", good.name), ("tree.mp4", ".")),
    ):
        (folder / name).symlink_to(target)
        yield folder / name
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    with open(folder / "sparse.mp4", "wb") as file:  # takes no room on the disk
        file.write(data)
        file.truncate(2**34)
    yield from (folder / name for name in ("folder.mp4", "pipe.mp4", "sparse.mp4"))

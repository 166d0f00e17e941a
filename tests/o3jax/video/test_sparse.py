"""Single frames for little decoding: each is the one that its time names, whatever the file claims."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from experiments.bench.numbered import draw
from o3jax.video.cues import read_cues
from o3jax.video.decoder import VideoFile
from o3jax.video.sparse import SparseReader
from tests.support.numbered import read_number, write_video

SIZE = (96, 160)
FPS = 5


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Two minutes at 5 frames per second, key frames every 10 s, in mp4."""
    folder = tmp_path_factory.mktemp("film")
    options = {"preset": "veryfast", "crf": "24", "sc_threshold": "0", "keyint_min": "50"}
    made = write_video(folder / "film.mp4", range(120 * FPS), Fraction(1, FPS), gop=50, codec_options=options)
    return made.path


def remuxed(source, target):
    with av.open(str(source)) as given, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return target


def keyframes_of(path):
    """When the frames start that a whole decoding calls key frames, seconds."""
    with av.open(str(path)) as container:
        frames = [(float(f.pts * f.time_base), f.key_frame) for f in container.decode(video=0)]
    return [time - frames[0][0] for time, is_key in frames if is_key]


def numbers(frames):
    return [(round(f.time_s * FPS), read_number(f.picture)) for f in frames]


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_frames_are_those_at_their_times(film, tmp_path, container):
    path = film if container == "mp4" else remuxed(film, tmp_path / f"film.{container}")
    with SparseReader(path) as reader:
        np.testing.assert_allclose(reader.cues.keyframes, keyframes_of(path), atol=0.5)
        assert (reader.cues.frames, round(reader.cues.rate, 2)) == (600, FPS)
        opened = reader.decoded
        found = numbers(reader.frames(range(0, 120, 10), SIZE))
        assert found == [(n, n) for n in range(0, 600, 50)] and reader.decoded - opened == 12
        asked = [3.1, 17.0, 19.9, 63.3]
        found = numbers(reader.frames(asked, SIZE))
        assert all(n == seen and abs(n / FPS - t) <= 0.5 for (n, seen), t in zip(found, asked, strict=True))
        # From three key frames, and of what lies between only what other frames need.
        assert 4 <= reader.decoded - opened - 12 < 16 + 50 + 17 and reader.forward is None


def test_one_forward_pass_where_key_frames_are_missing(tmp_path):
    path = write_video(tmp_path / "one.mp4", range(90 * FPS), Fraction(1, FPS), gop=10_000).path
    with SparseReader(path) as reader:
        assert numbers(reader.frames([80, 5, 40.1], SIZE)) == [(25, 25), (200, 200), (400, 400)]
        assert reader.decoded > 400 and "start to end" in reader.forward


def test_an_index_that_lies(film, tmp_path):
    """It names other frames as key frames than those that are."""
    data = bytearray(film.read_bytes())
    at = data.index(b"stss")
    (count,) = struct.unpack_from(">I", data, at + 8)
    claimed = struct.unpack_from(f">{count}I", data, at + 12)
    struct.pack_into(f">{count}I", data, at + 12, claimed[0], *(n + 23 for n in claimed[1:]))
    path = tmp_path / "lies.mp4"
    path.write_bytes(data)
    with SparseReader(path) as reader:
        found = numbers(reader.frames(np.arange(0, 118, 4.6), SIZE))
        assert len(found) > 20 and all(n == seen for n, seen in found)
        assert "index" in str(reader.forward) and any("index" in note for note in reader.notes())


def test_a_middle_that_cannot_be_decoded(film, tmp_path):
    """Said, and searched around."""
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        packets = [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]
    for pos, size, pts in packets:
        if 0.35 < pts / packets[-1][2] < 0.6:  # from 42 to 72 s
            data[pos + 5 : pos + size] = bytes(size - 5)
    path = tmp_path / "torn.mp4"
    path.write_bytes(data)
    with SparseReader(path) as reader:
        found = numbers(reader.frames(range(0, 120, 10), SIZE))
        assert all(n == seen for n, seen in found) and reader.forward is None
        times = {n // FPS for n, _ in found}
        assert {0, 10, 20, 30, 40, 80, 90, 100, 110} <= times and not {50, 60} & times
        assert {50.0, 60.0} <= set(reader.lost) and reader.notes()


def test_packets_say_where_much_changes_and_where_the_scene_does(tmp_path):
    """Events of known times on a resting picture; the truth is what was drawn."""
    rest = draw(0, *SIZE)
    other = np.tile((np.arange(SIZE[1]) * 9 % 256).astype(np.uint8)[None, :, None], (SIZE[0], 1, 3))
    events = [(23.0, 27.0), (61.0, 63.0)]
    path = tmp_path / "events.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width = SIZE
        stream.gop_size, stream.thread_count = 100, 1
        stream.options = {"preset": "veryfast", "crf": "24"}
        for number in range(900):
            t = number / 10
            picture = (other if t >= 74.5 else rest).copy()
            if any(start <= t < end for start, end in events):
                picture[30:60, 40:80] = rng.integers(0, 255, (30, 40, 3))
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    file = VideoFile(path)
    cues = read_cues(file)
    file.close()
    found = [interval for interval, _ in cues.busy()]
    for start, end in events:
        assert any(a <= start + 1 and b >= end - 1 and b - a <= end - start + 2 for a, b in found)
    assert all(any(a < end + 1 and b > start - 1 for start, end in [*events, (74, 75)]) for a, b in found)
    assert any(abs(t - 74.5) < 0.5 for t in cues.cuts())
    spans = [*events, (74.5, 74.5)]
    assert all(any(a - 0.5 < t < b + 0.5 for a, b in spans) for t in cues.cuts())

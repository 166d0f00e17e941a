"""Hostile media: made from a seed, of all kinds, and each refused in a sentence or read."""

from __future__ import annotations

import hashlib
import os
import stat
from fractions import Fraction
from pathlib import Path

from data_pipelines.reading.guarded import GuardedReader, Limits
from experiments.hostility.media import make_media, remux
from o3jax.errors import UserError
from o3jax.video import OpenVideo, probe, read_video
from tests.support.numbered import read_number, write_video


def contents(path: Path) -> str:
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode) or os.path.getsize(path) > 2**30:
        return f"{stat.S_IFMT(mode)} {os.path.getsize(path) if stat.S_ISREG(mode) else ''}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_hostile_files_are_read_or_refused_in_one_sentence(tmp_path):
    paths = make_media(tmp_path / "a", 320, seed=3)
    again = make_media(tmp_path / "b", 320, seed=3)
    assert len(paths) == len(set(paths)) >= 320
    assert [p.name for p in paths] == [p.name for p in again]
    assert [p.name for p in make_media(tmp_path / "c", 320, seed=4)] != [p.name for p in paths]
    # Encoders do not make the same bytes each time; where they do, so does chance.
    same = [contents(a) == contents(b) for a, b in zip(paths, again, strict=True)]
    assert sum(same) > 100
    kinds = {stat.S_IFMT(os.lstat(path).st_mode) for path in paths}
    assert kinds == {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO}

    reader = GuardedReader(Limits(max_decode_s=30.0))
    read = 0
    for path in paths[::3]:
        for function, asked in ((probe, {}), (read_video, {"times_s": [0.0, 0.5], "size": (16, 16)})):
            try:
                read += bool(reader.run(function, path, **asked))
            except UserError as error:
                sentence = str(error).replace(str(path), "")
                assert "reading it failed" not in sentence and "the process" not in sentence, (path, sentence)
                assert len(sentence) < 400 and sentence.endswith("."), sentence
    assert read > 60 and reader.replaced == 0
    reader.close()


def test_a_time_far_in_the_future_is_told_and_loses_no_frame(tmp_path):
    """What follows comes back to the clock from before: each number is read where its frame is said to be."""
    write_video(tmp_path / "good.mkv", range(0, 1600, 40), Fraction(1, 1000), gop=1)

    def far(number, packet):
        packet.pts += 2**40 if number == 20 else 0

    path = remux(tmp_path / "good.mkv", tmp_path / "far.mkv", far)
    with OpenVideo(path) as video:
        times, notes = list(video.frame_times()), video.notes()
    assert len(times) == 40 and any("clock jumps back 1 times" in str(note) for note in notes)
    clip = read_video(path, times_s=[time + 0.01 for time in times])
    assert [read_number(frame) for frame in clip.frames] == list(range(40))

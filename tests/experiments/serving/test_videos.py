"""What is read in processes with limits is what the library reads itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_pipelines.reading.guarded import Limits
from experiments.serving.engine import Ask, _Texts
from experiments.serving.videos import PICTURE, Videos
from o3jax.prompts.clock import Clock
from o3jax.video import OpenVideo, VideoError, Wanted
from o3jax.video.sparse import SparseReader


@pytest.fixture(scope="module")
def videos():
    videos = Videos(Limits(max_duration_s=60))
    yield videos
    videos.close()


def same(one, other):
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_array_equal(one.times_s, other.times_s)
    assert (one.duration_s, one.size, one.status, one.notes) == (
        *(other.duration_s, other.size, other.status),
        other.notes,
    )


def test_a_video(videos, numbered):
    wanted = Wanted(times_s=[0.5, 3.0, 1.0]), Wanted(5.0, start_s=1.0, end_s=2.5, size=(48, 80))
    times = np.array([0.3, 2.2])
    with OpenVideo(numbered.path) as ours, videos.open(numbered.path, "auto", keep_bytes=5) as theirs:
        assert theirs.info() == ours.info()
        for one, other in zip(theirs.read(*wanted), ours.read(*wanted), strict=True):
            same(one, other)
        for one, other in zip(theirs.frames_at(times), ours.frames_at(times), strict=True):
            np.testing.assert_array_equal(one, other)


def test_single_frames(videos, clip):
    with SparseReader(clip) as ours, videos.open_sparse(clip) as theirs:
        assert (theirs.size, theirs.duration_s, theirs.forward) == (ours.size, ours.duration_s, ours.forward)
        times = np.arange(0, 6, 0.1)  # in several parts
        found, expected = (list(one.frames(times, (64, 64))) for one in (theirs, ours))
        assert [frame.time_s for frame in found] == [frame.time_s for frame in expected] and len(found) > 32
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.picture, other.picture)
        assert (theirs.decoded, theirs.lost, theirs.notes()) == (ours.decoded, ours.lost, ours.notes())
        assert theirs.cues.keyframes.tolist() == ours.cues.keyframes.tolist()


def test_a_picture(videos, tmp_path):
    path = tmp_path / "x.data"  # what it is called does not matter
    Image.new("RGB", (50, 40), (255, 0, 0)).save(path, "PNG")
    with videos.open(path) as picture:
        assert picture.info().codec == PICTURE and picture.info().frames == 1
        large, small = picture.read(Wanted(times_s=[0.0]), Wanted(25.0, size=(16, 32)))
        assert large.frames.shape == (1, 40, 50, 3) and small.frames.shape == (1, 16, 32, 3)
        assert (large.frames == (255, 0, 0)).all() and large.size == (40, 50)


def test_what_cannot_be_read(videos, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"\0" * 1000)
    for read in (videos.info, videos.open_sparse):
        with pytest.raises(VideoError, match="not a video"):
            read(path)


def test_streamed_times_are_those_of_the_video():
    """A model of windows counts from a window's start; a number that may go on waits."""
    told, pieces = [], ["at ", "<t>", "1", ".", "5", "</t>", "s", ""]
    job = SimpleNamespace(ask=Ask("When?", None, max_tokens=99), tell=lambda *event: told.append(event[1]))
    decode = SimpleNamespace(decode=lambda tokens: "".join(pieces[token] for token in tokens))
    model = SimpleNamespace(processor=decode, eos_ids=(7,))
    texts = _Texts(job, model)
    texts.clock, texts.begun = Clock.of_windows([(100.0, 106.0)], 1.0), ""
    for count in (2, 3, 4, 5, 6, 8):
        texts._said(np.arange(count))
    assert told[:4] == ["at <t>"] * 4 and told[4:] == ["at <t>101.5</t>", "at <t>101.5</t>s"] and job.ended

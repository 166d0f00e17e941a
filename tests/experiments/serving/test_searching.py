"""A stranger's long video is searched in processes with limits, like one's own in this one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.reading.guarded import Limits
from experiments.serving.videos import Videos
from o3jax.video import VideoError
from o3jax.video.sparse import SparseReader
from tests.support.numbered import read_number, write_video


@pytest.fixture(scope="module")
def videos():
    made = Videos(Limits(), processes=1)
    yield made
    made.close()


def test_frames_are_the_same(videos, tmp_path):
    options = {"preset": "veryfast", "sc_threshold": "0", "keyint_min": "25"}
    path = write_video(tmp_path / "a.mp4", range(200), Fraction(1, 5), gop=25, codec_options=options).path
    times = [0.0, 5.0, 12.2, 30.0, 39.0]
    with SparseReader(path) as own, videos.open_sparse(path) as guarded:
        np.testing.assert_array_equal(guarded.cues.keyframes, own.cues.keyframes)
        assert (guarded.duration_s, guarded.size, guarded.forward) == (own.duration_s, own.size, None)
        expected = [(f.time_s, read_number(f.picture)) for f in own.frames(times, own.size)]
        found = [(f.time_s, read_number(f.picture)) for f in guarded.frames(times, own.size)]
        assert found == expected and len(found) == 5 and guarded.decoded > 0 and not guarded.lost


def test_what_is_no_video_is_refused(videos, tmp_path):
    path = tmp_path / "b.mp4"
    path.write_bytes(bytes(5000))
    with pytest.raises(VideoError):
        videos.open_sparse(path)

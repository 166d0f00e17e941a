"""The video reader against videos whose frames say which frame they are (tests/support/videos.py)."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3jax.video import OpenVideo, VideoError, Wanted, picture, probe, read_video
from o3jax.video import reader as video
from o3jax.video.decoder import VideoFile
from tests.support.numbered import draw, read_number, write_video
from tests.support.written import MS, WRITERS

SHOWN_WHOLE = [name for name in WRITERS if not name.startswith(("long", "one_", "faststart"))]


def numbers(clip: video.Clip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


@pytest.mark.parametrize("name", SHOWN_WHOLE)
def test_every_presented_frame_is_the_right_one(made, name):
    fixture = made(name)
    for fps in (25, 10):
        clip = read_video(fixture.path, fps=fps)
        assert numbers(clip) == fixture.numbers_at(fps)
        np.testing.assert_allclose(clip.times_s, np.arange(len(clip.frames)) / fps, atol=1e-9)
    assert clip.status == "complete" and clip.duration_measured
    assert clip.duration_s == pytest.approx(float(fixture.end), abs=1e-3)
    assert clip.source_fps == pytest.approx(len(fixture.times) / float(fixture.end), rel=1e-3)
    untold = ("20 frames without a timestamp are not shown",) if name == "negative.mkv" else ()
    assert clip.notes == untold


@pytest.mark.parametrize("fps", [Fraction(30), Fraction(30000, 1001), Fraction(60)])
def test_a_file_read_at_its_own_rate_shows_each_frame_once(tmp_path, fps):
    # mkv rounds 66.67 ms to 67: taken literally, frame 1 would still be shown at 2/30 s.
    fixture = write_video(tmp_path / "v.mkv", [round(i * 1000 / fps) for i in range(61)], MS)
    assert numbers(read_video(fixture.path, fps=float(fps))) == list(range(61))


@pytest.mark.parametrize(
    "name", ["cfr25.mp4", "vfr.mkv", "cfr25.ts", "mpeg4.ts", "edit_list.mp4", "negative.mkv", "b_frames.avi"]
)
def test_times_in_any_order_show_what_a_viewer_sees(made, name):
    fixture = made(name)
    # A fifth of a millisecond past a whole one: no frame starts nearer than the reader's tolerance.
    moments = st.integers(0, int(fixture.end * 1000) - 1).map(lambda ms: ms * MS + MS / 5)

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(st.lists(moments, min_size=1, max_size=6))
    def check(times):
        clip = read_video(fixture.path, times_s=[float(t) for t in times])
        assert clip.times_s.tolist() == [float(t) for t in times]
        assert numbers(clip) == [fixture.shown_at(t) for t in times]

    check()


@pytest.mark.parametrize("name, at_most", [("long.mp4", 80), ("long.mkv", 80), ("long.ts", 130)])
def test_sparse_reads_decode_few_frames(made, name, at_most):
    fixture = made(name)
    clip = read_video(fixture.path, fps=0.2)
    assert numbers(clip) == [0, 125, 250, 375]
    assert clip.decoded_frames <= at_most < len(fixture.times) / 3
    last = read_video(fixture.path, times_s=[19.5])
    assert numbers(last) == [487] and last.decoded_frames <= 60


@pytest.mark.parametrize("name", ["one_keyframe.mp4", "one_keyframe.ts"])
def test_seeking_never_costs_more_than_reading_on(made, name):
    fixture = made(name)
    clip = read_video(fixture.path, fps=0.8)
    assert numbers(clip) == fixture.numbers_at(Fraction(4, 5))
    # Without an index one or two seeks in vain teach the reader to read on.
    extra = 3 if name.endswith("mp4") else 150
    assert clip.decoded_frames <= len(fixture.times) + extra


def test_part_of_a_video_keeps_the_grid_of_the_whole(made):
    fixture = made("cfr60.mp4")
    clip = read_video(fixture.path, fps=10, start_s=0.95, end_s=1.5)
    assert clip.times_s.tolist() == [1.0, 1.1, 1.2, 1.3, 1.4]
    assert numbers(clip) == [60, 66, 72, 78, 84]
    with pytest.raises(VideoError, match="no frame can be shown"):
        read_video(fixture.path, start_s=60)


def test_the_end_of_the_video(made):
    path = made("cfr25.mp4").path  # 3 s
    assert numbers(read_video(path, times_s=[3.01, 2.99, 0])) == [74, 74, 0]
    for t in (3.03, 1e300):
        with pytest.raises(VideoError, match=r"past the end of the video \(3\.000 s\)"):
            read_video(path, times_s=[1.0, t])


@pytest.mark.parametrize(
    "name, size", [("cfr25.mp4", (48, 80)), ("rotated90.mp4", (200, 97)), ("odd.mp4", (64, 64))]
)
def test_resized_frames_are_the_same_pictures(made, name, size):
    fixture = made(name)
    clip, original = read_video(fixture.path, fps=5, size=size), read_video(fixture.path, fps=5)
    assert clip.frames.shape[1:] == (*size, 3) and numbers(clip) == numbers(original)
    assert clip.size == original.size == original.frames.shape[1:3]
    red, blue = clip.frames[0, size[0] // 2, size[1] // 4], clip.frames[0, size[0] // 2, 3 * size[1] // 4]
    np.testing.assert_allclose([red, blue], [[220, 0, 0], [0, 0, 220]], atol=25)


@pytest.mark.parametrize(
    "name, size", [("rotated90.mp4", (160, 96)), ("rotated180.mp4", (96, 160)), ("odd.mp4", (97, 161))]
)
def test_size_is_that_of_the_displayed_picture(made, name, size):
    clip = read_video(made(name).path, fps=1)
    info = probe(made(name).path)
    assert clip.size == clip.frames.shape[1:3] == (info.height, info.width) == size


def test_threads_do_not_change_the_frames(made):
    path = made("vfr.mp4").path
    one, many = read_video(path), read_video(path, threads="auto")
    np.testing.assert_array_equal(one.frames, many.frames)


def test_probe_decodes_one_frame(made):
    info = probe(made("rotated-90.mkv").path)
    assert (info.codec, info.rotation, info.frames) == ("h264", 270, 30)
    assert (info.duration_s, info.fps) == pytest.approx((1.2, 25.0))
    for name, duration in [("live.mkv", 3.0), ("late.mkv", 2.4), ("late.mp4", 2.4), ("edit_list.mp4", 2.4)]:
        assert probe(made(name).path).duration_s == pytest.approx(duration, abs=2e-3), name
    opened = VideoFile(made("live.mkv").path)  # its header has no duration: the packets are counted
    assert opened.timeline.duration() == pytest.approx(3.0) and opened.decoded == 1
    opened.close()


def test_side_data_is_asked_for_once(tmp_path, monkeypatch):
    """PyAV does not give back what it keeps of it: 10 kB for a reading of a dozen frames."""
    asked, orientation = [], picture.orientation
    monkeypatch.setattr(picture, "orientation", lambda frame: asked.append(frame) or orientation(frame))
    path = write_video(tmp_path / "v.mp4", range(30), Fraction(1, 25), rotation=90).path
    assert [read_number(frame) for frame in read_video(path).frames] == list(range(30))
    assert len(asked) == 1


def test_declared_pixel_shape_is_reported(tmp_path):
    with av.open(str(tmp_path / "v.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        out.mux(
            stream.encode(av.VideoFrame.from_ndarray(draw(5)).reformat(format="yuv420p"))
            + stream.encode(None)
        )
    clip = read_video(tmp_path / "v.mp4")
    assert numbers(clip) == [5] and clip.frames.shape == (1, 96, 160, 3)
    assert clip.notes == ("pixels are declared not square (4/3); frames are shown as stored",)


def count_opened(monkeypatch) -> list[VideoFile]:
    """Returns a list that every file is added to that is opened from now on."""
    opened, restart = [], VideoFile._restart
    monkeypatch.setattr(VideoFile, "_restart", lambda self: opened.append(self) or restart(self))
    return opened


@pytest.mark.parametrize(
    "name", ["cfr25.mp4", "vfr.mkv", "cfr60.mp4", "rotated90.mp4", "b_frames.avi", "long.ts"]
)
def test_streams_of_one_pass_are_those_of_passes_of_their_own(made, name, monkeypatch):
    path = made(name).path
    wanted = [Wanted(times_s=[0.7, 0.0, 1.1, 0.7]), Wanted(size=(32, 64)), Wanted(fps=7, end_s=1.0)]
    alone = [
        read_video(path, times_s=[0.7, 0.0, 1.1, 0.7]),
        read_video(path, size=(32, 64)),
        read_video(path, fps=7, end_s=1.0),
    ]
    opened = count_opened(monkeypatch)
    with OpenVideo(path, keep_bytes=2**30) as opened_video:
        assert opened_video.info() == probe(path)
        together = opened_video.read(*wanted)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.times_s, other.times_s)
        assert one.decoded_frames == len(made(name).times)
    assert len(set(opened)) == 2  # the probe's is the other one
    asked = together[1].times_s[[3, 0, 3, -1]]
    frames, times = opened_video.frames_at(asked)
    assert len(opened) == 2 and opened[0].decoded == len(made(name).times)
    np.testing.assert_array_equal(times, asked)
    np.testing.assert_array_equal(frames, read_video(path, times_s=asked).frames)


def test_what_is_not_kept_is_decoded_again(made, monkeypatch):
    path = made("cfr25.mp4").path
    frame = 256 * 96 * 3 // 2  # bytes: rows are padded to 256 pixels
    opened = count_opened(monkeypatch)
    with OpenVideo(path, keep_bytes=10 * frame) as video:
        video.read(Wanted(size=(32, 64)))
    for asked, files_opened in [([0.0, 0.36], 1), ([0.0, 0.4], 2), ([2.0], 3)]:
        frames, _ = video.frames_at(np.array(asked))
        assert len(opened) == files_opened and [read_number(f) for f in frames] == [
            round(t * 25) for t in asked
        ]

"""The synthetic world: what is drawn, the rules of its levels, the same again."""

import collections
import dataclasses
import itertools
import math

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data_pipelines.synthetic import drawing
from data_pipelines.synthetic import scenes as synthetic
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene, scene_seed
from data_pipelines.synthetic.words import object_name
from tests.support.worlds import scenes


def still(scene, **changes):
    """The scene without what moves in front of the objects, and without noise."""
    return dataclasses.replace(scene, occluder=None, **changes)


# --- what is drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2])
def test_the_annotated_box_is_the_extent_of_the_changed_pixels(level):
    seen = collections.Counter()
    for scene in scenes(level, 12):
        height, width = scene.size
        for thing in scene.objects:
            start, end = thing.visible[0]
            times = [start, (start + end) / 2, end - 0.04]
            empty = still(scene, objects=()).render(times).astype(int)
            drawn = still(scene, objects=(thing,)).render(times).astype(int)
            for time, difference in zip(times, np.abs(drawn - empty).max(-1), strict=True):
                rows, columns = np.nonzero(difference > 0.1 * difference.max())
                extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                box = np.array(thing.box(time)) * [width, height, width, height]
                np.testing.assert_allclose(extent, box, atol=1.0, err_msg=f"{scene.id} {thing.shape}")
                seen[thing.shape] += 1
    assert set(seen) == set(synthetic.SHAPES)


def test_shapes_equal_polygons_drawn_by_pillow():
    tips = [(math.sin(math.pi * i / 5), -math.cos(math.pi * i / 5)) for i in range(10)]
    star = np.array([(x, y) if i % 2 == 0 else (0.45 * x, 0.45 * y) for i, (x, y) in enumerate(tips)])
    star = (star - star.min(0)) / (star.max(0) - star.min(0))
    outlines = {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "triangle": [(0.5, 0), (1, 1), (0, 1)],
        "star": star.tolist(),
    }
    for shape, outline in outlines.items():
        frame = np.zeros((1, 420, 420, 3), np.uint8)
        box = np.array([[10.0, 10.0, 410.0, 410.0]])
        drawing.draw_shape(frame, np.array([0]), box, shape, (255, 255, 255))
        image = Image.new("L", (420, 420))
        ImageDraw.Draw(image).polygon([(10 + 400 * x, 10 + 400 * y) for x, y in outline], fill=255)
        ours, theirs = frame[0, ..., 0] > 127, np.array(image) > 127
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.98, shape
    frame[:] = 0
    drawing.draw_shape(frame, np.array([0]), box, "circle", (255, 255, 255))
    assert abs((frame[0, ..., 0] > 127).mean() * 420**2 / (math.pi * 200**2) - 1) < 0.005


def test_visible_intervals_are_exact_in_the_decoded_mp4(tmp_path):
    for scene in scenes(1, 4):
        write_video(scene, tmp_path / "clip.mp4")
        with av.open(str(tmp_path / "clip.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == 25
            decoded = list(container.decode(stream))
        assert [frame.time for frame in decoded] == pytest.approx(np.arange(150) / 25)
        pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(float)
        assert np.abs(pixels - scene.render(np.arange(150) / 25)).mean() < 3
        for thing in scene.objects:
            span = thing.spans[0]
            shown = []
            for number, (x1, y1, x2, y2) in enumerate(span.boxes_px(np.arange(150))):
                x, y = round((x1 + x2) / 2), round((y1 + y2) / 2)
                patch = pixels[number, max(y - 3, 0) : max(y + 3, 0), max(x - 3, 0) : max(x + 3, 0)]
                near = patch.size and np.linalg.norm(patch.mean((0, 1)) - thing.rgb) < 45
                shown += [number / 25] if near else []
            assert (shown[0], shown[-1] + 1 / 25) == pytest.approx(thing.visible[0]), scene.id
            assert len(shown) == span.stop - span.first


def test_a_frame_is_shown_until_the_next_one():
    scene = scenes(2, 1)[0]
    thing = scene.objects[0]
    times = [0.08, 0.1, 0.1199, 0.12, 3 * 0.04, 7.96, 8.0]
    first, *_ = frames = scene.render(times)
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(frames)]
    assert same == [True, True, False, True, False, True]
    assert np.array_equal(scene.render([0.1])[0], first)  # whatever else is rendered
    start, end = thing.visible[0]
    assert thing.box(start + 0.041) == thing.box(start + 0.079) != thing.box(start + 0.08)
    assert thing.box(end) is None and thing.box(end - 0.001) is not None
    with pytest.raises(ValueError, match="0-8.0 s"):
        scene.render([8.01])


def test_the_whole_world_drifts_with_the_camera():
    scene = next(s for s in scenes(2, 20) if min(map(abs, s.drift)) * s.duration > 6)
    first, last = still(scene, objects=()).render([0, scene.duration]).astype(float)
    x, y = (round(v * (scene.duration - 0.04)) for v in scene.drift)
    moved = np.roll(first, (y, x), (0, 1))[30:-30, 30:-30]
    error, unmoved = (np.abs(last[30:-30, 30:-30] - a).mean() for a in (moved, first[30:-30, 30:-30]))
    assert error < 1 and unmoved > 2 * error


def test_the_occluder_hides_every_part_of_the_frame_but_never_a_whole_object():
    for scene in scenes(2, 4) + scenes(3, 2):
        bar = scene.occluder
        assert bar.width < min(b[2] - b[0] for o in scene.objects for s in o.spans for b in ends(s))
        path = bar.start + bar.velocity * np.array([0, scene.duration])
        assert path.min() <= -bar.width / 2 + 1e-6 and path.max() >= scene.size[1] + bar.width / 2 - 1e-6
        time = (scene.size[1] / 2 - bar.start) / bar.velocity
        frame = scene.render([time])[0].astype(int)
        shift = abs(bar.velocity) / 25  # the bar may have gone on within the frame's time
        columns = np.abs(np.arange(scene.size[1]) + 0.5 - scene.size[1] / 2) < bar.width / 2 - 1 - shift
        assert not columns.any() or np.abs(np.median(frame[:, columns]) - bar.rgb[0]) < 8


def ends(span):
    return span.boxes_px(np.array([span.first, span.stop - 1]))


# --- the rules of the levels -----------------------------------------------------------------------


def test_level_1_keeps_its_rules():
    at_start = at_end = 0
    for scene in scenes(1, 150):
        assert (scene.duration, scene.fps, scene.size) == (6.0, 25, (128, 128))
        assert len(scene.objects) in (2, 3)
        assert len({o.color for o in scene.objects}) == len(scene.objects)
        boxes = [[o.box(k / 25) for k in range(150)] for o in scene.objects]
        for thing, track in zip(scene.objects, boxes, strict=True):
            ((start, end),) = thing.visible
            assert [box is not None for box in track] == [start <= k / 25 < end for k in range(150)]
            assert end - start >= 1.2 - 1e-9
            shown = np.array([box for box in track if box]) * 128
            assert shown.min() >= 0 and shown.max() <= 128
            sides = shown[:, 2:] - shown[:, :2]
            assert sides.min() >= 28 - 1e-6 and sides.max() <= 44 + 1e-6 and np.ptp(sides) < 1e-6
            steps = np.diff(shown[:, :2], axis=0) * 25
            assert np.ptp(steps, axis=0).max() < 1e-6 and np.hypot(*steps[0]) <= 25 + 1e-6
            at_start += start == 0
            at_end += end == 6
        for side in (0, 1):
            events = sorted(o.visible[0][side] for o in scene.objects)
            assert all(b - a >= 0.4 - 1e-9 for a, b in itertools.pairwise(events))
        for one, other in itertools.combinations(boxes, 2):
            assert max((iou(a, b) for a, b in zip(one, other, strict=True) if a and b), default=0) <= 0.05
    assert 30 < at_start < 100 and 30 < at_end < 120  # of some 375 objects


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def test_levels_2_and_3_add_what_they_should():
    two, three = scenes(2, 40), scenes(3, 40)
    for scene in two + three:
        looks = [(o.color, o.shape) for o in scene.objects]
        assert len(set(looks)) == len(looks)
        colors, shapes = zip(*looks, strict=True)
        assert len(set(colors)) < len(colors) and len(set(shapes)) < len(shapes)
        assert max(abs(s.growth) for o in scene.objects for s in o.spans) > 0.1
        assert any(scene.drift) and scene.occluder is not None
        for thing, (first, last) in ((o, ends(s)) for o in scene.objects for s in o.spans):
            height, width = thing.size
            for box in (first, last):
                assert min(box) >= 0 and box[2] <= width and box[3] <= height
    assert all(30 <= s.duration <= 90 for s in three)
    assert any(len(o.visible) == 2 for s in three for o in s.objects)
    assert min(s.side / s2.size[1] for s2 in three for o in s2.objects for s in o.spans) < 0.08
    plain = still(three[0], objects=())
    again = plain.render([1.0, 1.0, 1.04]).astype(int)
    assert np.array_equal(again[0], again[1]) and (again[0] != again[2]).mean() > 0.5


def test_level_4_is_an_hour_with_a_few_short_events():
    for scene in scenes(4, 30):
        assert (scene.duration, scene.size) == (3600.0, (128, 128)) and 6 <= len(scene.objects) <= 9
        looks = [(o.color, o.shape) for o in scene.objects]
        assert len(set(looks)) == len(looks)
        for i in (0, 1):  # others share the colour, or the shape
            assert len({look[i] for look in looks}) < len(looks)
        shown = [end - start for o in scene.objects for start, end in o.visible]
        assert len(shown) == len(looks) and min(shown) >= 3 and max(shown) <= 20
        start, end = scene.objects[0].visible[0]
        assert not scene.is_still(start, start + 0.04) and not scene.is_still(end - 0.04, end)
        never = make_samples(dataclasses.replace(scene, kinds=("never",)))[0]
        (name,) = [
            f"{c} {s}" for c in synthetic.COLORS for s in synthetic.SHAPES for language in ("en", "zh")
            if object_name(c, s, language) in never.question
        ]  # fmt: skip
        assert tuple(name.split()) not in looks and not never.mentions and not never.intervals


def test_a_resting_picture_is_encoded_like_any_other(tmp_path, monkeypatch):
    """The file is that of a scene whose every frame was drawn; key frames are 10 s apart, at a cut less."""
    scene = make_scene(5, 4, seconds=60)
    assert any(scene.is_still(t, t + 10) for t in range(0, 60, 10))
    write_video(scene, tmp_path / "a.mp4")
    monkeypatch.setattr(synthetic.Scene, "is_still", lambda *_: False)
    write_video(scene, tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert len(packets) == 1500
    keys = [float(p.pts * p.time_base) for p in packets if p.is_keyframe]
    assert max(np.diff([*keys, 60])) == pytest.approx(10) and len(keys) < 20


@given(
    *[st.tuples(st.sampled_from(["train", "val", "test"]), st.integers(0, 2**40 - 1), st.integers(0, 99))] * 2
)
def test_no_two_clips_of_any_splits_share_a_seed(one, other):
    assert (scene_seed(*one) == scene_seed(*other)) == (one == other)


def test_the_splits_are_residue_classes():
    number = 10**6
    for residue, split in enumerate(("train", "val", "test")):
        assert {scene_seed(split, i) % 3 for i in range(0, number, 997)} == {residue}
        assert [scene_seed(split, i) // 3 for i in (0, 1, number)] == [0, 1, number]


def test_a_scene_follows_from_its_seed_alone():
    for level in synthetic.LEVELS:
        seed = scene_seed("train", 5)
        one, again, other = make_scene(seed, level), make_scene(seed, level), make_scene(seed + 3, level)
        assert one == again != other
        assert make_samples(one) == make_samples(again)
        assert np.array_equal(one.render([1, 2.5]), again.render([1, 2.5]))
        assert not np.array_equal(one.render([0]), other.render([0]))
        more = make_samples(make_scene(seed, level, 5), "en")
        asked = {sample.kind: sample for sample in more}
        assert all(asked[s.kind] == s for s in make_samples(one, "en"))  # more questions change none


def test_the_world_has_not_changed():
    """Figures of different versions are comparable only as long as this holds."""
    (sample,) = make_samples(make_scene(0, questions=1), "en")
    assert (sample.id, sample.question) == (
        "l1-0-interval-en",
        "In which interval is the yellow circle visible?",
    )
    assert sample.answer == "From <t>0.4</t>s to <t>1.7</t>s"
    assert sample.reasoning == (
        "yellow circle 0.4-1.7; red circle 2.1-5.6; blue circle 2.5-4.8. "
        "<obj>yellow circle</obj><box>[0.471,0.366,0.715,0.610]</box>at<t>1.0</t>s, "
        "visible from <t>0.4</t>s to <t>1.7</t>s."
    )
    assert sample.intervals == ((0.44, 1.72),) and sample.mentions[0].time_s == 1.0
    zh = make_samples(make_scene(0, questions=1), "zh")[0]
    assert zh.answer == "从<t>0.4</t>s到<t>1.7</t>s"
    assert zh.reasoning == (
        "黄色圆形 0.4-1.7;红色圆形 2.1-5.6;蓝色圆形 2.5-4.8。"
        "<obj>黄色圆形</obj><box>[0.471,0.366,0.715,0.610]</box>at<t>1.0</t>s,从<t>0.4</t>s到<t>1.7</t>s可见。"
    )


def test_an_mp4_has_the_same_bytes_again_and_no_partial_file_stays(tmp_path, monkeypatch):
    scene = scenes(1, 1)[0]
    for name in ("a.mp4", "b.mp4"):
        write_video(scene, tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    write_video(scene, tmp_path / "small.mp4", crf=40)
    assert (tmp_path / "small.mp4").stat().st_size < 0.7 * (tmp_path / "a.mp4").stat().st_size

    def broken(self, times_s):
        yield from [np.zeros((*self.size, 3), np.uint8)] * 100
        assert list(tmp_path.glob(".c.mp4.*.part")) and not (tmp_path / "c.mp4").exists()
        raise ZeroDivisionError

    monkeypatch.setattr(synthetic.Scene, "render", broken)
    with pytest.raises(ZeroDivisionError):
        write_video(scene, tmp_path / "c.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "small.mp4"]

"""The synthetic world against what can be seen in its frames, and its records against themselves."""

import collections
import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data_pipelines import stgr, synthetic
from data_pipelines import synthetic_drawing as drawing
from data_pipelines.sample import ST_TASK, TASKS, TEMPORAL_TASK, VISUAL_TASK, Mention, Sample
from data_pipelines.synthetic import make_dataset, make_scene, scene_seed, write_video
from o3jax.errors import UserError
from o3jax.prompts import coords, grammar

ROOT = Path(__file__).resolve().parents[1]
COLORS_ZH = {"红": "red", "绿": "green", "蓝": "blue", "黄": "yellow", "紫": "purple", "橙": "orange"}
SHAPES_ZH = {"圆": "circle", "方": "square", "三角": "triangle", "星": "star"}


def scenes(level, count, questions=None, split="test"):
    return [make_scene(scene_seed(split, i), level, questions) for i in range(count)]


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
        assert one.samples() == again.samples()
        assert np.array_equal(one.render([1, 2.5]), again.render([1, 2.5]))
        assert not np.array_equal(one.render([0]), other.render([0]))
        more = make_scene(seed, level, 5).samples("en")
        asked = {sample.kind: sample for sample in more}
        assert all(asked[s.kind] == s for s in one.samples("en"))  # more questions change none


def test_the_world_has_not_changed():
    """Figures of different versions are comparable only as long as this holds."""
    (sample,) = make_scene(0, questions=1).samples("en")
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
    assert sample.intervals == ((0.44, 1.72),) and sample.mentions[0].time == 1.0
    zh = make_scene(0, questions=1).samples("zh")[0]
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
        assert (tmp_path / "c.mp4.partial").exists()
        raise ZeroDivisionError

    monkeypatch.setattr(synthetic.Scene, "render", broken)
    with pytest.raises(ZeroDivisionError):
        write_video(scene, tmp_path / "c.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "small.mp4"]


# --- questions and answers -------------------------------------------------------------------------


def test_kinds_and_languages_have_equal_shares():
    samples = [scene.samples() for scene in scenes(1, 2000)]
    assert all(len(clip) == 2 and clip[0].kind != clip[1].kind for clip in samples)
    flat = list(itertools.chain(*samples))
    assert set(collections.Counter(s.kind for s in flat).values()) == {800}
    assert collections.Counter(s.language for s in flat) == {"en": 2000, "zh": 2000}
    both = collections.Counter((s.kind, s.language) for s in flat)
    assert len(both) == 10 and min(both.values()) > 340
    questions = {re.sub(r"[\d.]+", "#", s.question) for s in flat}
    assert len(questions) > 400  # paraphrases times names
    harder = collections.Counter(s.kind for scene in scenes(2, 42) for s in scene.samples())
    assert len(harder) == 7 and set(harder.values()) == {12}


def observe_pixels(scene):
    """name -> {frame: box in pixels}, from the rendered frames alone; colours tell objects apart."""
    frames = scene.render(np.arange(scene.frame_count) / 25).astype(np.float32)
    seen = {}
    for color, rgb in synthetic.COLORS.items():
        close = np.linalg.norm(frames - rgb, axis=-1) < 45
        track, filled = {}, []
        for number in np.nonzero(close.sum((1, 2)) > 100)[0].tolist():
            rows, columns = np.nonzero(close[number])
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            track[number] = box
            filled.append(len(rows) / ((box[2] - box[0]) * (box[3] - box[1])))
        if track:
            areas = {"star": 0.385, "triangle": 0.5, "circle": math.pi / 4, "square": 1.0}
            shape = min(areas, key=lambda s: abs(areas[s] - np.median(filled)))  # noqa: B023
            seen[color, shape] = track
    return seen


def observe_boxes(scene):
    """name -> {frame: box in pixels}, by asking every object in every frame."""
    height, width = scene.size
    return {
        (thing.color, thing.shape): {
            k: np.array(box) * [width, height, width, height]
            for k in range(scene.frame_count)
            if (box := thing.box(k / 25)) is not None
        }
        for thing in scene.objects
    }


def read_names(text):
    """The (colour, shape) pairs that a text names, in either language."""
    colors = f"{'|'.join(synthetic.COLORS)}"
    english = re.findall(rf"({colors}) ({'|'.join(synthetic.SHAPES)})", text)
    chinese = re.findall(f"({'|'.join(COLORS_ZH)})色({'|'.join(SHAPES_ZH)})形", text)
    return english + [(COLORS_ZH[color], SHAPES_ZH[shape]) for color, shape in chinese]


def visits(track):
    """[(first second, end second)] of the runs of consecutive frames."""
    runs = []
    for frame in sorted(track):
        if runs and frame == runs[-1][1]:
            runs[-1][1] = frame + 1
        else:
            runs.append([frame, frame + 1])
    return [(first / 25, stop / 25) for first, stop in runs]


def check_answer(sample, seen, size):
    """Answers the question from what was seen, reading its text, and compares."""
    question, _, options = sample.question.partition("\n")
    names = read_names(question)
    assert all(name in seen for name in names), question
    asked = [float(t) for t in re.findall(r"([\d.]+) ?(?:s|秒)", question)]
    runs = {name: visits(track) for name, track in seen.items()}
    said = read_names(sample.answer)
    if sample.kind in ("interval", "appears"):
        nth = 1 if re.search("second time|第二次", question) else 0
        assert bool(re.search("(first|second) time|第[一二]次", question)) == (len(runs[names[0]]) > 1)
        expected = runs[names[0]][nth][: 2 if sample.kind == "interval" else 1]
        assert re.findall(r"<t>([\d.]+)</t>s", sample.answer) == [f"{t:.1f}" for t in expected]
        assert sample.intervals == (pytest.approx(runs[names[0]][nth]),)
    elif sample.kind == "where":
        (box,) = re.findall(r"<box>\[(.*?)\]</box>", sample.answer)
        truth = seen[names[0]][math.floor(asked[0] * 25 + 1e-6)]
        numbers = np.array([float(v) for v in box.split(",")]) * [size[1], size[0], size[1], size[0]]
        np.testing.assert_allclose(numbers, truth, atol=2.2)  # the tips of a star are thin
        start, end = next(r for r in runs[names[0]] if r[0] <= asked[0] < r[1])
        assert start + 0.2 - 1e-6 <= asked[0] <= end - 0.2 + 1e-6
        assert said == names
    elif sample.kind == "count":
        if asked:
            numbers = [
                sum(math.floor(time * 25 + 1e-6) in track for track in seen.values())
                for time in (asked[0] - 0.19, asked[0], asked[0] + 0.19)
            ]
            number = numbers[1]
            assert numbers == [number] * 3
        else:
            (color,) = re.findall("|".join([*synthetic.COLORS, *COLORS_ZH]), question)
            number = sum(name[0] == COLORS_ZH.get(color, color) for name in seen)
        assert sample.answer == str(number) and len(sample.mentions) == number
    else:
        late = bool(re.search("last|最后", question))
        side = 1 if re.search("disappears|消失", question) else 0
        things = names if sample.kind == "first" else list(seen)
        if asked:
            (right,) = [n for n in things if any(f"{r[0]:.1f}" == f"{asked[0]:.1f}" for r in runs[n])]
        else:
            moments = {n: [r[side] for r in runs[n]] for n in things}
            right = (max if late else min)(things, key=lambda n: (max if late else min)(moments[n]))
        if sample.kind == "mcq":
            lines = dict(line.split(". ") for line in options.splitlines())
            assert read_names(lines[sample.answer]) == [right]
            assert len(set(lines.values())) == len(lines) == min(4, len(seen))
        elif sample.kind == "first":
            assert said == [right]
        else:
            words = {**COLORS_ZH, **SHAPES_ZH}
            answer = words.get(sample.answer[:-1], sample.answer)
            assert answer == right[0 if re.search("colou?r|颜色", question) else 1]
        assert read_names(sample.mentions[0].object) == [right]


@pytest.mark.parametrize("level, count", [(1, 16), (2, 40), (3, 25)])
def test_answers_agree_with_what_is_seen(level, count):
    kinds = synthetic.LEVELS[level].kinds
    for scene in scenes(level, count, questions=len(kinds)):
        seen = observe_pixels(scene) if level == 1 else observe_boxes(scene)
        assert set(seen) == {(o.color, o.shape) for o in scene.objects}
        for language in ("en", "zh"):
            samples = scene.samples(language)
            assert {s.kind for s in samples} == set(kinds)
            for sample in samples:
                assert (sample.language == "zh") == bool(re.search("[\u4e00-\u9fff]", sample.question))
                check_answer(sample, seen, scene.size)


def test_nothing_is_said_to_disappear_last_while_something_stays():
    for scene in scenes(1, 300, questions=5):
        stays = any(o.visible[-1][1] == scene.duration for o in scene.objects)
        asked = " ".join(s.question for s in scene.samples("en"))
        assert not (stays and "disappears last" in asked)
        assert "appears at 0.0" not in asked


@pytest.mark.parametrize("level", [1, 2, 3])
def test_reasoning_lists_the_scene_and_states_the_evidence(level):
    for scene in scenes(level, 30, questions=5):
        for sample in scene.samples():
            by_name = {o.name(sample.language): o for o in scene.objects}
            end = ". " if sample.language == "en" else "。"
            inventory, claims = sample.reasoning.split(end, 1)
            ordered = sorted(scene.objects, key=lambda o: o.visible[0])
            assert inventory.replace("; ", ";").split(";") == [
                f"{o.name(sample.language)} " + ", ".join(f"{a:.1f}-{b:.1f}" for a, b in o.visible)
                for o in ordered
            ]
            parsed = grammar.parse(claims, coords.NORMALISED)
            assert len(parsed.claims) == len(sample.mentions) == len(sample.intervals) >= 1
            for claim, mention, interval in zip(
                parsed.claims, sample.mentions, sample.intervals, strict=True
            ):
                assert (claim.object, claim.time) == (mention.object, mention.time)
                assert mention.boxes == (by_name[mention.object].box(mention.time),)
                assert claim.boxes[0] == pytest.approx(mention.boxes[0], abs=0.00051)
                assert (
                    interval in by_name[mention.object].visible and interval[0] <= mention.time < interval[1]
                )
                if sample.kind not in ("where", "count"):
                    grid = [h / 2 for h in range(400) if interval[0] <= h / 2 < interval[1]]
                    nearest = min(abs(t - sum(interval) / 2) for t in grid)
                    assert mention.time in grid
                    assert abs(mention.time - sum(interval) / 2) == pytest.approx(nearest)
            assert parsed.intervals == tuple(
                pytest.approx((round(a, 1), round(b, 1))) for a, b in sample.intervals
            )
            assert sample.task == {
                "interval": TEMPORAL_TASK,
                "appears": TEMPORAL_TASK,
                "mcq": "General video QA MCQ",
            }.get(sample.kind, ST_TASK)


def test_wrong_arguments_name_the_remedy():
    for call, words in (
        (lambda: make_scene(0, level=4), "level must be one of 1, 2, 3"),
        (lambda: make_scene(-1), "seed must not be negative"),
        (lambda: make_scene(0, questions=6), "questions must be 1 to 5"),
        (lambda: make_scene(0).samples("fr"), "language must be en or zh"),
        (lambda: scene_seed("dev", 0), "train, val or test"),
        (lambda: scene_seed("val", -1), "must not be negative"),
    ):
        with pytest.raises(UserError, match=words):
            call()


# --- records and data sets -------------------------------------------------------------------------

unit = st.floats(0, 1)
boxes = st.tuples(unit, unit, unit, unit).map(lambda b: (*map(min, b[:2], b[2:]), *map(max, b[:2], b[2:])))
seconds = st.floats(0, 1e4)
mentions = st.builds(
    Mention,
    st.text(max_size=3),
    st.none() | seconds | st.sampled_from([1.0, 1.01, 2.0]),
    st.lists(boxes, max_size=2).map(tuple),
)
any_samples = st.builds(
    Sample,
    id=st.text(),
    source=st.text(),
    task=st.sampled_from(TASKS),
    question=st.text(),
    answer=st.text(),
    video_path=st.text(),
    image_path=st.text(),
    image_size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    duration=st.none() | seconds,
    reasoning=st.text(),
    mentions=st.lists(mentions, max_size=4).map(tuple),
    intervals=st.lists(st.tuples(seconds, seconds).map(sorted).map(tuple), max_size=3).map(tuple),
    language=st.sampled_from(["en", "zh"]),
    kind=st.text(max_size=5),
)


@settings(max_examples=150, deadline=None)
@given(any_samples)
def test_any_sample_survives_the_stgr_record(sample):
    assert stgr.from_stgr(json.loads(json.dumps(stgr.to_stgr(sample)))) == sample


def test_synthetic_samples_need_no_field_beside_the_published_ones_for_their_evidence():
    for level in (1, 2, 3):
        for scene in scenes(level, 20, questions=5):
            for sample in scene.samples():
                record = stgr.to_stgr(sample)
                assert "mentions" not in record
                assert stgr.from_stgr(json.loads(json.dumps(record))) == sample
                for frame in record["key_frames"]:
                    assert frame["idx"] == math.floor(frame["time"] * 25 + 0.5)
                    assert record["key_items"][str(frame["idx"])]
                article = stgr.to_article(sample)
                back = stgr.from_article(json.loads(json.dumps(article)), sample.id)
                assert stgr.to_article(back) == article
                for field in ("id", "question", "answer", "video_path", "reasoning", "mentions", "language"):
                    assert getattr(back, field) == getattr(sample, field)
                if sample.kind in ("interval", "appears", "where", "attribute", "first"):
                    assert back.task == sample.task


def published():
    return {
        "id": 7,
        "source": "STR_coin",
        "task": ST_TASK,
        "question": "What happens after the lid is lifted?",
        "answer": "The soup is stirred.",
        "video_path": "coin/abc.mp4",
        "key_frames": [
            {"idx": 125, "time": 5.0, "path": "coin/abc_125.jpg"},
            {"idx": 230, "time": 9.2, "path": "coin/abc_230.jpg"},
        ],
        "key_items": {"125": {"man": [[0.25, 0.2, 0.5, 0.8]]}, "230": {"spoon": [[0.4, 0.5, 0.55, 0.7]]}},
        "reasoning_process": "The <obj>man</obj><box>[0.25, 0.20, 0.50, 0.80]</box>at<t>5.0</t>s lifts it.",
    }


def test_a_published_record_without_our_fields_is_read():
    sample = stgr.from_stgr(published())
    assert (sample.id, sample.language, sample.intervals, sample.kind) == ("7", "en", (), "")
    assert sample.mentions == (
        Mention("man", 5.0, ((0.25, 0.2, 0.5, 0.8),)),
        Mention("spoon", 9.2, ((0.4, 0.5, 0.55, 0.7),)),
    )
    assert stgr.from_stgr(published() | {"question": "锅盖之后发生什么?"}).language == "zh"
    record = published() | {"task": VISUAL_TASK, "image_path": "1.jpg", "image_size": [640, 480]}
    del record["key_frames"], record["video_path"]
    record["reasoning_process"] = "The <obj>man</obj><box>[160, 120, 320, 240]</box> lifts it."
    sample = stgr.from_stgr(record)
    assert sample.image_size == (640, 480) and sample.mentions == (
        Mention("man", None, ((0.25,) * 2 + (0.5,) * 2,)),
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"task": "temporal"}, "field 'task' must be one of .* not 'temporal'"),
        ({"answer": None}, "field 'answer' is missing"),
        ({"question": 3}, "field 'question' must be a string, not 3"),
        ({"video_path": None}, "field 'video_path' is missing"),
        ({"id": 1.5}, "field 'id' must be str or int"),
        ({"key_frames": [5.0]}, "field 'key_frames' must be a list of objects"),
        ({"key_frames": [{"idx": "125", "time": 5.0}]}, "'idx' must be an integer"),
        ({"key_frames": [{"idx": 125, "time": -1}]}, "'time' needs times in seconds"),
        ({"key_items": {"125": {"man": [[25, 20, 50, 80]]}}}, "needs boxes .* in 0-1 .*divide pixels"),
        ({"key_items": {"125": {"man": [0.1, 0.1, 0.2, 0.2]}}}, "needs boxes"),
        ({"key_items": {"125": {"man": [[0.5, 0.1, 0.2, 0.2]]}}}, "needs boxes"),
        ({"key_items": {"125": ["man"]}}, "field '125' must be an object"),
        ({"intervals": [[3, 2]]}, "ends before it starts"),
        ({"intervals": [[3]]}, "pairs"),
        ({"language": "fr"}, "must be en or zh"),
        ({"image_size": [0, 3]}, "image_size"),
        ({"duration": float("nan")}, "'duration' needs times"),
    ],
)
def test_a_wrong_field_is_named(change, words, tmp_path):
    path = tmp_path / "stgr.json"
    stgr.save_records(path, [published(), published() | change])
    with pytest.raises(UserError, match=f"stgr.json record 1.*{words}"):
        stgr.load_stgr(path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"time": [1]}, "unknown field 'time'"),
        ({"timestamps": None}, "field 'timestamps' is missing"),
        ({"timestamps": ["soon"]}, "'timestamps' needs times in seconds"),
        ({"timestamps": [1.0, 2.0]}, "'bboxes' must have one entry for each of the 2 timestamps, but has 1"),
        ({"bboxes": [[10, 20, 30, 40]]}, "divide pixels by the width and height"),
        ({"objects": ["a", "b"]}, "'objects' must have one entry"),
        ({"objects": [1]}, "list of names"),
    ],
)
def test_a_wrong_field_of_the_article_is_named(change, words, tmp_path):
    record = {"video_path": "a.mp4", "question": "Where?", "answer": "There."}
    record |= {"timestamps": [1], "bboxes": [[0, 0, 0.5, 1]]}
    path = tmp_path / "annotations.json"
    stgr.save_records(path, [record])
    (sample,) = stgr.load_article(path)
    assert (sample.id, sample.task, sample.source) == ("annotations-0", ST_TASK, "article")
    assert sample.mentions == (Mention("object", 1.0, ((0.0, 0.0, 0.5, 1.0),)),)
    stgr.save_records(path, [record, record | change])
    with pytest.raises(UserError, match=f"annotations.json record 1.*{words}"):
        stgr.load_article(path)


def test_an_unreadable_annotation_file_is_named(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="x.json cannot be read"):
        stgr.load_stgr(path)
    for text, words in (
        ("[1, 2", "is not JSON"),
        ("{}", "must hold a JSON list"),
        ("[3]", "must hold a JSON list"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"x.json {words}"):
            stgr.load_stgr(path)


def test_a_data_set_can_be_interrupted_and_made_again(tmp_path, capfd):
    out = tmp_path / "set"
    samples = make_dataset(out, "val", 3)
    assert capfd.readouterr() == ("", "")
    whole = contents(out)
    assert len(samples) == 6 and stgr.load_stgr(out / "stgr.json") == samples
    article = stgr.load_article(out / "annotations.json")
    assert [(s.question, s.answer, s.mentions) for s in article] == [
        (s.question, s.answer, s.mentions) for s in samples
    ]
    for sample in samples:
        scene = make_scene(int(sample.id.split("-")[1]))
        assert sample in scene.samples() and (out / sample.video_path).is_file()
        for frame in stgr.to_stgr(sample)["key_frames"]:
            image = np.asarray(Image.open(out / "kfs" / frame["path"])).astype(float)
            assert np.abs(image - scene.render([frame["time"]])[0]).mean() < 3
    with pytest.raises(UserError, match="holds another data set"):
        make_dataset(out, "val", 4)
    with pytest.raises(UserError, match="count must be at least 1"):
        make_dataset(tmp_path / "none", "val", 0)
    assert contents(out) == whole and not (tmp_path / "none").exists()

    videos = sorted((out / "videos").iterdir())
    videos[1].rename(f"{videos[1]}.partial")  # as a killed process leaves it
    (out / "stgr.json").unlink()
    make_dataset(out, "val", 3)
    assert contents(out) == whole

    early = tmp_path / "early"
    early.mkdir()
    (early / "dataset.json.partial").write_text('{"wor')
    make_dataset(early, "val", 3)
    assert contents(early) == whole


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        make_dataset(tmp_path, "train", 1)
    with pytest.raises(UserError, match="cannot be made a folder"):
        make_dataset(tmp_path / "notes.txt", "train", 1)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="not readable"):
        make_dataset(tmp_path, "train", 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_makes_a_data_set_and_refuses_with_one_sentence(tmp_path):
    def run(*args):
        command = [sys.executable, "-m", "experiments.data", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run("make", "--out", str(tmp_path / "set"), "--split", "test", "--count", "1")
    assert done.returncode == 0, done.stderr
    assert "1 clips, 2 questions" in " ".join(done.stdout.split())
    assert len(stgr.load_stgr(tmp_path / "set" / "stgr.json")) == 2
    refused = run("make", "--out", str(tmp_path / "other"), "--level", "9")
    assert refused.returncode == 2 and not (tmp_path / "other").exists()
    assert "level must be one of 1, 2, 3, not 9" in refused.stderr and "Traceback" not in refused.stderr
    assert run("made").returncode == 2

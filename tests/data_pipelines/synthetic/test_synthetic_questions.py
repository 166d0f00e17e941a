"""The synthetic world's questions and answers against what can be seen in its frames."""

import collections
import itertools
import math
import re

import numpy as np
import pytest

from data_pipelines.synthetic import scenes as synthetic
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene, scene_seed
from o3jax.errors import UserError
from o3jax.prompts import coords, grammar
from o3jax.tasks import SPATIO_TEMPORAL, TEMPORAL
from tests.support.worlds import scenes

COLORS_ZH = {"红": "red", "绿": "green", "蓝": "blue", "黄": "yellow", "紫": "purple", "橙": "orange"}
SHAPES_ZH = {"圆": "circle", "方": "square", "三角": "triangle", "星": "star"}


def test_kinds_and_languages_have_equal_shares():
    samples = [make_samples(scene) for scene in scenes(1, 2000)]
    assert all(len(clip) == 2 and clip[0].kind != clip[1].kind for clip in samples)
    flat = list(itertools.chain(*samples))
    assert set(collections.Counter(s.kind for s in flat).values()) == {800}
    assert collections.Counter(s.language for s in flat) == {"en": 2000, "zh": 2000}
    both = collections.Counter((s.kind, s.language) for s in flat)
    assert len(both) == 10 and min(both.values()) > 340
    questions = {re.sub(r"[\d.]+", "#", s.question) for s in flat}
    assert len(questions) > 400  # paraphrases times names
    harder = collections.Counter(s.kind for scene in scenes(2, 42) for s in make_samples(scene))
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
            samples = make_samples(scene, language)
            assert {s.kind for s in samples} == set(kinds)
            for sample in samples:
                assert (sample.language == "zh") == bool(re.search("[\u4e00-\u9fff]", sample.question))
                check_answer(sample, seen, scene.size)


def test_nothing_is_said_to_disappear_last_while_something_stays():
    for scene in scenes(1, 300, questions=5):
        stays = any(o.visible[-1][1] == scene.duration for o in scene.objects)
        asked = " ".join(s.question for s in make_samples(scene, "en"))
        assert not (stays and "disappears last" in asked)
        assert "appears at 0.0" not in asked


@pytest.mark.parametrize("level", [1, 2, 3])
def test_reasoning_lists_the_scene_and_states_the_evidence(level):
    for scene in scenes(level, 30, questions=5):
        for sample in make_samples(scene):
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
                assert (claim.object, claim.time_s) == (mention.object, mention.time_s)
                assert mention.boxes == (by_name[mention.object].box(mention.time_s),)
                assert claim.boxes[0] == pytest.approx(mention.boxes[0], abs=0.00051)
                assert (
                    interval in by_name[mention.object].visible
                    and interval[0] <= mention.time_s < interval[1]
                )
                if sample.kind not in ("where", "count"):
                    grid = [h / 2 for h in range(400) if interval[0] <= h / 2 < interval[1]]
                    nearest = min(abs(t - sum(interval) / 2) for t in grid)
                    assert mention.time_s in grid
                    assert abs(mention.time_s - sum(interval) / 2) == pytest.approx(nearest)
            assert parsed.intervals == tuple(
                pytest.approx((round(a, 1), round(b, 1))) for a, b in sample.intervals
            )
            assert sample.task == {
                "interval": TEMPORAL,
                "appears": TEMPORAL,
                "mcq": "General video QA MCQ",
            }.get(sample.kind, SPATIO_TEMPORAL)


def test_wrong_arguments_name_the_remedy():
    for call, words in (
        (lambda: make_scene(0, level=5), "level must be one of 1, 2, 3, 4,"),
        (lambda: make_scene(0, 4, seconds=20), "level 4 must last longer than 20 s"),
        (lambda: make_scene(-1), "seed must not be negative"),
        (lambda: make_scene(0, questions=6), "questions must be 1 to 5"),
        (lambda: make_samples(make_scene(0), "fr"), "language must be en or zh"),
        (lambda: scene_seed("dev", 0), "train, val or test"),
        (lambda: scene_seed("val", -1), "must not be negative"),
    ):
        with pytest.raises(UserError, match=words):
            call()

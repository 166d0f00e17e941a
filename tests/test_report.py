"""The printed answer, its JSON, the annotated video and the HTML report, read back by other means."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from o3jax.errors import UserError
from o3jax.metrics.boxes import box_iou
from o3jax.report import (
    Answer,
    Evidence,
    annotate,
    annotate_video,
    format_answer,
    html,
    question_language,
    write_report,
)
from o3jax.report.answer import Located, Segment, plain_text, segments
from tests import browser, videos

CAR = Evidence("红色汽车", 12.3, 308, (320, 200, 450, 280), (0.25, 0.2, 0.35, 0.3), 0.93)
LATER = Evidence("红色汽车", 14.5, 363, (350, 210, 480, 290), (0.27, 0.2, 0.37, 0.3), 0.81)
CHINESE = Answer(
    question="红色汽车什么时候出现?",
    text="视频中12.3-15.6秒出现红色汽车。",
    evidence=(CAR, LATER),
    intervals=((12.3, 15.6),),
    confidence=0.87,
)
ENGLISH = dataclasses.replace(
    CHINESE, question="When does the red car appear?", text="A red car appears from 12.3 to 15.6 s."
)

# ---------------------------------------------------------------- text and JSON


def test_printed_form_in_chinese() -> None:
    assert format_answer(CHINESE) == (
        "答案:视频中12.3-15.6秒出现红色汽车。\n"
        "证据:\n"
        "- 时间戳:12.3秒(对应第308帧),边界框:(x1=320, y1=200, x2=450, y2=280)\n"
        "- 时间戳:14.5秒(对应第363帧),边界框:(x1=350, y1=210, x2=480, y2=290)\n"
        "置信度:0.87(高)"
    )


def test_printed_form_in_english() -> None:
    assert format_answer(ENGLISH) == (
        "Answer: A red car appears from 12.3 to 15.6 s.\n"
        "Evidence:\n"
        "- time 12.3 s (frame 308), box (x1=320, y1=200, x2=450, y2=280)\n"
        "- time 14.5 s (frame 363), box (x1=350, y1=210, x2=480, y2=290)\n"
        "Confidence: 0.87 (high)"
    )


def test_printed_form_of_two_estimates() -> None:
    text = Located(12.6, 315, (330, 200, 460, 280), (0.26, 0.2, 0.36, 0.3))
    both = (dataclasses.replace(CAR, text=text), LATER)
    assert format_answer(dataclasses.replace(ENGLISH, evidence=both)).splitlines()[2:5] == [
        "- time 12.3 s (frame 308), box (x1=320, y1=200, x2=450, y2=280)",
        "  the text says: time 12.6 s (frame 315), box (x1=330, y1=200, x2=460, y2=280)",
        "- time 14.5 s (frame 363), box (x1=350, y1=210, x2=480, y2=290)",
    ]
    assert format_answer(dataclasses.replace(CHINESE, evidence=both)).splitlines()[3] == (
        "  文本所述:12.6秒(对应第315帧),边界框:(x1=330, y1=200, x2=460, y2=280)"
    )


@pytest.mark.parametrize(
    ("confidence", "chinese", "english"),
    [
        (1.0, "置信度:1.00(高)", "Confidence: 1.00 (high)"),
        (0.8, "置信度:0.80(高)", "Confidence: 0.80 (high)"),
        (0.7999, "置信度:0.79(中)", "Confidence: 0.79 (medium)"),
        (0.6, "置信度:0.60(中)", "Confidence: 0.60 (medium)"),
        (0.5999, "置信度:0.59(低) 需人工核实", "Confidence: 0.59 (low) needs review"),
        (0.29, "置信度:0.29(低) 需人工核实", "Confidence: 0.29 (low) needs review"),
        (math.nan, "置信度:-(低) 需人工核实", "Confidence: - (low) needs review"),
    ],
)
def test_confidence_line(confidence: float, chinese: str, english: str) -> None:
    for answer, line in ((CHINESE, chinese), (ENGLISH, english)):
        answer = dataclasses.replace(answer, confidence=confidence)
        assert format_answer(answer).splitlines()[-1] == line
        assert answer.needs_review == (answer.label == "low") == ("review" in line or "核实" in line)


def test_printed_form_without_evidence_or_box() -> None:
    bare = dataclasses.replace(CAR, box=None, box_px=None)
    lines = format_answer(dataclasses.replace(ENGLISH, evidence=(bare,))).splitlines()
    assert lines[1:3] == ["Evidence:", "- time 12.3 s (frame 308)"]
    assert format_answer(dataclasses.replace(CHINESE, evidence=())).splitlines()[1] == "证据:无"
    assert format_answer(dataclasses.replace(ENGLISH, evidence=())).splitlines()[1] == "Evidence: none"


def test_no_control_character_reaches_the_terminal() -> None:
    printed = format_answer(dataclasses.replace(ENGLISH, text="\x1b[2Ja\x07b\ud800\u202e\nc"))
    assert printed.startswith("Answer: [2Jab\nc\n")
    printed.encode()


def test_question_language() -> None:
    assert [question_language(q) for q in ("When?", "什么时候?", "Où est-ce?", "", "the 车", "𠀀")] == [
        *("en", "zh", "en", "en", "zh", "zh")
    ]


def test_json_round_trip() -> None:
    data = json.loads(CHINESE.to_json())
    assert data == CHINESE.to_dict()
    assert data["evidence"][0] == {
        "object": "红色汽车",
        "time_s": 12.3,
        "frame": 308,
        "box_px": [320, 200, 450, 280],
        "box": [0.25, 0.2, 0.35, 0.3],
        "confidence": 0.93,
        "spread_s": None,
        "interval": None,
        "text": None,
    }
    assert data["intervals"] == [[12.3, 15.6]]
    assert (data["language"], data["label"], data["needs_review"]) == ("zh", "high", False)
    assert data["confidence_kind"] == "mean token probability"
    assert "红色汽车" in CHINESE.to_json()


def test_segments_and_plain_text() -> None:
    text = "The <obj>dog</obj><box>[1,2,3,4]</box><box>[5,6,7,8]</box>at<t>3.0</t>s runs <t>4.5</t>s later."
    assert list(segments(text)) == [
        Segment("The "),
        Segment("dog", 3.0, is_object=True),
        Segment(" runs "),
        Segment("", 4.5),
        Segment(" later."),
    ]
    assert plain_text(text, "en") == "The dog (3.0 s) runs 4.5 s later."
    assert plain_text("From <t>3</t>s to <t>7.25</t>s", "en") == "From 3.0 s to 7.2 s"
    assert plain_text("从<t>3</t>秒到<t>7</t>s出现<obj>车</obj>", "zh") == "从3.0秒到7.0秒出现车"
    assert plain_text("<answer>at <t>soon</t> seconds</answer>", "en") == "at soon seconds"


pieces = st.sampled_from(
    ["<obj>", "</obj>", "<box>", "</box>", "at", "<t>", "</t>", "s", "1.5", "dog", " ", "<"]
)


@given(st.lists(pieces).map("".join) | st.text())
def test_any_text_becomes_plain(text: str) -> None:
    joined = "".join(segment.text for segment in segments(text))
    assert len(joined) <= len(text)
    plain_text(text, "zh")


@pytest.mark.parametrize("unit", ["<obj>", "<obj>a</obj> ", "<box>", " ", "<t>", "<", "at<t>1</t>", "<obj>a"])
def test_hostile_text_takes_linear_time(unit: str) -> None:
    """A quadratic step on 300,000 characters would hang the suite for minutes."""
    for text in (unit * (300_000 // len(unit)), "<obj>x</obj>" + unit * (300_000 // len(unit))):
        sum(1 for _ in segments(text))


# ---------------------------------------------------------------- tracks and sizes

BOX = (0.5, 0.4, 0.8, 0.6)  # inside the picture's middle, between the two rows of cells
TEXT_BOX = (0.6, 0.45, 0.9, 0.62)  # what the text says of it; it also lies where the picture is blue


def _evidence(name: str, time_s: float, box: tuple | None, fps: float = 25.0) -> Evidence:
    return Evidence(name, time_s, math.floor(time_s * fps + 0.5), None, box, 0.9)


def test_boxes_over_time() -> None:
    left, right, far = (0.0, 0.0, 0.2, 0.2), (0.4, 0.2, 0.6, 0.4), (0.8, 0.8, 1.0, 1.0)
    evidence = [
        _evidence("car", 3.0, right),
        _evidence("dog", 9.0, left),
        _evidence("car", 2.0, left),
        _evidence("dog", 9.0, far),
        _evidence("car", 8.0, far),
        _evidence("cat", 1.0, None),
    ]
    car, dog_1, dog_2 = annotate.tracks(evidence)
    assert [key[0] for key in car.keys] == [2.0, 3.0, 8.0]
    assert (dog_1.keys, dog_2.keys) == (((9.0, left),), ((9.0, far),))
    assert dog_1.color == dog_2.color != car.color
    expected = {1.4: None, 1.6: left, 2.0: left, 2.5: (0.2, 0.1, 0.4, 0.3), 3.0: right, 3.4: right, 3.6: None}
    expected |= {7.4: None, 7.6: far, 8.5: far, 8.6: None}
    for time_s, box in expected.items():
        shown = annotate.box_at(car, time_s)
        assert (shown is None) == (box is None) and (box is None or shown == pytest.approx(box)), time_s


def test_boxes_that_the_text_states_have_tracks_of_their_own() -> None:
    evidence = [
        dataclasses.replace(_evidence("dog", 3.0, BOX), text=Located(2.0, 50, None, TEXT_BOX)),
        dataclasses.replace(_evidence("dog", 1.0, BOX), text=Located(1.2, 30, None, BOX)),
        dataclasses.replace(_evidence("cat", 1.0, None), text=Located(1.0, 25, None, TEXT_BOX)),
        dataclasses.replace(_evidence("cow", 1.0, BOX), text=Located(1.0, 25, None, None)),
    ]
    found = annotate.tracks(evidence)
    assert [(t.object, t.stated, t.keys) for t in sorted(found, key=lambda t: (t.stated, t.object))] == [
        ("cow", False, ((1.0, BOX),)),
        ("dog", False, ((1.0, BOX), (3.0, BOX))),
        ("cat", True, ((1.0, TEXT_BOX),)),
        ("dog", True, ((1.2, BOX), (2.0, TEXT_BOX))),
    ]
    assert [t.stated for t in found] == sorted(t.stated for t in found)
    assert all(t.color == annotate.object_colors(evidence)[t.object] for t in found)


def test_relevance_curve() -> None:
    def curve(*pairs: tuple[float, float]) -> list[tuple[float, float]]:
        return annotate.relevance_curve(Answer(question="", text="", confidence=1, relevance=pairs), 4.0)

    assert curve() == curve((math.nan, 0.5), (1.0, math.inf)) == []
    assert curve((0.0, 0.3)) == [(0.0, 0.3), (0.0, 0.3), (4.0, 0.3)]  # one frame stands for the whole video
    inner = [(1.0, 0.2), (1.5, 0.9), (3.0, 0.4)]
    assert curve(inner[1], inner[0], (2.0, math.nan), inner[2]) == [(0.5, 0.2), *inner, (3.5, 0.4)]
    assert curve((-1.0, -3.0), (9.0, 3.0)) == [(0.0, 0.0), (0.0, 0.0), (4.0, 1.0), (4.0, 1.0)]


sides = st.tuples(*[st.integers(0, 20)] * 4).map(lambda b: tuple(v / 20 for v in b))


@given(sides, sides)
def test_overlap_is_the_benchmarks(a: tuple, b: tuple) -> None:
    a, b = ((*map(min, c[:2], c[2:]), *map(max, c[:2], c[2:])) for c in (a, b))
    assert html._iou(a, b) == pytest.approx(box_iou(a, b))


def test_display_size() -> None:
    for width, height in ((128, 128), (1280, 720), (161, 97), (720, 1280), (3840, 2160), (2000, 10), (3, 2)):
        w, h = annotate.display_size(width, height)
        assert w % 2 == h % 2 == 0 and min(w, h) >= 2 and max(w, h) <= 1920
        assert min(w, h) >= 360 or max(w, h) > 1900
        if min(width, height) > 50:
            assert w / h == pytest.approx(width / height, rel=0.01)


# ---------------------------------------------------------------- the annotated video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> videos.Fixture:
    """Four seconds at 10 frames per second, each frame with its number."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return videos.write_video(path, range(40), Fraction(1, 10))


def _answer(clip: videos.Fixture, **changes: object) -> Answer:
    fields = {
        "question": "Where is <script>alert('q')</script> the cat?",
        "text": "It sits </p><b>there</b>.",
        "evidence": (_evidence("<img src=x onerror=alert(1)>", 1.0, BOX), _evidence("cat", 3.0, None)),
        "intervals": ((0.8, 1.2),),
        "confidence": 0.55,
        "reasoning": "The <obj><script>cat</script></obj><box>[1,2,3,4]</box>at<t>1.0</t>s & <t>3.0</t>s",
        "raw": "</pre><script>alert('raw')</script>",
        "video": {"path": "a/clip.mp4", "fps": 25.0, "status": "complete", "notes": ["note <1>"]},
        "model": "o3-tiny",
    }
    return Answer(**(fields | changes))


def _two_estimates(clip: videos.Fixture, **changes: object) -> Answer:
    """Returns an answer of a model with evidence modules."""
    cat = dataclasses.replace(
        _evidence("cat", 1.0, BOX),
        box_px=(80, 38, 128, 58),
        spread_s=0.25,
        interval=(0.6, 1.6),
        text=Located(1.4, 35, (96, 43, 144, 60), TEXT_BOX),
    )
    dog = dataclasses.replace(
        _evidence("dog", 3.0, None), interval=(2.5, 3.5), spread_s=0.5, text=Located(3.1, 78, None, None)
    )
    fields = {
        "question": "Where is the cat?",
        "evidence": (cat, dog),
        "relevance": tuple((0.4 * i + 0.2, value) for i, value in enumerate(RELEVANCE)),
        "candidates": ((0.4, 1.8), (2.4, 3.6)),
    }
    return _answer(clip, **(fields | changes))


RELEVANCE = (0.0, 0.3, 0.9, 1.0, 0.25, 0.1, 0.5, 0.75, 0.5, 0.125)  # over the four seconds


def _numbers(path: Path, picture_share: float) -> list[int]:
    """Returns the number on every frame of an annotated video, decoded without the project's reader."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [videos.read_number(frame[: round(frame.shape[0] * picture_share)]) for frame in frames]


def test_annotated_video(clip: videos.Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.mp4"
    monkeypatch.setattr(annotate, "_CHUNK_BYTES", 600 * 360 * 3 * 7)  # a few frames at a time
    annotate_video(clip.path, _answer(clip), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    with av.open(str(out)) as container:
        assert len(container.streams) == 1
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, container.streams.video[0].average_rate) == ("h264", "yuv420p", 25)
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    height = 360  # of the picture; the strip comes below
    assert frames[0].shape[:2] == (height + 26, 600)
    numbers = [videos.read_number(frame[:height].astype(np.uint8)) for frame in frames]
    assert numbers == clip.numbers_at(25)
    # The box's right side is cyan where the picture is blue.
    edge = [frame[height // 2, 474:484, 1].max() > 80 for frame in frames]
    assert [i for i in range(100) if edge[i]] == list(range(13, 38))  # 0.5 s on both sides of 1.0 s
    strip = np.stack([f[height:] for f in frames])
    assert (np.abs(strip[0] - strip[99]).sum(-1) > 200).any()  # the position moves
    span = np.abs(strip[50, 13] - np.array([0x2D, 0xD4, 0xBF])).sum(-1) < 90
    left, right = 5 * 13, 600 - 13
    assert span[left + round((right - left) * 0.85 / 4)]
    assert not span[left + round((right - left) * 2 / 4)]


def test_annotated_video_of_two_estimates(clip: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    annotate_video(clip.path, _two_estimates(clip), out)
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    height = 360
    assert len(frames) == 100 and frames[0].shape[:2] == (height + 52, 600)

    def cyan(picture: np.ndarray) -> np.ndarray:
        return picture[..., 1] > 110

    # The right sides, where the boxes do not touch: one whole, one broken, each around its own time.
    solid = [cyan(f[170:200, 474:484]).any(1).mean() for f in frames]
    dashed = [cyan(f[180:205, 534:544]).any(1).mean() for f in frames]
    assert [i for i, share in enumerate(solid) if share > 0] == list(range(13, 38))
    assert [i for i, share in enumerate(dashed) if share > 0] == list(range(23, 48))
    assert min(solid[13:38]) == 1 and 0.3 < min(dashed[23:48]) <= max(dashed[23:48]) < 0.95

    strip = frames[99][height:]
    left, right, top, bottom = 5 * 13, 600 - 13, 26, 52 - 3
    filled = np.abs(strip[top:bottom] - np.array([0x0F, 0x76, 0x6E])).sum(-1) < 60
    for i, value in enumerate(RELEVANCE):
        column = left + round((right - left) * (0.4 * i + 0.2) / 4)
        assert filled[:, column].sum() == pytest.approx(value * (bottom - top), abs=4), i
    band = np.abs(strip[top + 2] - np.array([0x1E, 0x3A, 0x4C])).sum(-1) < 30
    for time_s, searched in ((0.2, False), (0.6, True), (2.1, False), (2.5, True), (3.8, False)):
        assert band[left + round((right - left) * time_s / 4)] == searched, time_s


def test_any_label_can_be_drawn() -> None:
    draw = annotate.ImageDraw.Draw(Image.new("RGB", (64, 48)))
    for text in ("", "two\nlines", "\ud800\x00", "词" * 99, "e\u0301🚗", "a" * 10**5):
        annotate.draw_label(draw, (60, 2), 64, "#22d3ee", text, 10)
    for box in ((0, 0, 1, 1), (1, 1, 1, 1), (0.5, 0.5, 0.5, 0.5), (-3, -3, 9, 9), (0.9, 0.9, 0.1, 0.1)):
        annotate.draw_box(draw, box, (64, 48), "#22d3ee", 3)
        annotate.draw_box(draw, box, (64, 48), "#22d3ee", 3, dashed=True)


@pytest.mark.parametrize("rotation", [0, 90])
def test_annotated_video_of_odd_files(rotation: int, tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    clip = videos.write_video(source, [500 + 40 * i for i in range(12)], Fraction(1, 1000), rotation=rotation)
    out = tmp_path / "out.mp4"
    annotate_video(source, _answer(clip, video={}), out)
    assert _numbers(out, 360 / 386 if rotation == 0 else 600 / 626) == clip.numbers_at(25)


def test_no_partial_files(clip: videos.Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = _answer(clip)
    for write in (
        lambda video, out: annotate_video(video, answer, out),
        lambda video, out: write_report(answer, video, out),
    ):
        with pytest.raises(UserError, match="folder does not exist"):
            write(clip.path, tmp_path / "missing" / "out")
        with pytest.raises(UserError, match="does not exist"):
            write(tmp_path / "missing.mp4", tmp_path / "out")
        with monkeypatch.context() as patch:
            patch.setattr(annotate, "draw_box", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                write(clip.path, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the page


class _Page(HTMLParser):
    """The page as a browser's parser takes it apart."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def addresses(self, tag: str) -> list[bytes]:
        """Returns what the data: addresses of these elements hold."""
        return [base64.b64decode(a["src"].split(",", 1)[1]) for name, a in self.tags if name == tag]


def test_report_holds_everything_and_loads_nothing(clip: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(_answer(clip), clip.path, out)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = _Page(out)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "poster", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?:", out.read_text(encoding="utf-8"))
    assert page.addresses("video") == [clip.path.read_bytes()]
    for text in (
        "Where is <script>alert('q')</script> the cat?",
        "It sits </p><b>there</b>.",
        "needs review",
    ):
        assert text in page.text
    for text in ("</pre><script>alert('raw')</script>", "note <1>", "original file", "o3-tiny", "frame 25"):
        assert text in page.text
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2 and names.count("img") == 3
    assert not any("onerror" in attributes for _, attributes in page.tags)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe-eval" not in policy
    data = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(encoding="utf-8")).group(1))
    assert data["tracks"][0]["keys"] == [[1.0, list(BOX)]]


def test_pictures_show_the_named_frames(clip: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    # At 1.99 s picture 19 is still there, but the answer names frame 50 at 25 per second: 2.00 s, picture 20.
    evidence = (_evidence("a", 1.0, BOX), _evidence("b", 1.99, None), _evidence("c", 3.9, (0, 0, 1, 1)))
    write_report(_answer(clip, evidence=evidence), clip.path, out)
    pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in _Page(out).addresses("img")]
    frame_a, crop_a, frame_b, frame_c, crop_c = pictures
    assert videos.read_number(frame_a) == 10 and videos.read_number(frame_b) == 20
    assert videos.read_number(crop_c) == videos.read_number(frame_c) == 39
    assert frame_a.shape == (288, 480, 3)
    assert crop_a.shape[1] == 240
    assert crop_a.shape[0] == pytest.approx(240 * (96 * 0.26 + 2) / (160 * 0.39 + 2), abs=3)
    blue = crop_a[5:-5, 60:].astype(int)  # right of the middle everything is blue, and no box is drawn in
    assert (blue[..., 2] > blue[..., 0] + 60).all()
    assert frame_a[144, 380:387, 1].max() > 80  # the box is drawn into the frame, cyan on blue


def _share(style: str, name: str) -> float:
    """Returns a style's value in percent as a share."""
    return float(re.search(rf"(?:^|[ ;]){name}: ([0-9.]+)%", style).group(1)) / 100


def test_report_of_two_estimates(clip: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(_two_estimates(clip), clip.path, out)
    page = _Page(out)
    text = page.text.replace("\u00a0", " ")
    apart = box_iou(BOX, TEXT_BOX)
    for row in (
        "Decoder 1.00 ± 0.25 s · frame 25 · [80, 38, 128, 58] px · visible 0.6–1.6 s",
        "Text 1.40 s · frame 35 · [96, 43, 144, 60] px",
        f"0.40 s apart · box IoU {apart:.2f}",
        "Decoder 3.00 ± 0.50 s · frame 75 · visible 2.5–3.5 s",
        "Text 3.10 s · frame 78",
        "0.10 s apart ",
        "evidence decoder what the text states visible, by the decoder relevance to the question (0–1) "
        "searched",
    ):
        assert row in text, row
    assert text.count("IoU") == 1 and 0.3 < apart < 0.7  # the dog has no box

    by_class = {}
    for _, attributes in page.tags:
        by_class.setdefault(attributes.get("class"), []).append(attributes)
    bars = [a["style"] for a in by_class["bar"] if "--c" in a.get("style", "")]
    found = [(_share(style, "left"), _share(style, "width")) for style in bars]
    assert found == [pytest.approx((0.15, 0.25)), pytest.approx((0.625, 0.25))]
    rings = [(float(a["data-seek"]), _share(a["style"], "left")) for a in by_class["stated"]]
    assert rings == [pytest.approx((1.4, 0.35)), pytest.approx((3.12, 0.78))]

    (line,), (area,) = by_class["line"], by_class["area"][:1]
    points = np.array([p.split(",") for p in line["d"].removeprefix("M").split(" L")], float)
    times = [0, *(0.4 * i + 0.2 for i in range(10)), 4]
    assert points[:, 0] / 250 == pytest.approx(times, abs=1e-3)
    assert 1 - points[:, 1] / 100 == pytest.approx([RELEVANCE[0], *RELEVANCE, RELEVANCE[-1]], abs=1e-3)
    assert area["d"] == line["d"] + " V100 H0.0 Z"
    bands = [(float(a["x"]) / 250, float(a["width"]) / 250) for a in by_class["band"] if "x" in a]
    assert bands == [pytest.approx((0.4, 1.4)), pytest.approx((2.4, 1.2))]
    (svg,) = (a for tag, a in page.tags if tag == "svg")
    assert svg["aria-label"] == (
        "Relevance to the question over time, highest 1.00 at 1.4 s; searched 0.4–1.8 s, 2.4–3.6 s"
    )

    picture = np.asarray(Image.open(io.BytesIO(page.addresses("img")[0]))).astype(int)
    assert picture[144, 380:387, 1].max() > 80  # the decoder's right side
    dashed = picture[135:175, 425:436, 1].max(1) > 80  # the text's, in the same picture
    assert 0.3 < dashed.mean() < 0.95

    write_report(_two_estimates(clip, question="猫在哪里?"), clip.path, out)
    text = _Page(out).text.replace("\u00a0", " ")
    for row in ("解码器 1.00 ± 0.25秒 · 第25帧", "文本 1.40秒 · 第35帧", "相差0.40秒 · 框IoU", "搜索范围"):
        assert row in text, row


def test_report_without_evidence_modules_has_none_of_it(clip: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(_answer(clip, relevance=(), candidates=()), clip.path, out)
    page = _Page(out)
    assert not {"svg", "path"} & {tag for tag, _ in page.tags}
    classes = {name for _, a in page.tags for name in (a.get("class") or "").split()}
    assert not classes & {"legend", "stated", "solid", "dashed", "estimate", "area", "band"}
    assert "style" not in next(a for _, a in page.tags if a.get("id") == "timeline")
    assert "1.0 s · frame 25" in page.text and "Decoder" not in page.text


def test_chinese_report(clip: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    answer = _answer(
        clip, question="猫在哪里?", evidence=(_evidence("猫", 99.0, BOX), _evidence("狗", -1.0, None))
    )
    write_report(answer, clip.path, out)
    page = _Page(out)
    assert "需人工核实" in page.text and "词元平均概率" in page.text and page.text.count("不在视频中") == 2
    assert dict(page.tags)["html"] == {"lang": "zh-CN"}
    assert "Evidence" not in page.text and page.addresses("img") == []


@pytest.mark.parametrize("case", ["too large", "rotated", "late", "other codec", "partial"])
def test_reduced_copy(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / ("in.webm" if case == "other codec" else "in.mp4")
    late = 15 if case == "late" else 0
    clip = videos.write_video(
        source,
        [late + i for i in range(15)],
        Fraction(1, 10),
        rotation=90 if case == "rotated" else 0,
        codec="libvpx-vp9" if case == "other codec" else "libx264",
        audio_s=2.0 if case == "late" else 0.0,  # the sound starts at once
    )
    if case == "too large":
        monkeypatch.setattr(html, "VIDEO_BYTES", source.stat().st_size - 1)
    answer = _answer(clip, evidence=(), video={"status": "partial" if case == "partial" else "complete"})
    write_report(answer, source, tmp_path / "report.html")
    page = _Page(tmp_path / "report.html")
    assert "reduced copy" in page.text
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(page.addresses("video")[0])
    with av.open(str(copy)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        rate = container.streams.video[0].average_rate
    assert rate == (25 if case != "too large" else rate)
    assert _numbers(copy, 1) == clip.numbers_at(rate)


# ---------------------------------------------------------------- in a browser

needs_browser = pytest.mark.skipif(browser.EXECUTABLE is None, reason="Chromium is not installed")
PIXELS = """(() => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [160, 96];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  return Array.from(context.getImageData(0, 0, 160, 96).data);
})()"""


@needs_browser
def test_page_in_chromium(clip: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    evidence = (
        _evidence("cat", 1.0, BOX),
        _evidence("dog", 3.0, None),
        _evidence("cat", 2.0, (0.1, 0.4, 0.3, 0.6)),
    )
    answer = _answer(clip, evidence=evidence)
    write_report(answer, clip.path, out)
    with browser.Browser(out, tmp_path / "profile") as page:
        page.wait("document.documentElement.dataset.video == 'ready'")
        page.wait("!video.seeking && Math.abs(video.currentTime - 1) < 0.01")  # opens on the first evidence
        assert page.js("video.duration") == pytest.approx(4.0, abs=0.05)
        assert page.js("video.videoWidth") == 160

        def shown() -> int:
            return videos.read_number(np.array(page.js(PIXELS), np.uint8).reshape(96, 160, 4)[..., :3])

        def overlay() -> list[float]:
            return page.js(
                "(() => { const [o, b] = [overlay, overlay.firstChild].map(e => e?.getBoundingClientRect());"
                "return b ? [b.left - o.left, b.top - o.top, b.right - o.left, b.bottom - o.top]"
                ".map((v, i) => v / (i % 2 ? o.height : o.width)) : []; })()"
            )

        page.click("ol.evidence li:nth-child(2) button")
        page.wait("!video.seeking && Math.abs(video.currentTime - 3) < 0.01")
        assert shown() == 30 and page.js("video.paused") and overlay() == []
        assert page.js("document.querySelectorAll('[aria-current=true]').length") == 1
        page.js("document.querySelector('ol.evidence li:first-child button').focus()")
        page.press("Enter")
        page.wait("!video.seeking && Math.abs(video.currentTime - 1) < 0.01")
        assert shown() == 10
        page.wait("overlay.children.length == 1")
        assert overlay() == pytest.approx(BOX, abs=0.01)
        assert page.js("overlay.textContent") == "cat"

        (track,) = annotate.tracks(evidence)
        for time_s in (0.4, 0.6, 1.0, 1.25, 1.9, 2.0, 2.4, 2.6):
            boxes = page.js(f"boxAt(data.tracks[0].keys, {time_s})")
            expected = annotate.box_at(track, time_s)
            assert boxes == (None if expected is None else pytest.approx(expected)), time_s

        page.click("[data-until]")  # plays the interval 0.8 .. 1.2 s and stops there
        page.wait("video.paused && video.currentTime > 1.1")
        assert page.js("video.currentTime") < 3
        page.call(
            "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True
        )
        assert page.js("document.documentElement.scrollWidth") == 360
        requested = [
            e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"
        ]
        assert all(url.startswith(("file:", "data:", "blob:")) for url in requested) and requested
        assert not [e for e in page.events if e["method"] == "Runtime.exceptionThrown"]


@needs_browser
def test_two_estimates_in_chromium(clip: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(_two_estimates(clip), clip.path, out)
    with browser.Browser(out, tmp_path / "profile") as page:
        page.call(
            "Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True
        )
        page.wait("document.documentElement.dataset.video == 'ready'")
        page.wait("!video.seeking && Math.abs(video.currentTime - 1) < 0.01 && overlay.children.length == 2")

        def place(selector: str, inside: str) -> list[float]:
            """Returns an element's left, top, right and bottom as shares of another's."""
            return page.js(
                f"(() => {{ const [b, o] = ['{selector}', '{inside}']"
                ".map((s) => document.querySelector(s).getBoundingClientRect());"
                "return [(b.left - o.left) / o.width, (b.top - o.top) / o.height,"
                "(b.right - o.left) / o.width, (b.bottom - o.top) / o.height]; })()"
            )

        assert place("#overlay div:not(.stated)", "#overlay") == pytest.approx(BOX, abs=0.01)
        assert place("#overlay .stated", "#overlay") == pytest.approx(TEXT_BOX, abs=0.01)
        assert page.js("[...overlay.children].map((e) => e.textContent)") == ["cat", "text"]
        styles = "[...overlay.children].map((e) => [e, getComputedStyle(e)])"
        assert page.js(f"{styles}.map(([e, s]) => s.outlineStyle)") == ["none", "dashed"]
        assert page.js(f"new Set({styles}.map(([e, s]) => s.getPropertyValue('--c'))).size") == 1

        # Everything on the timeline has one scale: 4 s are its width.
        assert place(".timeline svg", "#timeline")[::2] == pytest.approx([0, 1], abs=0.01)
        assert place(".timeline div.bar", "#timeline")[::2] == pytest.approx([0.15, 0.4], abs=0.01)
        for selector in (".timeline .band", ".timeline .band + .band"):
            start, _, end, _ = place(selector, "#timeline")
            expected = [0.1, 0.45] if "+" not in selector else [0.6, 0.9]
            assert [start, end] == pytest.approx(expected, abs=0.01)
        marks = (".rail", "div.bar", "div.bar + .bar", "svg", ".tick")
        rows = [place(f".timeline {mark}", "#timeline") for mark in marks]
        assert all(above[3] <= below[1] for above, below in zip(rows, rows[1:], strict=False))

        page.click(".timeline .stated")  # the time that the text states
        page.wait("!video.seeking && Math.abs(video.currentTime - 1.4) < 0.01")
        assert page.js("document.documentElement.scrollWidth") == 400
        assert not [e for e in page.events if e["method"] == "Runtime.exceptionThrown"]


@needs_browser
def test_annotated_video_plays_in_chromium(clip: videos.Fixture, tmp_path: Path) -> None:
    annotate_video(clip.path, _answer(clip), tmp_path / "out.mp4")
    page = tmp_path / "page.html"
    page.write_text("<video id=video muted src=out.mp4></video>")
    with browser.Browser(page, tmp_path / "profile") as chromium:
        chromium.wait("video.readyState >= 2")
        chromium.js("video.play()")
        chromium.wait("video.currentTime > 0.2")
        assert [chromium.js(f"video.{name}") for name in ("videoWidth", "videoHeight")] == [600, 386]

"""The HTML report, taken apart as a browser's parser does it."""

from __future__ import annotations

import base64
import io
import json
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from o3jax import notes
from o3jax.metrics.boxes import box_iou
from o3jax.report import embedded, html, write_report
from tests.support import numbered as videos
from tests.support.answers import (
    BOX,
    RELEVANCE,
    TEXT_BOX,
    make_answer,
    make_evidence,
    numbers_shown,
    two_estimates,
)


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


def test_report_holds_everything_and_loads_nothing(numbered: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(make_answer(numbered), numbered.path, out)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = _Page(out)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "poster", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?:", out.read_text(encoding="utf-8"))
    assert page.addresses("video") == [numbered.path.read_bytes()]
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


def test_pictures_show_the_named_frames(numbered: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    # At 1.99 s picture 19 is still there, but the answer names frame 50 at 25 per second: 2.00 s, picture 20.
    evidence = (
        make_evidence("a", 1.0, BOX),
        make_evidence("b", 1.99, None),
        make_evidence("c", 3.9, (0, 0, 1, 1)),
    )
    write_report(make_answer(numbered, evidence=evidence), numbered.path, out)
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


def test_report_of_two_estimates(numbered: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(two_estimates(numbered), numbered.path, out)
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

    write_report(two_estimates(numbered, question="猫在哪里?"), numbered.path, out)
    text = _Page(out).text.replace("\u00a0", " ")
    for row in ("解码器 1.00 ± 0.25秒 · 第25帧", "文本 1.40秒 · 第35帧", "相差0.40秒 · 框IoU", "搜索范围"):
        assert row in text, row


def test_report_without_evidence_modules_has_none_of_it(numbered: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(make_answer(numbered, relevance=(), candidates=()), numbered.path, out)
    page = _Page(out)
    assert not {"svg", "path"} & {tag for tag, _ in page.tags}
    classes = {name for _, a in page.tags for name in (a.get("class") or "").split()}
    assert not classes & {"legend", "stated", "solid", "dashed", "estimate", "area", "band"}
    assert "style" not in next(a for _, a in page.tags if a.get("id") == "timeline")
    assert "1.0 s · frame 25" in page.text and "Decoder" not in page.text


def test_chinese_report(numbered: videos.Fixture, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    answer = make_answer(
        numbered,
        question="猫在哪里?",
        evidence=(make_evidence("猫", 99.0, BOX), make_evidence("狗", -1.0, None)),
    )
    write_report(answer, numbered.path, out)
    page = _Page(out)
    assert "需人工核实" in page.text and "词元平均概率" in page.text and page.text.count("不在视频中") == 2
    assert dict(page.tags)["html"] == {"lang": "zh-CN"}
    assert "Evidence" not in page.text and page.addresses("img") == []


@pytest.mark.parametrize("case", ["too large", "rotated", "late", "other codec", "partial"])
def test_reduced_copy(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / ("in.webm" if case == "other codec" else "in.mp4")
    late = 15 if case == "late" else 0
    numbered = videos.write_video(
        source,
        [late + i for i in range(15)],
        Fraction(1, 10),
        rotation=90 if case == "rotated" else 0,
        codec="libvpx-vp9" if case == "other codec" else "libx264",
        audio_s=2.0 if case == "late" else 0.0,  # the sound starts at once
    )
    if case == "too large":
        monkeypatch.setattr(embedded, "VIDEO_BYTES", source.stat().st_size - 1)
    answer = make_answer(
        numbered, evidence=(), video={"status": "partial" if case == "partial" else "complete"}
    )
    write_report(answer, source, tmp_path / "report.html")
    page = _Page(tmp_path / "report.html")
    assert "reduced copy" in page.text and "20 MB" not in page.text
    why = {"too large": "too large", "partial": "damaged"}.get(case, "not every browser plays")
    assert why in page.text
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(page.addresses("video")[0])
    with av.open(str(copy)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        rate = container.streams.video[0].average_rate
    assert rate == (25 if case != "too large" else rate)
    assert numbers_shown(copy, 1) == numbered.numbers_at(rate)


def test_notes_of_a_chinese_report_are_chinese(numbered: videos.Fixture, tmp_path: Path) -> None:
    """Every note that reading or answering makes; names and numbers stay."""
    said = []
    for name, (english, _) in notes._SENTENCES.items():
        said.append(notes.Note(name, *(7.5 for _ in range(len(re.findall(r"\{", english))))))
    video = {"path": "a.mp4", "status": "partial", "notes": said}
    write_report(
        make_answer(numbered, question="猫在哪里?", video=video, evidence=()), numbered.path, tmp_path / "r"
    )
    text = _Page(tmp_path / "r").text
    for note in said:
        assert note.text("zh") in text and str(note) not in text
    write_report(
        make_answer(numbered, question="Where?", video=video, evidence=()), numbered.path, tmp_path / "r"
    )
    assert all(str(note) in _Page(tmp_path / "r").text for note in said)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_page_is_bounded_whatever_the_model_prints(
    numbered: videos.Fixture, tmp_path: Path, language: str
) -> None:
    claim = "<obj>cat</obj><box>[1,2,3,4]</box>at<t>1.0</t>s "
    long = claim * (10**6 // len(claim))
    answer = make_answer(
        numbered,
        question="猫?" if language == "zh" else "Where?",
        text="1.21." * 200_000,
        reasoning=long,
        raw=long,
        evidence=tuple(make_evidence("x" * 5000, i % 40 / 10, BOX) for i in range(1000)),
        intervals=((0.5, 1.0),) * 5000,
        candidates=((0.5, 1.0),) * 5000,
        relevance=tuple((i / 50_000, 0.5 if i != 777 else 1.0) for i in range(200_000)),
    )
    write_report(answer, numbered.path, tmp_path / "r.html")
    size = (tmp_path / "r.html").stat().st_size - 4 * numbered.path.stat().st_size / 3
    assert size < 2 * 2**20
    page = _Page(tmp_path / "r.html")
    assert len(page.addresses("img")) == 2 * html.MAX_PICTURED
    assert ("800 more pieces" if language == "en" else "其余800条") in page.text
    left_out = len(long) - html.MAX_CHARACTERS
    assert (
        page.text.count(f"{left_out} more characters" if language == "en" else f"其余{left_out}个字符") == 2
    )
    (line,) = (a for tag, a in page.tags if a.get("class") == "line")
    assert line["d"].count(",") <= 2002 and ",0.0" in line["d"]  # the highest is still there

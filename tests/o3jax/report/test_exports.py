"""What is exported is read back by the other tools' own libraries."""

from __future__ import annotations

import csv
import html
import json
import xml.etree.ElementTree as ET

import numpy as np
import pycmx
import pysrt
import pytest
import webvtt
import yaml
from PIL import Image
from pycocotools.coco import COCO

from o3jax.grounding import Grounding
from o3jax.report.exports import EXPORTS, export
from o3jax.report.moments import Moment, VideoMoments

NAME = 'a <b> & "c" --> 汉字'


@pytest.fixture(scope="module")
def videos(numbered):
    """Two records of one video of 4 s at 10 frames per second; boxes move from one evidence to the next."""
    first = (
        Grounding("x", 1.0, boxes=((0.25, 0.25, 0.5, 0.75),), confidence=0.9),
        Grounding("x", 1.5, boxes=((0.5, 0.25, 0.75, 0.75),), confidence=0.8),
    )
    found = (
        Moment(NAME, 0.5, 2.04, 0.9, first, "it is\nthere"),
        Moment("plain", 1.0, 3.2, 0.4, (Grounding("y", 1.0, boxes=((0, 0, 1, 1),)),), needs_review=True),
        Moment("nowhere", 3.0, 3.5, 0.7),
    )
    size = (160, 96)
    one = VideoMoments(str(numbered.path), size, 4.0, 10.0, found, (Moment("begin", 0.0, 2.0, 1.0),))
    return [one, VideoMoments(str(numbered.path), size, 4.0, 10.0, found[2:])]


@pytest.fixture
def exported(videos, tmp_path):
    def write(name):
        export(name, videos, tmp_path / "exports" / name)
        return tmp_path / "exports" / name

    return write


def test_coco(exported, videos):
    folder = exported("coco")
    coco = COCO(str(folder / "annotations.json"))
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == {NAME, "plain", "nowhere"}
    assert len(coco.getImgIds()) == 2 and len(coco.getAnnIds()) == 3
    [image] = [i for i in coco.loadImgs(coco.getImgIds()) if i["frame_id"] == 10]
    found = {coco.cats[a["category_id"]]["name"]: a for a in coco.loadAnns(coco.getAnnIds(image["id"]))}
    assert found[NAME]["bbox"] == [40, 24, 40, 48] and found["plain"]["bbox"] == [0, 0, 160, 96]
    mask = coco.annToMask(found[NAME])
    assert mask.shape == (96, 160) and mask.sum() == pytest.approx(40 * 48, abs=100) and mask[48, 60]
    with Image.open(folder / "images" / image["file_name"]) as picture:
        assert picture.size == (160, 96)


def test_yolo(exported):
    folder = exported("yolo")
    names = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))["names"]
    pictures = sorted((folder / "images" / "train").iterdir())
    rows = [
        [float(n) for n in line.split()]
        for picture in pictures
        for line in (folder / "labels" / "train" / f"{picture.stem}.txt").read_text().splitlines()
    ]
    assert len(pictures) == 2 and len(rows) == 3
    assert [0, 0.375, 0.5, 0.25, 0.5] in [[names[r[0]] != NAME, *r[1:]] for r in rows]
    assert np.all((np.array(rows)[:, 1:] >= 0) & (np.array(rows)[:, 1:] <= 1))


def test_subtitles(exported):
    vtt = webvtt.read(exported("vtt") / "clip.vtt")
    assert [(c.start, c.end) for c in vtt.captions] == [
        ("00:00:00.500", "00:00:02.040"), ("00:00:01.000", "00:00:03.200"), ("00:00:03.000", "00:00:03.500"),
    ]  # fmt: skip
    assert html.unescape(vtt.captions[0].text) == NAME and vtt.captions[0].raw_text.count("-->") == 0
    chapters = webvtt.read(exported("vtt") / "clip.chapters.vtt")
    assert [(c.start, c.text) for c in chapters.captions] == [("00:00:00.000", "begin")]
    subtitles = pysrt.open(str(exported("srt") / "clip.srt"), encoding="utf-8")
    assert [(s.start.ordinal, s.end.ordinal) for s in subtitles] == [(500, 2040), (1000, 3200), (3000, 3500)]
    assert [s.index for s in subtitles] == [1, 2, 3] and subtitles[1].text == "plain"
    assert len(pysrt.open(str(exported("srt") / "clip-2.srt"), encoding="utf-8")) == 1


def test_edl(exported):
    with (exported("edl") / "clip.edl").open(encoding="utf-8") as file:
        edl = pycmx.parse_cmx3600(file)
    edits = [edit for event in edl.events for edit in event.edits]
    assert [(str(e.source_in), str(e.source_out)) for e in edits] == [
        ("00:00:00:05", "00:00:02:00"), ("00:00:01:00", "00:00:03:02"), ("00:00:03:00", "00:00:03:05"),
    ]  # fmt: skip
    assert [str(e.record_in) for e in edits] == ["00:00:00:00", "00:00:01:05", "00:00:03:07"]
    assert edits[0].clip_name == "clip.mp4"


def test_csv_json_and_activitynet(exported):
    with (exported("csv") / "moments.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["begin", NAME, NAME, "plain", "nowhere", "nowhere"]
    assert [rows[1][k] for k in ("time_s", "frame", "x1", "y1", "x2", "y2")] == [
        "1.000", "10", "40.0", "24.0", "80.0", "72.0",
    ]  # fmt: skip
    assert rows[3]["needs_review"] == "1" and rows[1]["text"] == "it is there"
    said = json.loads((exported("json") / "moments.json").read_text(encoding="utf-8"))["videos"]
    assert said[0]["moments"][0]["evidence"][1]["box"] == [0.5, 0.25, 0.75, 0.75]
    database = json.loads((exported("activitynet") / "activitynet.json").read_text(encoding="utf-8"))[
        "database"
    ]
    assert set(database) == {"clip", "clip-2"} and database["clip"]["duration"] == 4.0
    assert database["clip"]["annotations"][1] == {"segment": [1.0, 3.2], "label": "plain", "score": 0.4}


def test_cvat(exported):
    """CVAT's XML for video 1.1, as its documentation has it: every field that its importer reads."""
    root = ET.parse(exported("cvat") / "clip.xml").getroot()
    assert root.findtext("version") == "1.1" and root.findtext("meta/task/size") == "40"
    assert [e.text for e in root.findall("meta/task/labels/label/name")] == sorted({NAME, "plain", "nowhere"})
    tracks = {track.get("label"): track.findall("box") for track in root.findall("track")}
    assert set(tracks) == {NAME, "plain"}  # what has no box has no track
    moved = [
        (int(b.get("frame")), b.get("outside"), [float(b.get(k)) for k in ("xtl", "ytl", "xbr", "ybr")])
        for b in tracks[NAME]
    ]
    left, right = [40.0, 24.0, 80.0, 72.0], [80.0, 24.0, 120.0, 72.0]
    assert moved == [(5, "0", left), (10, "0", left), (15, "0", right), (20, "0", right), (21, "1", right)]
    assert {b.get("keyframe") for b in tracks[NAME]} == {"1"}


def test_label_studio(exported):
    """As Label Studio's templates for video tracking and timelines have it: frames from 1, percent."""
    folder = exported("label_studio")
    view = ET.parse(folder / "config.xml").getroot()
    controls = {e.get("name"): e for e in view if e.get("name")}
    assert {e.get("value") for e in controls["when"]} == {NAME, "plain", "nowhere"}
    task = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))[0]
    results = task["predictions"][0]["result"]
    for one in results:
        assert controls[one["from_name"]].get("toName") == one["to_name"] == "video"
    when, box = results[:2]
    assert when["value"] == {"ranges": [{"start": 6, "end": 21}], "timelinelabels": [NAME]}
    assert box["type"] == "videorectangle" and box["value"]["framesCount"] == 40
    first = box["value"]["sequence"][0]
    assert (first["frame"], first["enabled"]) == (6, True)
    assert [first[k] for k in ("x", "y", "width", "height")] == [25, 25, 25, 50]
    assert box["value"]["sequence"][-1]["enabled"] is False


@pytest.mark.parametrize("name", EXPORTS)
def test_nothing_found_is_a_valid_file_too(name, numbered, tmp_path):
    empty = VideoMoments(str(numbered.path), (160, 96), 4.0, 10.0, ())
    for n, videos in enumerate(([], [empty])):
        export(name, videos, tmp_path / str(n))
        assert (tmp_path / str(n)).is_dir()


def test_cvat_is_read_by_its_maker_s_library(exported):
    dataset = pytest.importorskip("datumaro", reason="datumaro wants an older numpy: install it elsewhere")
    read = dataset.Dataset.import_from(str(exported("cvat") / "clip.xml"), "cvat")
    found = {item.id: [a.points for a in item.annotations] for item in read}
    assert [40.0, 24.0, 80.0, 72.0] in found["frame_000010"]


def test_label_studio_s_own_checks_pass(exported):
    reason = "label-studio-sdk wants an older numpy: install it elsewhere"
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason=reason)
    folder = exported("label_studio")
    interface = sdk.LabelInterface((folder / "config.xml").read_text(encoding="utf-8"))
    interface.validate()
    for task in json.loads((folder / "tasks.json").read_text(encoding="utf-8")):
        assert interface.validate_task({"data": task["data"]})
        assert not [interface.validate_prediction(p, return_errors=True) for p in task["predictions"]][0]

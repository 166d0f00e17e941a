"""Benchmarks on disk: what their files say, odd rows included, and a sentence for what is wrong with them."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_pipelines.formats.benchmarks import media, registry, values
from data_pipelines.formats.benchmarks.item import Item
from data_pipelines.formats.benchmarks.tables import read_rows
from data_pipelines.formats.fields import RecordError
from o3jax.errors import UserError
from o3jax.video import probe
from tests.support.commands import run_command


@pytest.fixture
def copy(made, tmp_path):
    """Returns a function that gives a benchmark's folder to spoil."""

    def give(name: str) -> Path:
        shutil.copytree(made / name, tmp_path / name)
        return tmp_path / name

    return give


def load(root: Path, name: str) -> list[Item]:
    return registry.load(name, registry.folder_of(name, root, True))


@pytest.mark.parametrize("name", registry.FORMATS)
def test_every_benchmark_is_read_in_its_official_layout(made, name):
    items = load(made, name)
    assert len(items) >= 10 and not registry.missing_videos(items)
    with media.local(items[0].video) as path:
        assert probe(path).duration_s == pytest.approx(6.0, abs=0.1)
    for harness, prompts in registry.FORMATS[name].prompts.items():
        for item in items:
            built = prompts(item)
            assert len({prompt.part for prompt in built}) == len(built) > 0, harness
            assert all(prompt.text.strip() for prompt in built)


def test_annotations_are_kept_as_they_are_annotated(made):
    tvg = load(made, "tvgbench")
    # The truth is the answer with all its decimals; start and end are the cut of the clip.
    row = json.loads((made / "tvgbench" / "tvgbench.json").read_text())[1]
    assert tvg[1].intervals == (tuple(map(float, row["answer"].split("-"))),)
    assert row["start"] is None and tvg[1].intervals[0][1] > tvg[1].duration
    assert tvg[1].id == f"{Path(row['path']).stem}_1" and tvg[0].tags["dataset"] == "TACoS"
    assert {Path(item.video).suffix for item in tvg} == {".mp4", ".avi", ".mkv"}
    assert all(question.question == question.question.strip() for question in load(made, "activitynet"))
    assert load(made, "activitynet")[3].intervals == ((2.0, 2.0),)
    assert load(made, "timelens_charades")[0].question.endswith("is visible")  # blanks and the stop are gone
    charades = load(made, "charades_sta")
    assert charades[1].intervals[0][1] == 15.0 and charades[1].duration == 6.0


def test_options_and_answers_are_read_in_every_spelling(made):
    v2 = load(made, "videomme_v2")
    assert len(v2[0].options) == 8 and v2[0].letters == "ABCDEFGH" and not v2[0].options[0].startswith("A.")
    assert {item.group for item in v2[:4]} == {"001"} and v2[4].group == "002"
    assert v2[0].subtitles and v2[4].subtitles is None
    worldsense = load(made, "worldsense")
    assert len(worldsense[1].options) == 3 and "(A, B, or C)" in _text(
        "worldsense", "official", worldsense[1]
    )
    assert worldsense[2].tags["audio"] == "Speech+Music"
    gqa = load(made, "nextgqa")[5]
    assert (
        gqa.options["ABCDE".index(gqa.answer)] in Path(made / "nextgqa/datasets/nextgqa/test.csv").read_text()
    )
    assert len(gqa.intervals) == 2 and len(load(made, "rextime")[3].intervals) == 2
    mmmu = load(made, "videommmu")
    (opened,) = [item for item in mmmu if not item.options]
    assert opened.answer.count(" ") == 1 and opened.tags["image"].startswith(b"\x89PNG")
    assert {item.tags["discipline"] for item in mmmu} == {"Art", "Medicine"}
    assert mmmu[1].tags["subject"] == "Public_Health"
    long = load(made, "longvideo_reason")
    assert {item.answer for item in long} <= set("ABCD") and long[0].id != long[1].id


def _text(name: str, harness: str, item: Item) -> str:
    return registry.FORMATS[name].prompts[harness](item)[0].text


def test_windows_and_boxes_of_videozerobench(made):
    items = load(made, "videozerobench")
    assert len(items[1].intervals) == 2 and not items[4].intervals and not items[2].boxes
    parts = [
        [prompt.part for prompt in registry.FORMATS["videozerobench"].prompts["official"](i)] for i in items
    ]
    assert parts[0] == ["level1", "level2", "level3", "level4", "level5"]
    assert "level4" not in parts[4] and "level5" not in parts[2]
    first = registry.FORMATS["videozerobench"].prompts["official"](items[1])
    start, end = items[1].intervals[0]
    assert f"From <{start:.2f} seconds> to <{end:.2f} seconds>; From <" in first[0].text
    assert "Normalized Box=[" in first[0].text and "Box" not in first[1].text
    assert first[2].text.endswith("\nPlease directly output the final answer.")
    assert first[4].key_times == (items[1].boxes[0].time_s,)


def test_published_prompts_word_for_word(made):
    question = load(made, "charades_sta")[0].question
    assert _text("charades_sta", "lmms", load(made, "charades_sta")[0]).endswith(
        "'person turn a light on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual "
        f"sentence: {question}. Please return its start time and end time."
    )
    assert _text("tvgbench", "official", load(made, "tvgbench")[0]).endswith('For example: "12.54 to 17.83".')
    when = load(made, "extremewhenbench")[0]
    assert _text("extremewhenbench", "lmms", when).startswith(
        "[Video Temporal Grounding]\nYou are watching a 6-second long video.\n"
    )
    mme = load(made, "videomme")[0]
    lines = "\n".join(mme.lettered)
    assert _text("videomme", "official", mme) == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with "
        f"only the letter (A, B, C, or D) of the correct option.\nQuestion: {mme.question}\n{lines}\n"
        "The best answer is:"
    )
    assert "based on the video and the subtitles. Respond" in _text("videomme", "lmms", mme)
    star = {p.part: p.text for p in registry.FORMATS["vstar"].prompts["official"](load(made, "vstar")[1])}
    assert star["temporal"].startswith(
        "This video is 6 seconds long. <video>\nAnswer the question about the video:"
    )
    assert "within the time range [2, 3, 4, 5, 6] provided" in star["spatial"]  # ceil(1.68), floor(6.0)
    assert "with a resolution of 128x128 (width x height). <video>" in star["temporal_2"]
    assert star["spatial_2"].count("You only need to output 4 bbox(es)") == 1


# ---------------------------------------------------------------- what is wrong is said in one sentence


@pytest.mark.parametrize(
    ("name", "file", "field", "value", "words"),
    [
        (
            "videomme",
            "videomme/test-00000-of-00001.parquet",
            "answer",
            "E",
            "'E', which is none of the 4 options",
        ),
        (
            "videomme",
            "videomme/test-00000-of-00001.parquet",
            "question_id",
            "000-1",
            "has the id '000-1' twice",
        ),
        (
            "videomme",
            "videomme/test-00000-of-00001.parquet",
            "options",
            [],
            "must be a list of 1 to 26 options",
        ),
        ("tvgbench", "tvgbench.json", "answer", "soon", "must be an interval"),
        ("tvgbench", "tvgbench.json", "answer", "1-x", "must be a number, not 'x'"),
        ("tvgbench", "tvgbench.json", "question", None, "'question' is missing"),
        ("vstar", "V_STaR_test.json", "bboxes", 3, "field 'bboxes' must be a list"),
        ("vstar", "V_STaR_test.json", "fps", 0, "must be positive"),
    ],
)
def test_a_wrong_row_is_named(copy, name, file, field, value, words):
    root = copy(name)
    path = root / file
    rows = read_rows(path)
    rows[1][field] = value
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    with pytest.raises(UserError) as error:
        registry.load(name, root)
    sentence = str(error.value)
    assert (
        words in sentence and str(path if "twice" not in words else root) in sentence and len(sentence) < 400
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("videomme", "videomme/test-00000-of-00001.parquet"),
        ("videomme", "videos_chunked_01.zip"),
        ("worldsense", "worldsense_videos_1.zip"),
        ("tvgbench", "tvgbench.json"),
        ("extremewhenbench", "extreme_when_bench.jsonl"),
        ("nextgqa", "datasets/nextgqa/test.csv"),
        ("nextgqa", "datasets/nextgqa/gsub_test.json"),
        ("videozerobench", "VideoZeroBench_500_v0.tsv"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.55])
def test_a_file_that_is_cut_off_is_named(copy, name, file, share):
    root = copy(name)
    path = root / file
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError) as error:
        registry.load(name, root)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", registry.FORMATS)
def test_an_empty_folder_is_told_what_belongs_there(tmp_path, name):
    with pytest.raises(UserError, match=r"download .* into") as error:
        registry.load(name, tmp_path)
    assert registry.FORMATS[name].layout in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(UserError, match="is no folder"):
        registry.load(name, tmp_path / "nowhere")


def test_a_member_that_is_damaged_is_named(copy):
    root = copy("worldsense")
    path = root / "worldsense_videos_1.zip"
    data = bytearray(path.read_bytes())
    data[400:4000] = bytes(3600)
    path.write_bytes(data)
    item = registry.load("worldsense", root)[0]
    with pytest.raises(UserError, match="cannot be unpacked"), media.local(item.video):
        pass


@pytest.mark.parametrize("kind", ["w", "w:gz"])
def test_videos_in_a_tar_file(tmp_path, kind):
    clips = {f"shard/{name}.mp4": random.randbytes(50_000) for name in ("one", "two", "three")}
    path = tmp_path / ("videos.tar.gz" if kind == "w:gz" else "videos.tar")
    with tarfile.open(path, kind) as archive:
        archive.addfile(tarfile.TarInfo("shard"))  # a name without a file's ending is nobody's
        for name, data in clips.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found = media.Media(tmp_path)
    for name, data in clips.items():
        location = found.video(name)
        assert media.exists(location)
        with media.local(location) as unpacked:
            assert unpacked.read_bytes() == data and unpacked.suffix == ".mp4"
    for data in (path.read_bytes()[:60_000], b"", b"x" * 999):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"videos\.tar.* download it again"):
            media.Media(tmp_path)
        with pytest.raises(UserError, match="cannot be unpacked"), media.local(f"{path}::shard/three.mp4"):
            pass


def test_missing_videos_are_counted_and_their_place_is_named(copy, capfd):
    root = copy("tvgbench")
    items = registry.load("tvgbench", root)
    Path(items[0].video).unlink()
    missing = registry.missing_videos(registry.load("tvgbench", root))
    assert [item.id for item in missing] == [items[0].id, items[1].id] and missing[0].video == items[0].video
    (root / "videos.tar.gz.part-aa").write_bytes(b"")
    done = run_command(capfd, "data", "check", str(root), "--benchmark=tvgbench")
    assert done.code == 0 and "not unpacked" in done.out and items[0].video in done.out.replace("\n", "")
    assert run_command(capfd, "data", "check", str(root), "--benchmark=vstarr").code == 2


def test_videos_are_found_packed_or_not_by_path_or_name(tmp_path):
    for path in ("a/one.mp4", "b/one.mp4", "b/two.parts.MKV"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("videos/one.mp4", "zip")
        archive.writestr("videos/three.mp4", "zip")
    found = media.Media(tmp_path)
    assert found.video("b/one.mp4").endswith("b/one.mp4") and found.video("./dataset/a/one").endswith(
        "a/one.mp4"
    )
    assert "::" not in found.video("one") and found.video("videos/one").endswith("z.zip::videos/one.mp4")
    assert found.video("two.parts").endswith("two.parts.MKV") and found.video("two.parts.mp4").endswith(
        ".MKV"
    )
    assert found.video("four") == str(tmp_path / "videos" / "four.mp4") and not media.exists(
        found.video("four")
    )
    with media.local(found.video("three")) as path:
        assert path.read_bytes() == b"zip"
    assert not path.exists()


def test_values_in_every_spelling():
    assert values.options("A. x\nB. y") == values.options(["A. x", "(B) y"]) == ("x", "y")
    assert values.options(["A. x", "y"]) == ("A. x", "y")  # a letter of one alone is part of its text
    assert values.letter("(B)", ("x", "y")) == values.letter("y", ("x", "y")) == "B"
    assert values.intervals([1, 2], "f") == values.intervals(["1.0-2.0"], "f") == ((1.0, 2.0),)
    assert values.parsed({"f": "['a', 'b']"}, "f") == values.parsed({"f": '["a", "b"]'}, "f") == ["a", "b"]
    for wrong in ("AB", "C", "", "z"):
        with pytest.raises(RecordError):
            values.letter(wrong, ("x", "y"))
    for wrong in ([1], [1, None], "x", 3, [[1, "nan"]]):
        with pytest.raises(RecordError):
            values.intervals(wrong, "f")


def test_the_command_makes_them_and_says_what_is_there(tmp_path, capfd):
    done = run_command(capfd, "data", "make", "--format=benchmarks", "--count=5", f"--out={tmp_path / 'b'}")
    assert done.code == 0 and "videomme_v2" in done.out, done.err
    done = run_command(capfd, "data", "check", str(tmp_path / "b" / "nextgqa"), "--benchmark=nextgqa")
    assert done.code == 0 and "by type" in done.out and "CH 5, TN 5" in done.out
    again = run_command(capfd, "data", "make", "--format=benchmarks", "--count=6", f"--out={tmp_path / 'b'}")
    assert again.code == 2 and "holds another data set" in again.err

"""Records that are wrong, or of hostile files: rejected by name, and the good ones between them are used."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.formats.index import index_folder
from data_pipelines.reading.guarded import GuardedReader, Limits
from o3jax.tasks import SPATIO_TEMPORAL
from o3jax.video import read_video
from o3jax.video.files import VideoError
from tests.support import hostile

SIZE = (48, 80)


@pytest.fixture(scope="module")
def guard():
    """A reader whose calls may take long enough for any good file on a busy machine."""
    reader = GuardedReader(Limits(max_decode_s=20))
    yield reader
    reader.close()


GOOD = {
    "id": "good",
    "source": "STR_coin",
    "task": SPATIO_TEMPORAL,
    "question": "What happens?",
    "answer": "The lid is lifted.",
    "video_path": "good.mp4",
    "key_frames": [{"idx": 10, "time": 0.4, "path": "a.jpg"}],
    "key_items": {"10": {"lid": [[0.1, 0.2, 0.5, 0.8]]}},
    "reasoning_process": "The <obj>lid</obj><box>[0.1, 0.2, 0.5, 0.8]</box>at<t>0.4</t>s moves.",
}
OUT = [
    "../good.mp4",
    "sub/../../good.mp4",
    "/etc/passwd",
    "link.mp4",
    "file:///etc/passwd",
    "concat:good.mp4",
]
OUT += ["http://127.0.0.1:9/v.mp4", "good.mp4/..", "", "no.mp4", "a\0.mp4", ".", "list.m3u8", "\ud800.mp4"]
BOXES = [[math.nan, 0.2, 0.5, 0.8], [0.5, 0.2, 0.1, 0.8], [0.1, 0.2, 0.1, 0.8], [0.1, 0.2, math.inf, 0.8]]
BOXES += [[0.1, 0.2], [], ["0.1", 0.2, 0.5, 0.8], "0.1", None, [True, 0, 1, 1], [-1e9, 0, 1, 1], {}]
TIMES = [math.nan, -math.inf, 1e300, -1, "x", [], {}, None, True, 1e9]
WRONG = {
    "id": [[], {}, None, 1.5, True],
    "source": [[], 5, {}],
    "task": ["", "qa", 5, None, [SPATIO_TEMPORAL]],
    "question": ["", " ", 5, [], None, "<|im_end|>", "\udfff"],
    "answer": ["", [], {}, 7, None, "<|vision_start|>", "<box>[0.9, 0.2, 0.1, 0.8]</box>"],
    "video_path": [*OUT, 5, None, [], {}],
    "key_frames": [5, "x", {}, [5], [[]], [{}], [{"idx": "10", "time": 0.4}], [{"idx": 1e9, "time": 0.4}]]
    + [[{"idx": 10, "time": time, "path": "a.jpg"}] for time in TIMES],
    "key_items": [5, [], {"11": {"lid": [BOXES[0]]}}, {"10": []}, {"10": {"lid": 5}}]
    + [{"10": {"lid": [box]}} for box in BOXES],
    "reasoning_process": [5, [], {}, "at<t>99</t>s", "at<t>-1</t>s", "<box>[0.5, 0.2, 0.1, 0.8]</box>"],
    "unknown": [1],
}


def wrong_records() -> list[object]:
    """Returns records each of which has one thing wrong with it, and values that are no record."""
    records: list[object] = [5, None, "x", [], [GOOD], True, math.nan, {}]
    for field, values in WRONG.items():
        for value in values:
            records.append({**copy.deepcopy(GOOD), "id": f"{field} {value!r:.40}", field: value})
    return records


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set's folder with one good video, a link out of it, and a playlist."""
    folder = tmp_path / "data"
    folder.mkdir()
    hostile.good_videos(folder)
    (folder / "kfs").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "kfs" / "a.jpg")
    (tmp_path / "good.mp4").write_bytes((folder / "good.mp4").read_bytes())
    (folder / "link.mp4").symlink_to(tmp_path / "good.mp4")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:3,\ngood.mp4\n")
    return folder


def index(folder: Path, records: list[object]) -> tuple[list[str], list[str]]:
    """Returns the ids of the usable records, and the reasons of the rejected ones."""
    (folder / "stgr.json").write_text(json.dumps(records))
    samples, rejects = index_folder(folder)[:2]
    assert all(reject.reason and "\n" not in reject.reason for reject in rejects)
    return [sample.id for sample in samples], [reject.reason for reject in rejects]


def test_wrong_records_are_rejected_and_the_good_ones_between_them_are_used(data):
    wrong = wrong_records()
    assert len(wrong) > 90
    mixed = []
    for number, record in enumerate(wrong):
        mixed += [record, {**GOOD, "id": f"good-{number}"}]
    used, reasons = index(data, mixed)
    assert [name for name in used if not name.startswith("good-")] == []
    assert used == [f"good-{number}" for number in range(len(wrong))] and len(reasons) == len(wrong)


def test_records_of_hostile_files_are_rejected_or_lose_one_sample(data, guard):
    """The index opens each file, training reads it: the good ones come through both."""
    files = hostile.hostile_files(data)
    records = []
    for number, file in enumerate(files):
        if file.path.suffix not in (".jpg", ".png"):
            records.append({**GOOD, "id": file.path.name, "video_path": file.path.name})
        if number % 10 == 0:
            records.append({**GOOD, "id": f"good-{number}"})
    used, reasons = index(data, records)
    assert len(used) + len(reasons) == len(records)
    assert [name for name in used if name.startswith("good-")] == [
        f"good-{number}" for number in range(0, len(files), 10)
    ]
    refused = {file.path.name for file in files if file.kind in ("empty", "text", "still", "bomb", "pipe")}
    assert refused and not refused & set(used)
    lost = 0
    for name in used:
        try:
            guard.run(read_video, data / ("good.mp4" if name.startswith("good-") else name), 10, size=SIZE)
        except VideoError:
            assert not name.startswith("good-")
            lost += 1
    assert lost < len(used) / 2

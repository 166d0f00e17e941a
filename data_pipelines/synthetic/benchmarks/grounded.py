"""The benchmarks that ask when and where, with the odd rows of their real files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.synthetic.benchmarks.files import (
    Fact,
    place,
    write_jsonl,
    write_parquet,
    write_table,
    write_tar,
    write_zip,
)
from o3jax.files import write_json, write_text


def vstar(root: Path, facts: Sequence[Fact]) -> None:
    """Writes V-STaR."""
    rows = []
    for fact in facts:
        start, end = fact.interval
        height, width = fact.scene.size
        seconds = [s for s in range(int(end) + 1) if start <= s < end] or [int(start)]
        boxes = []
        for second in seconds[: 1 if fact.number % 5 == 0 else None]:  # some items have one box
            box = fact.thing.box(min(max(second, start), end - 0.04))
            corners = [round(side * corner) for side, corner in zip((width, height) * 2, box, strict=True)]
            boxes.append(
                {"timestamp": second, "frame_index": 25 * second}
                | dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
            )
        rows.append(
            {
                "vid": fact.scene.id,
                "domain": ("Sports", "Daily Life")[fact.number % 2],
                "fps": 25 if fact.number % 2 else 25.0,
                "width": width,
                "height": height,
                "frame_count": fact.scene.frame_count,
                "question": f"What is visible at {fact.middle} s?",
                "chain": "<think>...<think>",
                "object": fact.name,
                "answer": f"A {fact.name}.",
                "temporal_question": f"When is the {fact.name} visible?",
                "timestamps": [start, end + (99 if fact.number == 3 else 0)],  # after the video's end
                "spatial_question": f"Where is the {fact.name}?",
                "spatial_question_2": f"Where is the {fact.name}?",
                "bboxes": boxes,
            }
        )
        place(fact, root / "videos" / f"{fact.scene.id}.mp4")
    write_json(root / "V_STaR_test.json", rows)


def videozerobench(root: Path, facts: Sequence[Fact]) -> None:
    """Writes VideoZeroBench."""
    rows = []
    for fact in facts:
        start, end = fact.interval
        half = (start + end) / 2
        windows = [(start, half), (half, end)] if fact.number % 4 == 1 else [(start, end)]
        boxes = [] if fact.number == 2 else [{"time": fact.middle, "box": list(fact.thing.box(fact.middle))}]
        rows.append(
            {
                "video": f"{fact.scene.id}.mp4",
                "question": f"What is at {fact.middle} s?" if fact.number % 2 else "有几个物体?",
                "language": "en" if fact.number % 2 else "cn",
                "answer": fact.name if fact.number % 2 else str(len(fact.scene.objects)),
                "evidence_windows": ""
                if fact.number == 4
                else json.dumps([{"start": s, "end": e} for s, e in windows]),
                "evidence_boxes": json.dumps(boxes),
            }
        )
    write_table(root / "VideoZeroBench_500_v0.tsv", rows)
    write_zip(root / "compressed.zip", facts, lambda fact: f"compressed/{fact.scene.id}.mp4")


def tvgbench(root: Path, facts: Sequence[Fact]) -> None:
    """Writes TVGBench."""
    rows = []
    for fact in facts:
        end = ".avi" if fact.number in (2, 3) else ".mkv" if fact.number in (4, 5) else ".mp4"
        start, stop = fact.interval
        path = f"tacos/{fact.scene.id}{end}"
        rows.append(
            {
                "path": path,
                "question": f"the {fact.name} is visible",
                "answer": f"{start}-{stop + (0.123456789012345 if fact.number else 9)}",
                "start": None if fact.number % 2 else 0.0,  # of the cut: not the truth
                "end": None if fact.number % 2 else fact.scene.duration,
                "duration": fact.scene.duration,
                "question_type": "grounding",
                "source": "made",
                "qsemtype": ("Counting", "Attribute")[fact.number % 2],
                "bins": {"videolen": 0, "qcenter": 0, "qlen": 0, "dataset": "TACoS", "qsemtype": "CO"},
            }
            | ({"dataset_name": "TACoS"} if fact.number % 3 else {})
        )
        place(fact, root / "videos" / path)
    write_json(root / "tvgbench.json", rows)


def charades_sta(root: Path, facts: Sequence[Fact]) -> None:
    """Writes Charades-STA, as text lines."""
    lines = [
        f"{fact.scene.id} {fact.interval[0]} {fact.interval[1] + (9 if fact.number == 1 else 0)}"
        f"##the {fact.name} is visible."
        for fact in facts
    ]
    write_text(root / "Charades_sta_test.txt", "\n".join(lines) + "\n")
    lengths = {fact.scene.id: fact.scene.duration for fact in facts}
    write_table(
        root / "Charades_v1_test.csv", [{"id": vid, "length": length} for vid, length in lengths.items()]
    )
    for fact in facts:
        place(fact, root / "Charades_v1_480" / f"{fact.scene.id}.mp4")


def _by_video(facts: Sequence[Fact], sentences: str, spans: str, blank: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fact in facts:
        record = found.setdefault(fact.scene.id, {"duration": fact.scene.duration, spans: [], sentences: []})
        record[sentences].append(f"{blank}the {fact.name}  is visible.")
        # 134 spans of the real file are empty or out of range.
        span = [2.0, 2.0] if blank and fact.number == 3 else list(fact.interval)
        record[spans].append(span)
    return found


def activitynet(root: Path, facts: Sequence[Fact]) -> None:
    """Writes ActivityNet-Captions."""
    write_json(root / "val_2.json", _by_video(facts, "sentences", "timestamps", " "))
    for fact in facts:
        place(fact, root / "videos" / f"{fact.scene.id}{'.mkv' if fact.number in (2, 3) else '.mp4'}")


def timelens(name: str) -> Callable[[Path, Sequence[Fact]], None]:
    """Returns what writes one set of TimeLens-Bench."""

    def write(root: Path, facts: Sequence[Fact]) -> None:
        if name == "qvhighlights":  # as lmms-eval hands it on: spans are strings
            rows = [
                {
                    "video_path": f"qvhighlights/{fact.scene.id}.mp4",
                    "query": f"the {fact.name} is visible",
                    "span": json.dumps([fact.interval]),
                }
                for fact in facts
            ]
            write_parquet(root / "qvhighlights-00000-of-00001.parquet", rows)
        else:
            write_json(root / f"{name}-timelens.json", _by_video(facts, "queries", "spans"))
        if name == "activitynet":  # as it is downloaded
            for part in (0, 1):
                shard = root / "video_shards" / f"activitynet_{part}.tar.gz"
                write_tar(shard, facts[part::2], lambda fact: f"activitynet/{fact.scene.id}.mp4")
            return
        for fact in facts:
            place(fact, root / "videos" / name / f"{fact.scene.id}.mp4")

    return write


def extremewhenbench(root: Path, facts: Sequence[Fact]) -> None:
    """Writes ExtremeWhenBench."""
    folders = {"LVBench": "lvbench/all_videos", "MLVU": "mlvu", "VideoMME": "videomme/data"}
    rows = []
    for fact in facts:
        corpus = list(folders)[fact.number // 2 % 3]
        rows.append(
            {
                "qid": f"q{fact.number}",
                "video_id": fact.scene.id,
                "source_corpus": corpus,
                "question": f"When is the {fact.name} visible?",
                "correct_interval": list(fact.interval),
                "video_duration_s": fact.scene.duration,
            }
            | ({"category": "object"} if fact.number % 2 else {})
        )
        place(fact, root / folders[corpus] / f"{fact.scene.id}.mp4")
    write_jsonl(root / "extreme_when_bench.jsonl", rows)

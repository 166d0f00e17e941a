"""The data pipeline against a bare loop over the same files, and what it wastes and holds.

Both sides decode the same times of the same videos, convert and resize them, in one process on one core;
the pipeline does besides what training needs: tokens, labels, patches, padding, batches.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

from data_pipelines.index import Index
from data_pipelines.packing import PlannedRows, padding, plan_rows
from data_pipelines.pipeline import Pipeline
from data_pipelines.sft import FolderClips, MakeRow, RowShape
from data_pipelines.synthetic import make_scene, write_video
from o3jax.api import model_folder
from o3jax.hf.config import config_from_hf
from o3jax.prompts.image import resize_video
from o3jax.prompts.processor import load_processor
from o3jax.video import probe

TARGETS = {"pipeline / bare loop": 0.85, "padding": 0.10}


def fixture(folder: Path, videos: int, uses: int) -> FolderClips:
    """Returns clips of the synthetic world on disk, with one to four questions each, a video in several."""
    samples = []
    for number in range(videos):
        scene = make_scene(number, questions=4)
        write_video(scene, folder / f"{number}.mp4")
        for use in range(uses):
            asked = scene.samples()[: 1 + (number + use) % 4]
            samples += [
                dataclasses.replace(s, id=f"{s.id}-{use}", video_path=f"{number}.mp4", task=f"{use}")
                for s in asked
            ]
    media = {f"{number}.mp4": probe(folder / f"{number}.mp4") for number in range(videos)}
    return FolderClips(Index(folder, samples, [], media), 4)


def bare(path: Path, times_s: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the frames shown at the times, decoded in order with PyAV alone, and resized."""
    frames, wanted = [], list(times_s)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        last, start = None, None
        for frame in container.decode(stream):
            start = frame.time if start is None else start
            while wanted and frame.time - start > wanted[0] + 1e-6:
                frames.append(last.to_ndarray(format="rgb24"))
                wanted.pop(0)
            last = frame
            if not wanted:
                break
        frames += [last.to_ndarray(format="rgb24")] * len(wanted)
    return resize_video(np.stack(frames), size)


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _resident() -> float:
    """Returns the MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(rounds: int = 5, rows_each: int = 12, batches: int = 100) -> Mapping[str, Any]:
    """Returns the ratio of the rates (median of interleaved rounds), the padding, and memory over batches."""
    with tempfile.TemporaryDirectory() as scratch:
        data = fixture(Path(scratch), 16, 15)
        folder = model_folder("o3-tiny")
        processor, config = load_processor(folder), config_from_hf(folder)
        maker = MakeRow(processor, config, RowShape(4096, 96, 64, clips=16))
        needs = [maker.needs(clip) for clip in data.clips]
        rows = plan_rows(needs, ["s"] * len(needs), maker.room(), seed=0, mixture={}, epochs=20.0)
        plans = [maker.write(clip).frames for clip in data.clips]
        pipeline = Pipeline(PlannedRows(data.clips, rows), [maker], batch_size=1, seed=0)
        iterator = pipeline.open()
        next(iterator)
        iterator.close()

        # As many rows as are timed, or the rows that are read ahead would count against it.
        first = [tuple(data.clips[n] for n in row) for row in rows[:rows_each]]
        short = dataclasses.replace(pipeline, rows=first)

        def ours() -> None:
            for _ in short.open():
                pass

        def theirs() -> None:
            for row in rows[:rows_each]:
                for n in row:
                    times = np.array([frame.time_s for frame in plans[n].frames])
                    bare(data.clips[n].video, times, plans[n].size)

        ratios = [_timed(theirs) / _timed(ours) for _ in range(rounds)]
        iterator, held = pipeline.open(), []
        for _ in range(batches):
            next(iterator)
            held.append(_resident())
        iterator.close()
        maker.reader.close()
        tenth = max(1, batches // 10)
        return {
            "task": "pipeline / bare loop",
            "ratio": float(np.median(ratios)),
            "ratio_range": [min(ratios), max(ratios)],
            "limit": TARGETS["pipeline / bare loop"],
            "padding": padding(rows, needs, maker.room()),
            "clips per row": sum(map(len, rows)) / len(rows),
            "resident_mib": [float(np.mean(held[tenth : 2 * tenth])), float(np.mean(held[-tenth:]))],
        }


if __name__ == "__main__":
    print(measure())

"""The data pipeline: against a bare loop over the same files, from a cache, its plan and its memory.

pipeline  both sides decode the same times of the same videos, convert and resize them, one after the other;
          the pipeline does besides what training needs: tokens, labels, patches, padding, batches
cache     rows of 360p files with a dense stream, decoded and from a warm cache of decoded frames
plan      what a data set of 31,000 clips costs before the first row
memory    what this process, its data worker and the process that reads files hold over 2,000 small batches

Processor time counts all processes; other work on the machine disturbs it less than the clock.
"""

from __future__ import annotations

import dataclasses
import statistics
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

from data_pipelines.formats.index import Index
from data_pipelines.reading.frame_cache import ArrayCache, CachedReader
from data_pipelines.reading.guarded import GuardedReader
from data_pipelines.reading.sources import VideoSource
from data_pipelines.rows.clips import Clip, FolderClips
from data_pipelines.rows.packing import PlannedRows, padding, plan_rows
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene
from experiments.bench.numbered import textured
from experiments.bench.numbered import write_video as write_numbered
from experiments.bench.tables import Tables, judged
from experiments.bench.timing import ratios, take_turns, timed
from o3jax.hf.config import config_from_hf
from o3jax.hf.folder import model_folder
from o3jax.inputs.image import resize_video
from o3jax.inputs.processor import load_processor
from o3jax.video import probe

TARGET, MOST_PADDING = 0.85, 0.10
CLIPS, DEEP, BATCHES, ROWS = 31_000, 80_000, 2000, 12
CACHED_S = 20  # seconds of the video that is cached


def row_maker(shape: RowShape, evidence: EvidenceShape | None = None) -> MakeRow:
    """Returns what makes rows for o3-tiny; with a dense stream frames are read as large as for an 8B."""
    folder = model_folder("o3-tiny")
    processor = load_processor(folder)
    if evidence:
        large = {"fps": 0.8, "max_frames": 16, "max_pixels": 16 * 252 * 448}
        processor.video_config = dataclasses.replace(processor.video_config, **large)
    return MakeRow(processor, config_from_hf(folder), shape, evidence=evidence)


def fixture(folder: Path, videos: int, uses: int) -> FolderClips:
    """Returns clips of the synthetic world on disk, with one to four questions each, a video in several."""
    samples = []
    for number in range(videos):
        scene = make_scene(number, questions=4)
        write_video(scene, folder / f"{number}.mp4")
        for use in range(uses):
            asked = make_samples(scene)[: 1 + (number + use) % 4]
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


def measure_pipeline(scratch: Path, rounds: int) -> Tables:
    """Returns the rate of the pipeline over that of the bare loop, and the padding."""
    data, maker = fixture(scratch, 16, 15), row_maker(RowShape(4096, 96, 64, clips=16))
    cost = [maker.cost(clip) for clip in data.clips]
    rows = plan_rows(cost, ["s"] * len(cost), maker.capacity(), seed=0, mixture={}, epochs=20.0)
    plans = [maker.write(clip).frames for clip in data.clips]
    # As many rows as are timed, or the rows that are read ahead would count against it.
    first = [tuple(data.clips[n] for n in row) for row in rows[:ROWS]]
    pipeline = Pipeline(first, [maker], batch_size=1, seed=0)

    def bare_loop() -> None:
        for n in (n for row in rows[:ROWS] for n in row):
            times = np.array([frame.time_s for frame in plans[n].frames])
            bare(data.clips[n].source.path, times, plans[n].size)

    maker.map(first[0])  # the process that reads files is there
    seconds = take_turns({"bare loop": bare_loop, "ours": lambda: list(pipeline.open())}, rounds)
    maker.reader.close()
    compared = ratios(seconds["bare loop"], seconds["ours"], "rate / bare loop")
    tokens, frame_pairs = (float(share) for share in padding(rows, cost, maker.capacity()).values())
    spare = {"padding, tokens": tokens, "padding, frame pairs": frame_pairs, "target": f"<= {MOST_PADDING}"}
    spare["verdict"] = "ok" if max(tokens, frame_pairs) <= MOST_PADDING else "missed"
    return {
        "Rate of the pipeline": [compared | judged(compared["rate / bare loop"], TARGET)],
        "Padding of its rows": [spare | {"clips per row": sum(map(len, rows)) / len(rows)}],
    }


def measure_cache(scratch: Path, rounds: int) -> Tables:
    """Returns how many times as long rows take that are decoded as those from a cache."""
    coded = {"size": (360, 640), "gop": 30, "picture_of": textured}
    path = write_numbered(scratch / "360.mp4", range(30 * CACHED_S), Fraction(1, 30), **coded).path
    (sample, *_) = make_samples(make_scene(0, questions=1))
    clip = Clip((dataclasses.replace(sample, video_path=path.name),), VideoSource(path, probe(path)))
    maker = row_maker(RowShape(4096, 8, 1024), EvidenceShape(30 * CACHED_S, 64, 1, 64, 4, 2, 2))
    cache = ArrayCache(scratch / "cache", 2**32)
    cached = dataclasses.replace(maker, reader=CachedReader(GuardedReader(), cache))
    for one in (maker, cached):
        if one.map(clip).failures.error.any():
            raise RuntimeError("the row of the benchmark cannot be read")
    seconds = take_turns({"decoded": lambda: maker.map(clip), "cached": lambda: cached.map(clip)}, rounds)
    maker.reader.close()
    cached.reader.close()
    held = sum(file.stat().st_size for file in cache.folder.iterdir())
    row = ratios(seconds["decoded"], seconds["cached"], "decoded / cached")
    return {"A row from the cache of frames": [row | {"MiB in the cache": held / 2**20}]}


def measure_plan(scratch: Path, rounds: int) -> Tables:
    """Returns what a large data set costs before its first row: counting, an epoch's plan, opening in it."""
    data, maker = fixture(scratch, 16, 15), row_maker(RowShape(4096, 96, 64, clips=16))
    costs, counting = timed(lambda: [maker.cost(clip) for clip in data.clips])
    clips = [data.clips[n % len(data.clips)] for n in range(CLIPS)]
    costs = [costs[n % len(data.clips)] for n in range(CLIPS)]

    def plan() -> list[list[int]]:
        return plan_rows(costs, ["s"] * CLIPS, maker.capacity(), seed=0, mixture={}, epochs=1.0)

    pipeline = Pipeline(PlannedRows(clips, plan()), [maker], batch_size=1, seed=0)
    calls = {"plan": plan, "open": lambda: pipeline.open(DEEP).close()}
    planning, opening = (seconds[:, 0].tolist() for seconds in take_turns(calls, rounds).values())
    row = {
        "counting a clip's tokens, ms": 1000 * float(counting[0]) / len(data.clips),
        f"planning an epoch of {CLIPS:,} clips, s": planning,
        f"opening at row {DEEP:,}, s": opening,
    }
    return {"Before the first row": [row]}


def measure_memory(scratch: Path, rounds: int) -> Tables:
    """Returns the MiB that each process holds, early and at the end, over many batches."""
    del rounds
    data, maker = fixture(scratch, 4, 2), row_maker(RowShape(1024, 12, 64))
    rows = PlannedRows(data.clips, [[n] for n in range(len(data.clips))])
    iterator = Pipeline(rows, [maker], batch_size=1, seed=0, num_workers=1).open()
    this, held = psutil.Process(), []
    for number in range(BATCHES):
        next(iterator)
        if number % 10 == 0:
            all_of_them = [this, *this.children(recursive=True)]
            held.append({process.pid: process.memory_info().rss / 2**20 for process in all_of_them})
    lasting = [process for process in all_of_them if all(process.pid in at for at in held[1:])]
    names = {process.pid: name_of(process) for process in lasting}
    iterator.close()
    tenth = len(held) // 10
    parts = {"second tenth, MiB": held[tenth : 2 * tenth], "last tenth, MiB": held[-tenth:]}
    table = []
    for pid, name in names.items():
        means = {when: statistics.mean(at[pid] for at in part) for when, part in parts.items()}
        table.append({"process": name} | means)
    return {f"Memory over {BATCHES:,} batches": table}


def name_of(process: psutil.Process) -> str:
    """Returns what a process is there for."""
    if process == psutil.Process():
        return "trainer"
    line = " ".join(process.cmdline())
    kinds = {"serve": "reader of files", "resource_tracker": "the library's tracker"}
    return next((kind for word, kind in kinds.items() if word in line), "worker")

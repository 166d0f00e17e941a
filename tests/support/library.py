"""Small videos in which a white square comes and goes, and a stand-in for the model that sees it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from o3jax.report.answer import Answer, Evidence

FPS, SIDE = 10, 64
SQUARE = (0.25, 0.5, 0.5, 0.75)  # x1, y1, x2, y2 in [0, 1]
EVENTS = "events:\n  - name: light\n    question: When is the light on?\n"


def draw(bright: bool) -> np.ndarray:
    frame = np.full((SIDE, SIDE, 3), 40, np.uint8)
    if bright:
        frame[SIDE // 2 : 3 * SIDE // 4, SIDE // 4 : SIDE // 2] = 250
    return frame


def film(path: Path, seconds: float, on: Sequence[tuple[float, float]], **metadata: str) -> Path:
    """Writes a video in which the square is there in the intervals `on`."""
    with av.open(str(path), "w", options={"flush_packets": "1"}) as out:
        out.metadata.update(metadata)
        stream = out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = SIDE, SIDE, "yuv420p", FPS
        for n in range(round(seconds * FPS)):
            bright = any(start <= n / FPS < end for start, end in on)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(draw(bright), format="rgb24")))
        out.mux(stream.encode())
    return path


def films(folder: Path, count: int, seed: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Returns the intervals with light of each of the videos that it writes, by their paths."""
    rng, truth = random.Random(seed), {}
    for n in range(count):
        where = folder / f"cam{n % 3}"
        where.mkdir(parents=True, exist_ok=True)
        start = rng.randint(2, 60) / 10
        on = [(start, start + rng.randint(5, 25) / 10)] if n % 4 else []
        truth[str(film(where / f"{n:03d}.mp4", 9.0, on))] = on
    return truth


class Processor:
    """Every frame is seen."""

    video_config = SimpleNamespace(factor=32)

    def sample_indices(self, count: int, fps: float) -> np.ndarray:
        return np.arange(count)


class SeeingModel:
    """A stand-in that needs no weights: it answers with the times of the bright frames that it is shown."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = SimpleNamespace(fps=float(FPS), prompt_style="plain", clip_s=3.0)
        self.config, self.calibration = SimpleNamespace(evidence=None), None
        self.processor = Processor()


def answers(
    model: Any, piece: Any, clip: Any, path: str, questions: Sequence[str], most: int, anyway: bool = False
) -> list[Answer | None]:
    """Returns what `experiments.library.asking.answers` does, from the brightness of the square alone."""
    shown = piece.frames[:, SIDE // 2 : 3 * SIDE // 4, SIDE // 4 : SIDE // 2].mean((1, 2, 3)) > 140
    times = np.array(piece.metadata["frames_indices"])[shown] / FPS
    if not len(times):
        return [None] * len(questions)
    start, end = float(times[0]), float(times[-1]) + 1 / FPS
    middle = (start + end) / 2
    seen = Evidence("square", middle, boxes=(SQUARE,), confidence=0.9, frame=round(middle * FPS))
    return [
        Answer(question=q, text="there", evidence=(seen,), intervals=((start, end),), confidence=0.9)
        for q in questions
    ]


class Unguarded:
    """A reader without a process of its own, which takes a second to start."""

    def __init__(self, limits: Any):
        pass

    def run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def close(self) -> None:
        pass


def use(monkeypatch: Any, tmp_path: Path) -> None:
    """Makes commands ask the stand-in."""
    from experiments.library import session, windows

    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "events.yaml").write_text(EVENTS)
    monkeypatch.setattr("o3jax.api.load", lambda *_, **__: SeeingModel(tmp_path / "model"))
    monkeypatch.setattr(session, "answers", answers)
    monkeypatch.setattr(windows, "GuardedReader", Unguarded)


def killed_runs(root: Path, times: int) -> None:
    """Starts `watch` so many times, and ends each by SIGKILL in the middle; for a process without threads."""
    from experiments import watch

    use(pytest.MonkeyPatch(), root)
    sys.argv = ["watch", str(root / "videos"), f"--events={root / 'events.yaml'}", f"--out={root / 'out'}"]
    rng, records = random.Random(1), root / "out" / "records.jsonl"
    for n in range(times):
        pid = os.fork()
        if pid == 0:
            watch.shell.run(watch.main)
        most = (n + 1) * 9000 + rng.randint(0, 3000)  # bytes of records
        while not (records.exists() and records.stat().st_size > most):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it was killed"
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with records.open("a") as file:  # as a kill in the middle of a line leaves it
            file.write('{"records": [{"id": "torn')

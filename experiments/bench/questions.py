"""What questions of all lengths about one video cost: `python -m experiments.bench.questions [COUNT]`.

Asks o3-tiny in one process, and prints which programs were compiled for which question, the seconds and the
peak of memory. Take a new folder as $JAX_COMPILATION_CACHE_DIR to see what compiling costs.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

import o3jax
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.scenes import make_scene
from experiments.bench.timing import peak_bytes

_ENGLISH = (
    *("Why?", "When does the red circle appear?", "What color is the object that disappears first?"),
    *("Is there a ball?", "In which box is the green square at 4.6 s?", "Describe the video."),
)
_CHINESE = (
    "有什么?",
    "红色圆形什么时候出现?",
    "蓝色圆形和橙色圆形哪个先出现?",
    "请描述视频。",
    "黄色星形在什么位置?",
)
_BEFORE_ENGLISH = "I have a question about this recording, and I want to be precise about what I mean: "
_BEFORE_CHINESE = "关于这段视频我有一个问题,希望你能够尽可能准确地回答:"
_COMPILED = "/jax/core/compile/backend_compile_duration"


def questions(count: int) -> list[str]:
    """Returns questions in English and Chinese by turns: the first short ones, then ever longer ones."""
    found = []
    for number in range(-(-count // 2)):
        longer = 2 * max(0, number - len(_ENGLISH) + 1) // 3
        found.append(_BEFORE_ENGLISH * longer + _ENGLISH[number % len(_ENGLISH)])
        found.append(_BEFORE_CHINESE * longer + _CHINESE[number % len(_CHINESE)])
    return found[:count]


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Yields a list, to which the name of every program is added that the backend is asked for inside.

    Programs that come from the cache on disk are among them.
    """
    names, inside = [], True

    def heard(event: str, seconds: float, **about: str | int) -> None:
        if inside and event == _COMPILED:
            names.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield names
    finally:
        inside = False


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, compilations() as names:
        clip = Path(folder) / "clip.mp4"
        write_video(make_scene(8), clip)
        model = o3jax.load()
        print(f"loading: {names or 'no program'}")
        seconds, before = [], len(names)
        for number, question in enumerate(questions(count)):
            start, known = time.perf_counter(), len(names)
            model.answer(clip, question)
            seconds.append(time.perf_counter() - start)
            if len(names) > known:
                print(f"question {number}, {len(question)} characters: {seconds[-1]:.1f} s, {names[known:]}")
    print(f"{len(names) - before} programs for {count} questions, {len(names)} with loading")
    print(f"seconds of a question: median {statistics.median(seconds):.2f}, in all {sum(seconds):.1f}")
    print(f"processor seconds {time.process_time():.1f}", end=", ")
    print(f"peak memory {peak_bytes() / 2**20:.0f} MB")


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["50"])[0]))

"""How well and how fast moments are found: `python -m experiments.bench.finding [CLIPS [QUESTIONS]]`.

Indexes clips of level 1 and asks those of their questions that name something and that the model answers
right when it is asked about their clip alone. A moment is right if its clip has all that the question names,
and it overlaps one of them for an IoU of 0.3: of several such clips each will do.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import o3jax
from data_pipelines.synthetic.datasets import make_dataset
from data_pipelines.synthetic.scenes import Scene
from experiments.cli import shell
from experiments.evaluation.scores import score
from experiments.evaluation.synthetic import questions_of
from experiments.library.index import Found, Library
from experiments.library.windows import Readers
from o3jax.metrics.boxes import interval_iou

_IOU = 0.3


def right(found: Found, question: str, scenes: dict[str, Scene]) -> bool:
    """Whether a moment is what a question asks for, by the scene alone."""
    named = names(question)
    there = {
        name: thing
        for thing in scenes[Path(found.file).stem].objects
        for name in (thing.name("en"), thing.name("zh"))
    }
    if not all(name in there for name in named):
        return False
    span = (found.moment.start_s, found.moment.end_s)
    return any(interval_iou(span, visit) >= _IOU for name in named for visit in there[name].visible)


def names(question: str) -> list[str]:
    """Returns the objects that a question names."""
    from data_pipelines.synthetic.words import CHINESE, object_name

    words = list(CHINESE)
    pairs = [(color, shape) for color in words[:6] for shape in words[6:]]
    listed = [object_name(*pair, language) for pair in pairs for language in ("en", "zh")]
    return [name for name in listed if name in question]


def main() -> None:
    clips, most = (int(sys.argv[i]) if len(sys.argv) > i else n for i, n in ((1, 100), (2, 100)))
    shell.use_compilation_cache()
    model, readers = o3jax.load(), Readers(2)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        make_dataset(data, "test", clips)
        asked = [one for one in questions_of("test", 2 * clips, 1, 0) if names(one.sample.question)]
        scenes = {one.scene.id: one.scene for one in asked}
        videos = sorted(map(str, (data / "videos").iterdir()))
        model.answer(videos[0], "When is the red circle visible?")  # compiles
        library = Library(Path(scratch) / "index", "", model, readers)
        (Path(scratch) / "index").mkdir()
        begin = time.perf_counter()
        for _ in library.add_videos(library.waiting(videos)):
            pass
        indexing = time.perf_counter() - begin
        seconds, alone, first = [], 0, 0
        for one in asked:
            if alone == most:
                break
            question = one.sample.question
            said = model.answer(data / one.sample.video_path, question)
            if not score(one, said.raw).correct:
                continue
            alone += 1
            begin = time.perf_counter()
            found = library.find(question, videos, 5, 256)
            seconds.append(time.perf_counter() - begin)
            first += bool(found) and right(found[0], question, scenes)
    readers.close()
    later = sorted(seconds[1:])[len(seconds[1:]) // 2]
    print(f"{clips} clips indexed in {indexing:.1f} s; load average {os.getloadavg()[0]:.1f}")
    print(f"the first question took {seconds[0]:.2f} s, later ones {later:.2f} s in the median")
    print(f"indexing takes {indexing / seconds[1]:.0f} times as long as the second question")
    print(f"right moment first: {first} of {alone} questions that are answered right alone")


if __name__ == "__main__":
    main()

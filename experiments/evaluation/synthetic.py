"""Questions about unseen clips of the synthetic world, what a model answers, and what the baselines do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipelines.synthetic.datasets import make_dataset
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import level_of, make_scene, scene_seed
from experiments.evaluation import baselines
from experiments.evaluation.baselines import Asked
from experiments.evaluation.scores import Question
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.inference.respond import Request, Response
from o3jax.prompts import templates

BOX_STEP = 10  # of the grid that o3-tiny writes boxes on


def make_questions(
    folder: Path, split: str, count: int, level: int, seed: int, on_clip: Callable
) -> list[Question]:
    """Returns the first `count` questions of a split, after writing the clips as mp4 files.

    Args:
        folder: where the data set lies or is made, as by `experiments.data make`.
        on_clip: called after every clip.

    Raises:
        UserError: if an argument is out of range or the folder holds something else.
    """
    if count < 1:
        raise UserError(f"num_questions must be at least 1, not {count}")
    make_dataset(folder, split, clips_of(count, level), level, seed, on_clip)
    return questions_of(split, count, level, seed)


def clips_of(count: int, level: int) -> int:
    """Returns how many clips of a level so many questions are about; UserError if there is no such level."""
    return -(-count // level_of(level).questions)


def questions_of(split: str, count: int, level: int, seed: int) -> list[Question]:
    """Returns the first `count` questions of a split, no file is written."""
    scenes = [make_scene(scene_seed(split, index, seed), level) for index in range(clips_of(count, level))]
    return [Question(sample, scene) for scene in scenes for sample in make_samples(scene)][:count]


def generate(
    model: Model,
    questions: Sequence[Question],
    folder: Path,
    *,
    batch_size: int,
    max_new_tokens: int,
    on_batch: Callable[[int], None],
) -> list[Response]:
    """Returns the model's greedy response to each question about the mp4 files in `folder`."""
    size = min(batch_size, len(questions))
    respond, responses = in_batches(model, size, max_new_tokens), []
    for begin in range(0, len(questions), size):
        rows = questions[begin : begin + size]
        read = [
            model.request(folder / row.sample.video_path, row.sample.question, task=row.sample.task)
            for row in rows
        ]
        responses += [response for response, _, _ in model.respond_searching(respond, read)]
        on_batch(len(rows))
    return responses


def in_batches(model: Model, size: int, max_new_tokens: int) -> Callable[[list[Request]], list[Response]]:
    """Returns what answers up to `size` requests as `Model.respond` does.

    All batches have this size, filled up with the last request, so that one compiled program serves them all.
    What was searched has many shapes, and is answered one by one, as `Model.answer` does.
    """

    def respond(requests: list[Request]) -> list[Response]:
        if any(request.search for request in requests):
            return [model.respond([one], max_new_tokens=max_new_tokens)[0] for one in requests]
        rows = [*requests, *requests[-1:] * (size - len(requests))]
        return model.respond(rows, max_new_tokens=max_new_tokens)[: len(requests)]

    return respond


def baseline_texts(questions: Sequence[Question], seed: int) -> dict[str, list[str]]:
    """Returns the responses of each baseline, and those of a perfect writer of text as `ceiling`."""
    asked = [Asked.of(question.sample, question.scene) for question in questions]
    fitted = baselines.fit_prior(questions[0].scene.level, seed)
    return {
        "chance": [baselines.chance(a, seed) for a in asked],
        "prior": [baselines.prior(a, fitted) for a in asked],
        "copy": [baselines.copy_question(a, fitted) for a in asked],
        "ceiling": [templates.response(question.sample, BOX_STEP) for question in questions],
    }

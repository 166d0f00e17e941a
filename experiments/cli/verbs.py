"""The verbs of the command `o3jax`: each is a command of `experiments`, with the same flags."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """A command as a verb of `o3jax`."""

    module: str  # in `experiments`
    does: str
    example: str


VERBS = {
    "ask": Verb(
        "answer",
        "answers a question about a video: text, times, boxes, confidence",
        'o3jax ask clip.mp4 "When does the red circle appear?" --report=answer.html',
    ),
    "sft": Verb(
        "sft",
        "trains a model on annotated videos (the first stage)",
        "o3jax sft --config=sft_tiny --workdir=runs/sft --config.model_name_or_path=o3-tiny",
    ),
    "gspo": Verb(
        "gspo",
        "trains it further by rewards (the second stage)",
        "o3jax gspo --config=gspo_tiny --workdir=runs/gspo --config.sft_model_path=o3-tiny",
    ),
    "plan": Verb(
        "plan",
        "compiles a training step for a machine that you do not have",
        "o3jax plan --topology=a100:8 --config=sft_article --config.model_name_or_path=Qwen3-VL-8B",
    ),
    "evaluate": Verb(
        "evaluate",
        "measures a model on a benchmark",
        "o3jax evaluate --benchmark=synthetic --model_path=o3-tiny --num_questions=20 --out=result.json",
    ),
    "data": Verb(
        "data.__main__",
        "makes a data set, checks one, builds ArrayRecord files of it",
        "o3jax data check my_videos --out=pictures",
    ),
    "watch": Verb(
        "watch",
        "raises alerts when what you ask about is seen in videos or streams",
        "o3jax watch cameras/ --events=events.yaml --out=runs/watch",
    ),
    "label": Verb(
        "label",
        "writes chapters and tags with times and boxes for folders of videos",
        "o3jax label clips/ --tags=tags.yaml --out=runs/label --export=vtt,cvat",
    ),
    "find": Verb(
        "find",
        "finds the moments of a library of videos that answer a question",
        'o3jax find "When does the red car appear?" --library=lessons/',
    ),
    "convert": Verb(
        "convert",
        "copies a model folder, in another dtype if asked",
        "o3jax convert --source=runs/gspo/model --target=small --dtype=bfloat16",
    ),
    "serve": Verb(
        "serve",
        "serves a page to ask videos, and an API that OpenAI's clients speak",
        "o3jax serve --model_path=o3-tiny --port=8000",
    ),
    "demo": Verb(
        "demo", "asks the embedded model about a new video, then trains it a little", "o3jax demo --out=demo"
    ),
}

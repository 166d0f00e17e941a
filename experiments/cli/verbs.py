"""The command `o3jax VERB ...`: each verb is a command of `experiments`, with the same flags.

Nothing heavy is imported before the verb is known.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NamedTuple

import o3jax


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
    "convert": Verb(
        "convert",
        "copies a model folder, in another dtype if asked",
        "o3jax convert --source=runs/gspo/model --target=small --dtype=bfloat16",
    ),
    "demo": Verb(
        "demo",
        "asks the embedded model about a new video, then trains it a little",
        "o3jax demo --out=demo",
    ),
}


def main() -> None:
    """Runs the verb that the command line names."""
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(_help())
    elif verb == "--version":
        print(f"o3jax {o3jax.__version__}")
    elif verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1) or [", ".join(VERBS)]
        print(
            f"error: o3jax has no verb '{verb}': write one of its verbs, such as {near[0]}", file=sys.stderr
        )
        sys.exit(2)
    else:
        sys.argv = [f"o3jax {verb}", *rest]
        from experiments.cli import shell

        module = importlib.import_module(f"experiments.{VERBS[verb].module}")
        shell.run(module.main)


def _help() -> str:
    verbs = "\n".join(f"  {name:10}{verb.does}" for name, verb in VERBS.items())
    return f"""\
Ask a video a question, and see the evidence: when, and where in the picture.

  {VERBS["ask"].example}

The verbs:
{verbs}

o3jax VERB --help shows an example and every flag; o3jax --version the version.
A config is a file of yours, or the package's by its name: --config=sft_tiny"""

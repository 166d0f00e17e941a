"""`o3jax label PATHS [--out DIR]`: chapters and tags of videos, with times and boxes.

PATHS are videos and folders of them. With --tags=tags.yaml each tag's question is asked, and chapters begin
and end where tags come and go. Without it every part of a video is described: its answer is a chapter, and
what it names with a time is a tag. DIR/exports holds them as JSON, WebVTT, SRT and CSV, and as what --export
names. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.cli import shell
from experiments.library import command, events
from experiments.library.session import Extras, Job
from o3jax.printing import check_whole

_TAGS = flags.DEFINE_string("tags", None, "A YAML file of tags: a name and a question each.")
_QUESTION = flags.DEFINE_string(
    "question", "What happens in the video, and when?", "What describes a part of a video, without --tags."
)
_COMMON = command.define("label", ("json", "vtt", "srt", "csv"))


def main(argv: Sequence[str]) -> None:
    questions = events.read_questions(_TAGS.value, "tags") if _TAGS.value else ()
    check_whole(_QUESTION.value, "--question")

    def job(about: dict[str, Any]) -> Job:
        if questions:
            return Job(questions=questions, chapters=True, **about)
        return Job(questions=(), describe=_QUESTION.value, **about)

    command.run("label", _COMMON, argv[1:], job, Extras())


if __name__ == "__main__":
    shell.run(main)

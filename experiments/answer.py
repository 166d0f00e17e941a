"""`o3jax ask VIDEO QUESTION`: asks a video a question, prints the answer with its evidence.

As `python -m experiments.answer` too, with --video_path and --question in place of the two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from experiments.cli import shell
from experiments.cli.outputs import check_outputs
from o3jax import notes
from o3jax.errors import UserError
from o3jax.files import write_text
from o3jax.printing import check_whole
from o3jax.video import Wanted

_SLOW_TO_COMPILE = 1024  # width of a text model whose programs take seconds to compile

_VIDEO = flags.DEFINE_string("video_path", None, "The video file, in place of the first argument.")
_QUESTION = flags.DEFINE_string(
    "question", None, "What to ask, in English or Chinese, in place of the second."
)
_MODEL = flags.DEFINE_string("model_path", "o3-tiny", "A model folder, or the embedded o3-tiny.")
_FPS = flags.DEFINE_float("fps", 25.0, "Frames per second at which the video is presented and numbered.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Of the weights in memory; by default as stored on a CPU (which then computes in float32 all the same: "
    "bfloat16 halves the memory, float32 is faster), bfloat16 on an accelerator.",
)
_CHECK = flags.DEFINE_bool(
    "check_weights", True, "Refuse weights that hold NaN or infinity; takes a second for every 3 GB."
)
_VERIFY = flags.DEFINE_enum(
    "verify",
    "full",
    ["full", "cheap"],
    "How the confidence is found, where the model has a calibration: full asks again with only the evidence "
    "and without it, cheap does not.",
)
_BUDGET = flags.DEFINE_float(
    "budget",
    None,
    "Share of a long video's frames that may be decoded; 0.05 and at least 3,000 frames by default.",
)
_JSON = flags.DEFINE_string("json", None, "Also write the answer as JSON to this file.")
_REPORT = flags.DEFINE_string("report", None, "Also write one HTML page with the video and its evidence.")
_ANNOTATED = flags.DEFINE_string("annotated", None, "Also write an mp4 with the evidence drawn in.")
for _place in (_JSON, _REPORT, _ANNOTATED):
    shell.takes_store(_place)


def main(argv: Sequence[str]) -> None:
    video, question = _asked(argv[1:])
    check_whole(question, "the question")
    named = (("--json", _JSON), ("--report", _REPORT), ("--annotated", _ANNOTATED))
    check_outputs({name: flag.value for name, flag in named}, [video])
    Wanted(fps=_FPS.value)  # refuses what no rate can be
    from o3jax.report import annotate_video, format_answer, write_report

    model = shell.load_model(_MODEL.value, dtype=_DTYPE.value, check_finite=_CHECK.value)
    if model.config.text.hidden_size >= _SLOW_TO_COMPILE:
        print("compiling for videos of this size: seconds, kept for the next time", file=sys.stderr)
    with shell.told() as tell:
        answer = model.answer(
            video,
            question,
            fps=_FPS.value,
            verify=_VERIFY.value,
            budget=_BUDGET.value,
            progress=lambda event: tell(event.text(), event.stage),
        )
    print(format_answer(answer))
    for note in answer.video["notes"]:
        said = notes.text(note, answer.language)
        if said not in answer.reasons:  # those are printed already
            print(f"note: {said}", file=sys.stderr)
    if _JSON.value:
        write_text(_JSON.value, answer.to_json() + "\n")
    if _ANNOTATED.value:
        annotate_video(video, answer, _ANNOTATED.value)
    if _REPORT.value:
        write_report(answer, video, _REPORT.value)
    for path in filter(None, (_JSON.value, _ANNOTATED.value, _REPORT.value)):
        print(f"wrote {path}")


def _asked(arguments: Sequence[str]) -> tuple[str, str]:
    """Returns the video and the question, from the flags and, where these are not given, the arguments."""
    rest, found = list(arguments), []
    for flag in (_VIDEO, _QUESTION):
        if flag.value is None and not rest:
            raise UserError(f"--{flag.name} is missing: write o3jax ask VIDEO QUESTION, or give it as a flag")
        found.append(rest.pop(0) if flag.value is None else flag.value)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: put the question in quotes")
    return found[0], found[1]


if __name__ == "__main__":
    shell.run(main)

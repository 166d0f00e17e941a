"""`o3jax evaluate --benchmark NAME[,NAME]|all --model_path M --data_root D`: benchmark figures of a model.

NAME is `synthetic`, `consistency` (is an answer right where its evidence is, and sure where it is right?
docs/verify.md), or a benchmark of the field (docs/benchmarks.md says how to get each, and what is
scored). Each is written into a folder of the workdir as it comes, so that a run that was stopped goes on
there, and can be scored again with another parser: `--rescore RUN --parser lmms`. `--out F.json` holds
every metric, the groups, the floors, the error analysis and the generations.

`o3jax evaluate --calibrate --model_path M` fits what makes a probability of being right of an answer's
signals, and writes it into the model's folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import flags
from rich.console import Console

from data_pipelines.formats.benchmarks import registry
from experiments.cli import shell, terminal
from experiments.cli.outputs import check_outputs
from experiments.evaluation.benchmarks import command, tables
from experiments.evaluation.benchmarks.answering import Decoding
from experiments.evaluation.benchmarks.judge import make_judge
from experiments.evaluation.benchmarks.prediction import SPACES
from experiments.evaluation.benchmarks.results import Scoring
from experiments.evaluation.benchmarks.runs import Run
from experiments.evaluation.consistency import run_calibration, run_consistency
from experiments.evaluation.synthetic_command import Settings as SyntheticSettings
from experiments.evaluation.synthetic_command import run_synthetic
from experiments.evaluation.voting import run_voting
from experiments.library import beam
from experiments.library.records import Shard
from o3jax import api
from o3jax.errors import UserError
from o3jax.files import read_json, write_json
from o3jax.models.config import BOX_FRAMES
from o3jax.prompts.feedback import FEEDBACK

_BENCHMARK = flags.DEFINE_list("benchmark", "synthetic", "What to evaluate on: names, or all that is there.")
_MODEL_PATH = flags.DEFINE_string("model_path", "o3-tiny", "A model folder, or the embedded model.")
_DATA_ROOT = flags.DEFINE_string(
    "data_root",
    None,
    "Folder of the data; of several benchmarks one folder each in it, by its name. synthetic: made there, or "
    "used again; a temporary one by default.",
)
_LEVEL = flags.DEFINE_integer("level", 1, "synthetic: difficulty, 1 to 4.", lower_bound=1, upper_bound=4)
_NUM_QUESTIONS = flags.DEFINE_integer(
    "num_questions",
    None,
    "synthetic: how many questions, two per clip (level 4: five), 200 by default; consistency: 1000, and "
    "a tenth under each shift; voting: 100; --calibrate: 800.",
    lower_bound=1,
    upper_bound=1000000,
)
_SPLIT = flags.DEFINE_string("split", "test", "synthetic: train, val or test.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "synthetic: another seed makes other clips.", lower_bound=0, upper_bound=2**32 - 1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    16,
    "synthetic: questions that are answered at a time.",
    lower_bound=1,
    upper_bound=4096,
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "Where a response is cut off; None: as in the published run, or 1024; synthetic: 256.",
    lower_bound=1,
    upper_bound=2**20,
)
_FEEDBACK = flags.DEFINE_enum(
    "feedback",
    None,
    FEEDBACK,
    "Whether the text is written from the evidence modules' proposals; None: as the model says.",
)
_BOX_FRAMES = flags.DEFINE_enum(
    "box_frames",
    None,
    BOX_FRAMES,
    "Whether the evidence decoder reads boxes from the prompt's frames, or from the frame that it points at, "
    "encoded extra; None: as the model says.",
)
_HARNESS = flags.DEFINE_string(
    "harness", "o3", "Whose prompts: official, lmms, o3, or one of a benchmark's own."
)
_PARSER = flags.DEFINE_enum(
    "parser",
    None,
    ["official", "lmms", "o3"],
    "Who reads the texts; None: the parser of the harness, with --rescore as before.",
)
_BOX_SPACE = flags.DEFINE_enum(
    "box_space",
    None,
    SPACES,
    "How the model writes boxes: 0-1000, 0-1, or pixels; None: per_mille, with --rescore as before.",
)
_FRAMES = flags.DEFINE_string(
    "frames",
    None,
    "Frames of a video at most; `published`: those of the harness's own run, where they are published; None: "
    "as the model says.",
)
_JUDGE = flags.DEFINE_string(
    "judge",
    "none",
    "Who judges open answers: none, rule, a model folder, or openai:MODEL at the address in O3JAX_JUDGE_URL "
    "with the key in O3JAX_JUDGE_KEY.",
)
_JUDGE_BUDGET = flags.DEFINE_integer(
    "judge_budget", None, "Answers that the judge may be asked about at most."
)
_LIMIT = flags.DEFINE_integer("limit", None, "Only so many items of each benchmark.", lower_bound=1)
_IDS = flags.DEFINE_list("ids", [], "Only the items with these ids.")
_SHARD = flags.DEFINE_string(
    "shard", "0/1", "Which share of the videos this process takes: 0/4, 1/4, 2/4, 3/4."
)
_RUNNER, _BEAM = beam.define()
_VIDEOS_TOGETHER = flags.DEFINE_integer(
    "videos_together",
    1,
    "Videos of a benchmark that are a batch, where they are of like size: faster on an accelerator.",
    lower_bound=1,
    upper_bound=1024,
)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit_s", None, "Seconds for an item, after which it counts as failed."
)
_TEXT_ONLY = flags.DEFINE_boolean("text_only", False, "Ask without the videos too: a floor of the table.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the runs; the same one goes on. None: beside --out, or runs/evaluate/MODEL."
)
_SAMPLES = flags.DEFINE_integer(
    "samples", 8, "voting: sampled responses to each question.", lower_bound=2, upper_bound=64
)
_CALIBRATE = flags.DEFINE_boolean(
    "calibrate", False, "Fit the calibration of the model's confidences, in place of a benchmark."
)
_REVIEWS = flags.DEFINE_string(
    "reviews", None, "--calibrate: a folder of answers with people's reviews, which count beside the others."
)
_RESCORE = flags.DEFINE_string("rescore", None, "Score a workdir (or one benchmark's folder in it) again.")
_OUT = flags.DEFINE_string("out", None, "The JSON file to write.")


def _synthetic(console: Console) -> dict[str, Any]:
    given = SyntheticSettings(
        level=_LEVEL.value,
        split=_SPLIT.value,
        seed=_SEED.value,
        num_questions=_NUM_QUESTIONS.value or 200,
        batch_size=_BATCH_SIZE.value,
        max_new_tokens=_MAX_NEW_TOKENS.value or 256,
    )
    root = _DATA_ROOT.value
    if root is not None and len(_BENCHMARK.value) > 1:
        root = str(Path(root) / "synthetic")
    return run_synthetic(_load(), _MODEL_PATH.value, root, given, console)


def _consistency(console: Console) -> dict[str, Any]:
    folder, count = _workdir() / "consistency", _NUM_QUESTIONS.value or 1000
    return run_consistency(_load, folder, count, _SEED.value, console)


def _voting(console: Console) -> dict[str, Any]:
    folder, count = _workdir() / "voting", _NUM_QUESTIONS.value or 100
    return run_voting(_load, folder, count, _SAMPLES.value, _SEED.value, console)


def _calibrate(console: Console) -> dict[str, Any]:
    if _FEEDBACK.value or _BOX_FRAMES.value:
        raise UserError("--calibrate fits the model as it is: leave out --feedback and --box_frames")
    folder, count = _workdir() / "calibrate", _NUM_QUESTIONS.value or 800
    reviews = None if _REVIEWS.value is None else Path(_REVIEWS.value)
    return run_calibration(_load, folder, count, _SEED.value, console, reviews)


# Evaluations that are no benchmark of the field: each makes what it asks.
EXPERIMENTS: dict[str, Callable[[Console], dict[str, Any]]] = {
    "synthetic": _synthetic,
    "consistency": _consistency,
    "voting": _voting,
}


def _scoring(before: Mapping[str, Any] = MappingProxyType({})) -> Scoring:
    """Returns how texts are scored.

    Args:
        before: the result of a run that is scored again: what no flag says stays as it was.
    """
    harness = before.get("harness", _HARNESS.value)
    parser = harness if harness in ("official", "lmms") else "o3"
    return Scoring(
        _PARSER.value or before.get("parser", parser),
        _BOX_SPACE.value or before.get("box_space", "per_mille"),
        make_judge(_JUDGE.value),
        _JUDGE_BUDGET.value,
    )


def _benchmarks(names: Sequence[str], console: Console) -> list[dict[str, Any]]:
    """Returns the results on benchmarks of the field."""
    if _DATA_ROOT.value is None:
        raise UserError(f"--data_root is missing: name the folder of {', '.join(names)}")
    return command.run_benchmarks(
        names,
        _load,
        command.Settings(
            data_root=Path(_DATA_ROOT.value),
            workdir=_workdir(),
            harness=_HARNESS.value,
            frames=_frames(),
            limit=_LIMIT.value,
            ids=tuple(_IDS.value),
            shard=Shard.parse(_SHARD.value),
            runner=_RUNNER.value,
            beam_options=tuple(_BEAM.value),
            text_only=_TEXT_ONLY.value,
            videos_together=_VIDEOS_TOGETHER.value,
            decoding=Decoding(_MAX_NEW_TOKENS.value, _TIME_LIMIT.value),
            scoring=_scoring(),
        ),
        console,
    )


def _frames() -> int | str | None:
    """Returns what --frames says; UserError if it is neither a number nor `published`."""
    said = _FRAMES.value
    if said in (None, command.PUBLISHED):
        return said
    if not said.isdecimal() or not 2 <= int(said[:9]) < 2**20:
        raise UserError(f"--frames must be a number from 2, or published, not {said!r:.40}")
    return int(said)


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value)
    if _OUT.value:
        return Path(_OUT.value).with_suffix(".run")
    return Path("runs") / "evaluate" / Path(_MODEL_PATH.value).name


def _rescored(console: Console) -> list[dict[str, Any]]:
    """Returns the results of runs that are there, scored again."""
    folder = Path(_RESCORE.value)
    runs = [path.parent for path in sorted(folder.glob("*/run.json")) if path.parent.name != "text_only"]
    runs = [folder] if (folder / "run.json").is_file() else runs
    if not runs:
        raise UserError(
            f"--rescore={folder} holds no run: name a workdir, or the folder of a benchmark in it"
        )
    results = []
    for run in runs:
        last = run / "result.json"
        before = read_json(last if last.is_file() else run / "run.json")
        results.append(command.finish(Run(run), _scoring(before), console))
    return results


def _names(console: Console) -> list[str]:
    """Returns the benchmarks that are asked for; of `all` those that are there."""
    names = list(dict.fromkeys(_BENCHMARK.value))
    if names != ["all"]:
        known = [*EXPERIMENTS, *registry.FORMATS]
        for name in names:
            if name not in known:
                raise UserError(f"unknown benchmark '{name}': there is {', '.join(known)}, or all")
        return names
    if _DATA_ROOT.value is None:
        raise UserError("--data_root is missing: name the folder that holds the benchmarks' folders")
    there = []
    for name, form in registry.FORMATS.items():
        folder = registry.folder_of(name, Path(_DATA_ROOT.value), True)
        if folder.is_dir():
            there.append(name)
        else:
            console.print(f"not there: {folder} with {form.layout}")
    if not there:
        raise UserError(
            f"{_DATA_ROOT.value} holds no benchmark: make a folder such as {folder} with {form.layout}"
        )
    return there


def _load() -> api.Model:
    """Returns the model to evaluate, with the rules of its evidence modules that are asked for."""
    model = api.load(_MODEL_PATH.value)
    asked = {"feedback": _FEEDBACK.value, "box_frames": _BOX_FRAMES.value}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked:
        if model.config.evidence is None:
            raise UserError(
                f"--{next(iter(asked))}: {_MODEL_PATH.value} has no evidence modules; leave the flag out"
            )
        evidence = dataclasses.replace(model.config.evidence, **asked)
        model.backbone.config = dataclasses.replace(model.config, evidence=evidence)
    return model


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: everything is given as --flags")
    check_outputs({"--out": _OUT.value})
    _frames()  # a wrong one is refused whatever is evaluated
    if _REVIEWS.value is not None and not _CALIBRATE.value:
        raise UserError("--reviews goes with --calibrate: give both, or leave it out")
    console = terminal.console(markup=False, highlight=False)  # paths and ids may hold brackets
    if _RESCORE.value is not None:
        results = _rescored(console)
    elif _CALIBRATE.value:
        shell.use_compilation_cache()
        results = [_calibrate(console)]
    else:
        names = _names(console)
        shell.use_compilation_cache()
        results = [EXPERIMENTS[name](console) for name in names if name in EXPERIMENTS]
        if field := [name for name in names if name not in EXPERIMENTS]:
            results += _benchmarks(field, console)
    overview = [result for result in results if result["benchmark"] in registry.FORMATS]
    if len(overview) > 1:
        tables.print_overview(overview, console)
    if _OUT.value is not None and results:
        several = {"benchmarks": {result["benchmark"]: result for result in results}}
        write_json(_OUT.value, results[0] if len(results) == 1 else several, indent=1)
        console.print(f"all figures and generations: {_OUT.value}")


if __name__ == "__main__":
    shell.run(main)

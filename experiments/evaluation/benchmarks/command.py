"""Runs benchmarks one after the other: asks, goes on where it stopped, scores, writes what came out."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console
from rich.progress import MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn

import o3jax
from data_pipelines.formats.benchmarks import media, registry
from data_pipelines.formats.benchmarks.item import Frames, Item
from data_pipelines.formats.benchmarks.registry import Format
from experiments.cli import terminal
from experiments.evaluation.benchmarks import page, tables
from experiments.evaluation.benchmarks.answering import Asked, Decoding, answer_video, prompts_of
from experiments.evaluation.benchmarks.frames import video_rules
from experiments.evaluation.benchmarks.results import Scoring, score_run
from experiments.evaluation.benchmarks.runs import Run
from experiments.evaluation.benchmarks.suite import form
from experiments.library import beam
from experiments.library.records import Shard
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.files import write_json
from o3jax.hf.generation import read_generation

Result = dict[str, Any]
PUBLISHED = "published"
_VERSIONS = ("jax", "flax", "numpy", "av", "transformers", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked of a run, beside the model."""

    data_root: Path
    workdir: Path
    harness: str = "o3"
    # Of a video at most; or as the harness published them, if it did; None: as the model's processor.
    frames: int | Literal["published"] | None = None
    limit: int | None = None
    ids: tuple[str, ...] = ()
    shard: Shard = Shard()
    runner: str | None = None  # of Apache Beam
    beam_options: tuple[str, ...] = ()
    text_only: bool = False
    videos_together: int = 1  # that are a batch
    decoding: Decoding = Decoding()
    scoring: Scoring = Scoring()


def run_benchmarks(
    names: Sequence[str], load_model: Callable[[], Model], settings: Settings, console: Console
) -> list[Result]:
    """Returns the results of benchmarks, which are printed and written into the workdir.

    A benchmark of which other processes have not yet answered their share is left out; a later run, or the
    last of these processes, scores it.

    Args:
        load_model: called when the first question is to be asked.

    Raises:
        UserError: if data are missing or wrong, or the workdir holds another run; records stay.
    """
    several, results = len(names) > 1, []
    forms = {name: form(name) for name in names}
    for name, one in forms.items():
        if settings.harness not in one.prompts:
            raise UserError(f"{name} has no prompts '{settings.harness}': there is {', '.join(one.prompts)}")
    sources = {name: registry.folder_of(name, settings.data_root, several) for name in names}
    chosen = {name: _chosen(name, sources[name], settings) for name in names}
    if settings.runner and settings.videos_together > 1:
        raise UserError("--runner gives each worker one video at a time: leave --videos_together=1")
    model = load_model()
    own = model.processor.video_config
    for name, items in chosen.items():
        model.processor.video_config = video_rules(own, settings.frames, rule := _rule(forms[name], settings))
        runs = [Run(settings.workdir / name, settings.shard.suffix, items)]
        if settings.text_only:
            runs.append(Run(settings.workdir / name / "text_only", settings.shard.suffix, items))
        for run, blind in zip(runs, (False, True), strict=False):
            decoding = dataclasses.replace(settings.decoding, blind=blind)
            run.begin(_made_with(name, model, settings, decoding, rule))
            _ask(model, run, items, forms[name], decoding, settings, sources[name])
        if missing := [len(items) - len(run.records()) for run in runs if len(run.records()) < len(items)]:
            console.print(f"{name}: {max(missing)} of {len(items)} items are left for other processes")
            continue
        results.append(finish(runs[0], settings.scoring, console))
    return results


def _rule(form: Format, settings: Settings) -> Frames | None:
    """Returns the published rule of the frames, if it is asked for and there is one."""
    return form.frames.get(settings.harness) if settings.frames == PUBLISHED else None


def finish(run: Run, scoring: Scoring, console: Console) -> Result:
    """Returns the result of a run whose items are all answered; it is printed and written into its folder.

    Raises:
        UserError: if the folder is damaged, or the judge does not answer.
    """
    text_only = Run(run.folder / "text_only")
    text_only = text_only if (text_only.folder / "run.json").is_file() else None
    try:
        with terminal.progress(SpinnerColumn(), TextColumn("judging: {task.completed}")) as progress:
            bar = progress.add_task("", total=None, visible=scoring.judge is not None)
            result = score_run(run, scoring, text_only, lambda: progress.advance(bar))
        tables.print_result(result, console)
        worst = page.write_page(result, run.items(), run.folder)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # all of it is read in the folder
        raise UserError(
            f"{run.folder} holds what no run writes ({type(error).__name__}: {error!s:.60}): restore its "
            "files, or choose another --workdir and ask again"
        ) from error
    write_json(run.folder / "result.json", result, indent=1)
    console.print(f"{run.folder / 'result.json'}; the worst answers: {worst}")
    return result


def _chosen(name: str, folder: Path, settings: Settings) -> list[Item]:
    """Returns the items that are asked, in the order of the files.

    Raises:
        UserError: if an id is unknown, or none of their videos is there.
    """
    items = registry.load(name, folder)
    if settings.ids:
        known = {item.id for item in items}
        if unknown := [one for one in settings.ids if one not in known]:
            raise UserError(f"{name} has no item with the id {unknown[0]!r:.60}: check --ids")
        items = [item for item in items if item.id in settings.ids]
    items = items[: settings.limit]
    missing = registry.missing_videos(items)
    if len(missing) == len(items):
        raise UserError(
            f"none of {name}'s {len(items)} videos is there, such as {missing[0].video}: it needs "
            f"{registry.FORMATS[name].layout} in {folder}"
        )
    return items


def _ask(
    model: Model,
    run: Run,
    items: Sequence[Item],
    form: Format,
    decoding: Decoding,
    settings: Settings,
    source: Path,
) -> None:
    """Asks what is not answered yet of this process' share, so many videos at a time."""
    answered = {item_id for item_id, record in run.records().items() if "error" not in record}
    videos: dict[str, list[Item]] = {}
    for item in items:
        videos.setdefault(item.video, []).append(item)
    few = settings.videos_together
    groups = [[item for group in some for item in group] for some in _batched(list(videos.values()), few)]
    mine = settings.shard.of(groups)
    # What is asked together is asked together again unless all of it is answered, so that a run that was
    # stopped gives the very texts of one that was not.
    waiting = [group for group in mine if any(item.id not in answered for item in group)]
    if settings.runner:
        plain = dataclasses.replace(settings, scoring=Scoring())  # a judge cannot be sent to a worker
        work = AskWork(str(run.folder), str(model.folder), source, plain, decoding)

        def done() -> set[str]:
            known = run.records()
            return {video for video, group in videos.items() if all(item.id in known for item in group)}

        beam.spread(work, [group[0].video for group in waiting], done, settings.runner, settings.beam_options)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with terminal.progress(*columns) as progress:
        bar = progress.add_task(f"{run.folder.name}: asking", total=sum(map(len, mine)))
        progress.advance(bar, sum(map(len, mine)) - sum(map(len, waiting)))
        for group in waiting:
            run.add(answer_group(model, group, form, settings, decoding))
            progress.advance(bar, len(group))


def _batched(videos: Sequence[list[Item]], count: int) -> list[Sequence[list[Item]]]:
    return [videos[at : at + count] for at in range(0, len(videos), count)]


@dataclasses.dataclass(frozen=True)
class AskWork:
    """What a worker of a pipeline does: it answers all that is asked about a video."""

    folder: str  # of the run
    model: str
    source: Path  # of the benchmark's data
    settings: Settings
    decoding: Decoding

    def open(self, name: str) -> Callable[[str], None]:
        """Returns what answers a video's questions."""
        run, settings = Run(Path(self.folder), name), self.settings
        benchmark = run.made_with()["benchmark"]
        model, one = beam.load_once(self.model), form(benchmark)
        own = o3jax.load_processor(self.model).video_config  # the model may have served another run
        model.processor.video_config = video_rules(own, settings.frames, _rule(one, settings))
        items = _chosen(benchmark, self.source, settings)

        def answer(video: str) -> None:
            group = [item for item in items if item.video == video]
            run.add(answer_group(model, group, one, settings, self.decoding))

        return answer


def answer_group(
    model: Model, group: Sequence[Item], form: Format, settings: Settings, decoding: Decoding
) -> list[dict[str, Any]]:
    """Returns the records of the items about one video or a few."""
    there = [item for item in group if decoding.blind or media.exists(item.video)]
    lost = [item for item in group if item not in there]
    build, rule = form.prompts[settings.harness], _rule(form, settings)
    asked = [Asked(item, prompts_of(build, item, model), rule) for item in there]
    records = answer_video(model, asked, decoding) if asked else []
    return records + [{"id": item.id, "error": f"{item.video} is missing"} for item in lost]


def _made_with(
    name: str, model: Model, settings: Settings, decoding: Decoding, rule: Frames | None
) -> dict[str, Any]:
    video = model.processor.video_config
    return {
        "benchmark": name,
        "model": {"name": model.folder.name, "digest": model_digest(model.folder)},
        "harness": settings.harness,
        "data_root": str(settings.data_root),
        "limit": settings.limit,
        "ids": list(settings.ids),
        **({"videos_together": few} if (few := settings.videos_together) > 1 else {}),
        "decoding": {
            "kind": "greedy",
            "repetition_penalty": read_generation(model.folder).repetition_penalty,
            **dataclasses.asdict(decoding),
        },
        "frames": {
            "fps": video.fps,
            "least": video.min_frames,
            "most": video.max_frames,
            "max_pixels": video.max_pixels,
            **({"published": rule and dataclasses.asdict(rule)} if settings.frames == PUBLISHED else {}),
        },
        "versions": {"o3jax": o3jax.__version__, "backend": jax.default_backend()}
        | {package: importlib.metadata.version(package) for package in _VERSIONS},
    }


def model_digest(folder: Path) -> str:
    """Returns a fingerprint of a model folder: of its settings, and of the ends of its weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            if path.stat().st_size > 2**21:
                file.seek(-(2**20), 2)
                digest.update(file.read())
    return digest.hexdigest()[:16]

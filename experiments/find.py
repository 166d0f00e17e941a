"""`o3jax find "QUESTION" --library DIR`: the moments in a library that answer a question, best first.

The library is indexed first, once: each part is described, and its features from afar are kept; new and
changed files are added. `o3jax find --index --library DIR` does this alone. A question then looks at the
index, and the likeliest parts are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn

from experiments.cli import shell, terminal
from experiments.cli.locks import lock_folder
from experiments.cli.outputs import check_outputs
from experiments.library import beam
from experiments.library.command import made_with
from experiments.library.index import QUESTIONS, Library, LibraryWork
from experiments.library.records import Shard
from experiments.library.videos import list_videos
from experiments.library.windows import Readers
from o3jax.errors import UserError
from o3jax.files import write_json, writing
from o3jax.printing import check_whole, fine_clock, shortened

_LIBRARY = flags.DEFINE_string("library", None, "The folder of videos.")
_INDEX = flags.DEFINE_bool("index", False, "Only bring the index up to date.")
_INDEX_DIR = flags.DEFINE_string("index_dir", None, "Where the index is kept; None: in LIBRARY/.o3jax.")
_MODEL = flags.DEFINE_string("model_path", "o3-tiny", "A model folder, or the embedded o3-tiny.")
_CONFIRM = flags.DEFINE_integer(
    "confirm", 5, "How many of the likeliest parts are asked.", lower_bound=1, upper_bound=10000
)
_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 768, "Where an answer is cut off.", lower_bound=1, upper_bound=2**20
)
_JSON = flags.DEFINE_string("json", None, "Also write the moments as JSON to this file.")
_SHARD = flags.DEFINE_string("shard", "0/1", "--index: which share of the videos this process takes.")
_RUNNER, _BEAM = beam.define()
_READERS = flags.DEFINE_integer("readers", 2, "Processes that read ahead.", lower_bound=1, upper_bound=256)


def main(argv: Sequence[str]) -> None:
    if not _LIBRARY.value:
        raise UserError("--library is missing: name the folder of videos")
    question = _question(argv[1:])
    check_outputs({"--json": _JSON.value})
    shard, videos = Shard.parse(_SHARD.value), list_videos([_LIBRARY.value])
    folder = Path(_INDEX_DIR.value or Path(_LIBRARY.value) / ".o3jax")
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(folder, "--index_dir", f".lock{shard.suffix}")
    except UserError as error:
        raise UserError(f"{error}; --index_dir=FOLDER keeps the index elsewhere") from None
    model = shell.load_model(_MODEL.value)
    readers = Readers(_READERS.value)
    try:
        library = Library(folder, shard.suffix, model, readers)
        about = {"length_s": library.length_s, "overlap_s": library.overlap_s, "questions": list(QUESTIONS)}
        library.begin(made_with(model, about))
        if _RUNNER.value:
            work = LibraryWork(str(folder), _MODEL.value)
            first = library.waiting(shard.of(videos))
            beam.spread(work, first, library.records, _RUNNER.value, _BEAM.value)
        _bring_up_to_date(library, shard.of(videos))
        if question:
            _ask(library, question, videos)
    finally:
        readers.close()
        lock.close()


def _question(arguments: Sequence[str]) -> str:
    """Returns what is asked, "" where only the index is wanted."""
    if _INDEX.value:
        if arguments:
            raise UserError(f"--index asks nothing: leave {arguments[0]!r:.60} out, or --index")
        return ""
    if len(arguments) != 1 or not arguments[0].strip():
        raise UserError('the question is missing: write o3jax find "QUESTION" --library DIR')
    check_whole(arguments[0], "the question")
    return arguments[0]


def _bring_up_to_date(library: Library, videos: Sequence[str]) -> None:
    console = terminal.console(stderr=True, soft_wrap=True, highlight=False)
    waiting = library.waiting(videos)
    columns = (SpinnerColumn(), TextColumn("indexing"), BarColumn(), MofNCompleteColumn())
    failed = 0
    with terminal.progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("", total=len(videos), completed=len(videos) - len(waiting))
        for path, record in library.add_videos(waiting):
            progress.advance(bar)
            if "error" in record:
                failed += 1
                console.print(f"{path}: not read: {shortened(record['error'])}", markup=False)
    if waiting:
        console.print(f"indexed {len(waiting) - failed} of {len(waiting)} new videos", markup=False)
    if failed == len(videos):
        raise UserError(f"none of {failed} videos could be read: {library.known[waiting[0]]['error']}")


def _ask(library: Library, question: str, videos: Sequence[str]) -> None:
    found = library.find(question, videos, _CONFIRM.value, _TOKENS.value)
    console = terminal.console(soft_wrap=True, highlight=False)
    for rank, one in enumerate(found, 1):
        moment = one.moment
        when = f"{fine_clock(moment.start_s)}-{fine_clock(moment.end_s)}"
        review = ", needs review" if moment.needs_review else ""
        said = " ".join(moment.text.split())
        line = f"{rank}. {one.file} {when} (confidence {moment.confidence:.2f}{review}): {said}"
        console.print(line, markup=False)
    if not found:
        console.print("nothing found")
    if _JSON.value:
        rows = [{"file": one.file, "score": one.score, **one.moment.to_dict()} for one in found]
        write_json(_JSON.value, {"question": question, "moments": rows}, indent=1)
        console.print(f"wrote {_JSON.value}", markup=False)


if __name__ == "__main__":
    shell.run(main)

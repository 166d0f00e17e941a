"""`python -m experiments.hostile`: thousands of hostile inputs, and what becomes of each.

Model folders, media files, records, texts, flags, damaged workdirs, full disks and runs that are killed;
always the same ones. Each must be refused in one sentence or used: no traceback, no more than 4 GiB, 60 s,
and no process that stays. What becomes of each case stands in DIR/PART.jsonl as it comes; the same --out goes
on where it was, and tries again what failed. The exit code is 1 if anything failed.

--videos compares a folder of your own videos with ffmpeg: how many frames are presented, and four pictures.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.cli import shell
from experiments.hostility.compare_videos import compare_videos
from experiments.hostility.parts import PARTS, Part
from experiments.hostility.pool import try_all
from experiments.hostility.table import comparison, line_of, read_lines, table
from experiments.hostility.worker import Tried
from o3jax.errors import UserError
from o3jax.files import write_text
from o3jax.printing import printable

_OUT = flags.DEFINE_string("out", None, "Folder for a file of each part, and the table.", required=True)
_USUAL = [name for name in PARTS if name != "hosts"]  # which takes hours: jax misses a host after 90 s
_ONLY = flags.DEFINE_list("only", _USUAL, f"Parts to try, of {','.join(PARTS)}.")
_CASES = flags.DEFINE_integer("cases", None, "Cases of each part, by chance; default all.", lower_bound=1)
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count(), "Cases at a time.", lower_bound=1)
_VIDEOS = flags.DEFINE_string("videos", None, "A folder of videos to compare with ffmpeg.")


def main(argv: Sequence[str]) -> None:
    del argv
    out = Path(_OUT.value)
    if unknown := set(_ONLY.value) - set(PARTS):
        raise UserError(f"--only={','.join(sorted(unknown))} names no part; the parts are {', '.join(PARTS)}")
    out.mkdir(parents=True, exist_ok=True)
    if _VIDEOS.value is not None:
        sys.exit(_compare(Path(_VIDEOS.value), out))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out.absolute() / "compiled"))
    found = {}
    for name in _ONLY.value or _USUAL:
        part = PARTS[name]
        began = time.monotonic()
        found[part.title] = _try_part(part, out / name)
        print(f"{part.title}: {time.monotonic() - began:.0f} s", flush=True)
    text = table(found)
    write_text(out / "table.md", text + "\n")
    print(text)
    if any(tried.outcome.status == "failed" for cases in found.values() for tried in cases):
        sys.exit(1)


def _compare(folder: Path, out: Path) -> int:
    """Returns 1 if a file is read otherwise than ffmpeg reads it without a word; prints a line for each."""
    lines = []
    for one in compare_videos(folder):
        lines.append(comparison(one, folder))
        print(lines[-1], flush=True)
    words = Counter(line.split()[0] for line in lines)
    lines.append(
        f"{words['same']} of {len(lines)} files are read as ffmpeg reads them; "
        f"of the others {words['told']} say why, {words['OTHER']} do not"
    )
    print(lines[-1])
    write_text(out / "videos.txt", "\n".join(lines) + "\n")
    return int(words["OTHER"] > 0)


def _try_part(part: Part, path: Path) -> list[Tried]:
    """Returns what became of the cases of a part, those of an earlier run among them."""
    lines = path.with_suffix(".jsonl")
    before = {
        name: tried
        for name, tried in read_lines(lines).items()
        if tried.outcome.status in ("used", "refused")
    }
    found = dict(before)
    with tempfile.TemporaryDirectory() as folder, lines.open("a") as file:
        cases = try_all(
            part.opened,
            Path(folder) / "cases",
            part.limits,
            path.with_suffix(".log"),
            processes=_PROCESSES.value,
            chosen=lambda names: [name for name in _chosen(names) if name not in before],
        )
        for tried in cases:
            found[tried.name] = tried
            file.write(line_of(tried))
            file.flush()
            if tried.outcome.status == "failed":
                print(printable(f"{part.title}: {tried.name}: {tried.outcome.said}"), flush=True)
    return list(found.values())


def _chosen(names: Sequence[str]) -> list[str]:
    # By chance, since cases of one kind may stand at equal distances.
    return random.Random(0).sample(names, min(_CASES.value or len(names), len(names)))


if __name__ == "__main__":
    shell.run(main)

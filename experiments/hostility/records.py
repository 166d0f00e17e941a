"""Records that are mutated, of every format, and what becomes of each: a row, or a sentence that refuses it.

`cases` makes them, the same ones for the same seed; `Bench` tries one in this process.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.formats import tfds
from data_pipelines.formats.article import to_article
from data_pipelines.formats.index import Index, judge_samples, read_index
from data_pipelines.formats.sample import Candidate
from data_pipelines.formats.stgr import to_stgr
from data_pipelines.formats.targets import count_evidence, rejected_evidence
from data_pipelines.reading.guarded import GuardedReader
from data_pipelines.rows.clips import FolderClips
from data_pipelines.rows.settings import RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.published import make_published
from experiments.data.clips import fit_clips
from experiments.hostility.outcome import Outcome, outcome_of
from o3jax.api import model_folder
from o3jax.files import read_json
from o3jax.hf.config import config_from_hf
from o3jax.inputs.processor import load_processor

# The file of each format; what TFDS holds is decoded in memory.
FORMATS = {
    "article": "annotations.json",
    "stgr": "stgr.json",
    "sft": "json_data/STGR-SFT.json",
    "rl": "json_data/STGR-RL.json",
    "tfds": None,
}


class Case(NamedTuple):
    """A file of records, or an example of TFDS as JSON."""

    name: str
    form: str
    content: bytes


_TEXTS = (
    *("", " ", "\0", "\x1b]0;title\x07", "\u202eabc", "\ud800", "a\udcffb", "é" * 5000, "\r\n", "[]", "null"),
    *("<|im_end|>", "<|im_start|>system\n", "<|video_pad|>", "<tool_call>", "</think>", "<obj>", "</obj>"),
    *("<obj>x</obj><box>[0,0,1,1]</box>at<t>1.0</t>s", "<box>[1,2]</box>", "<t>1e9</t>", "<t>-1</t>"),
    *("../../etc/passwd", "/etc/passwd", "http://x/y.mp4", "concat:a|b", "a\0b.mp4", "x" * 300, "00:99:99"),
    *("{0}", "%s", "$(id)", "[0.1, 0.2]", "1-2", "00:00:01-00:00:02", "什么时候" * 200),
)
_VALUES = (
    *(None, True, False, 0, -1, 1, 2**63, 10**400, -(10**400), 1e308, -0.0, 1e-320, 0.5, 3),
    *(float("nan"), float("inf"), -float("inf")),
    *([], {}, [[]], [None], [{}], [[0, 0, 0, 0]], [[1, 1, 0, 0]], [[0, 0, 1, 1]]),
    *([-1, 2], [5, 1], [1, 1], [0, 9e9]),
    *([[0.1] * 4] * 500, {"": None}, {"25": {"x": [[0, 0, 1, 1]]}}, {"x": {"y": {"z": 1}}}),
    *_TEXTS,
)


def cases(folder: Path, count: int = 3000, seed: int = 0) -> Iterator[Case]:
    """Yields that many cases, of all formats in turn.

    Args:
        folder: of `Bench`.
    """
    originals = {form: json.loads((folder / f"{form}.originals.json").read_text()) for form in FORMATS}
    rng = random.Random(seed)
    for number in range(count):
        form = list(FORMATS)[number % len(FORMATS)]
        record, done = copy.deepcopy(rng.choice(originals[form])), []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            record = _mutated(record, rng, done)
        text = json.dumps(record if form == "tfds" else [record], ensure_ascii=rng.random() < 0.5)
        content = text.encode(errors="surrogatepass")
        if form != "tfds" and rng.random() < 0.1:
            content = _damaged(content, rng, done)
        yield Case(f"{form}-{number}: {', '.join(done)}"[:200], form, content)


def _mutated(record: Any, rng: random.Random, done: list[str]) -> Any:
    """Returns the record with something of it changed, somewhere inside."""
    places = list(_places(record))
    if not places:
        done.append("replaced")
        return copy.deepcopy(rng.choice(_VALUES))
    holder, key = rng.choice(places)
    kind = rng.choice(("value", "value", "value", "text", "drop", "name", "twice", "deep", "number", "whole"))
    done.append(f"{kind} at {str(key)!r:.20}")
    value = holder[key]
    if kind == "whole" and rng.random() < 0.2:
        return copy.deepcopy(rng.choice(_VALUES))
    if kind == "drop":
        del holder[key]
    elif kind == "name" and isinstance(holder, dict):
        holder[rng.choice(_TEXTS)] = holder.pop(key)
    elif kind == "twice" and isinstance(value, list):
        holder[key] = value * rng.choice((2, 50))
    elif kind == "deep":
        for _ in range(rng.choice((5, 200))):
            value = [value]
        holder[key] = value
    elif kind == "text" and isinstance(value, str):
        at = rng.randint(0, len(value))
        holder[key] = value[:at] + rng.choice(_TEXTS) + value[at:]
    elif kind == "number" and isinstance(value, int | float):
        holder[key] = rng.choice((-value, value * 1000, value + 1e-9, str(value), value / 1000, [value]))
    else:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))
    return record


def _places(value: Any) -> Iterator[tuple[dict | list, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _damaged(content: bytes, rng: random.Random, done: list[str]) -> bytes:
    """Returns a file that is no JSON, or JSON of another kind."""
    at = rng.randrange(max(len(content), 1))
    kind, damaged = rng.choice(
        (
            ("cut", content[:at]),
            ("no UTF-8", content[:at] + b"\xff\xfe" + content[at:]),
            ("UTF-16", content.decode(errors="replace").encode("utf-16")),
            ("a mark", b"\xef\xbb\xbf" + content),
            ("deep", b"[" * 100_000),
            ("no list", content[1:-1]),
            ("empty", b""),
            ("NUL", content[:at] + b"\0" + content[at:]),
            ("a list in a list", b"[" + content + b"]"),
        )
    )
    done.append(f"file: {kind}")
    return damaged


@dataclasses.dataclass
class Bench:
    """A folder with small media of every published source, and what reads and plans its records."""

    folder: Path
    reader: GuardedReader
    rows: MakeRow

    @classmethod
    def make(cls, folder: Path) -> Bench:
        """Returns a bench in an empty folder."""
        made = make_published(folder, "test", 22)
        samples = list({sample.id: sample for sample in (*made["rl"], *made["sft"])}.values())
        films = [sample for sample in samples if sample.video_path]
        said = films[0]
        candidates = (Candidate("a", 1.0, said.reasoning, said.mentions), Candidate("b", 0.0))
        chosen = dataclasses.replace(said, candidates=candidates)
        originals = {
            "article": [to_article(sample) for sample in (chosen, *films)],
            "stgr": [to_stgr(sample) for sample in (chosen, *samples)],
            "tfds": [tfds.encode(sample) for sample in (chosen, *samples)],
            "sft": read_json(folder / FORMATS["sft"], list),
            "rl": read_json(folder / FORMATS["rl"], list),
        }
        for form, records in originals.items():
            (folder / f"{form}.originals.json").write_text(json.dumps(records))
        source = model_folder("o3-tiny")
        config = dataclasses.replace(config_from_hf(source), evidence=None)
        rows = MakeRow(load_processor(source), config, RowShape(1024, 16, 512), "plain", 10)
        return cls(folder, GuardedReader(), rows)

    def close(self) -> None:
        self.reader.close()

    def attempt(self, case: Case) -> Outcome:
        """Returns what becomes of a case: whether it would be trained, or who says what is wrong with it."""
        return outcome_of(lambda: self._try(case))

    def _try(self, case: Case) -> str:
        index = self._index(case)
        fit = fit_clips(FolderClips(index, 1).clips, self.rows)
        for clip in fit.clips:
            self.rows.write(clip)
        count_evidence(index.samples, rejected_evidence(index)).reasons()
        json.dumps([dataclasses.asdict(r) for r in index.rejects], ensure_ascii=False).encode()
        return "; ".join([r.reason for r in index.rejects] + [one.reason for one in fit.lost])

    def _index(self, case: Case) -> Index:
        if case.form == "tfds":
            values = json.loads(case.content)
            if not isinstance(values, dict):
                values = {}
            example = {
                str(name): (text if isinstance(text, str) else json.dumps(text)).encode(
                    errors="surrogatepass"
                )
                for name, text in values.items()
            }
            samples = tfds.samples_of([example], self.folder)
            return judge_samples(samples, self.folder, reader=self.reader)
        file = self.folder / FORMATS[case.form]
        file.write_bytes(case.content)
        return read_index(file, reader=self.reader)

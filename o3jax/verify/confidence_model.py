"""The calibration in a model's folder: from the signals of an answer to the probability that it is right.

`o3_confidence.json` is plain JSON, so that an answer needs no library of statistics:

    {"version": ..,        of the signals, see `o3jax.verify.signals.VERSION`
     "model": "..",        fingerprint of the weights and configuration that it was fit on, see `fingerprint`
     "fit_on": {..},       data, counts, libraries
     "full": {..},         one predictor of answers for each set of signals: with the two more passes,
     "cheap": {..},        and without them
     "evidence": {..}}     and one of single pieces of evidence

A predictor is {"signals": [names], "kind": "logistic" or "boosted", its numbers, "table": null or an isotonic
table [[score, probability], ..] after it, "figures": {..}, "bounds": [..]}. It is made by `o3jax evaluate
--calibrate`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from o3jax.errors import UserError
from o3jax.fields import Section, folder_json, shown
from o3jax.verify import signals
from o3jax.verify.risk import Bound

CONFIDENCE = "o3_confidence.json"
SETS = ("full", "cheap", "evidence")

_SURE = 0.99  # no answer is surer than this, nor surer to be wrong
_READ, _PIECES = 4096, 256  # bytes of each piece of the weights that the fingerprint reads, and how many
_DESCRIBED_BY = ("config.json", "o3_config.json", "generation_config.json", "tokenizer.json")
_MOST_NODES = 100_000


@dataclasses.dataclass(frozen=True)
class Tree:
    """One regression tree: node i goes left where its signal is <= its threshold; a leaf has signal -1."""

    signal: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def __call__(self, x: Sequence[float]) -> float:
        at = 0
        while self.signal[at] >= 0:
            at = (self.left if x[self.signal[at]] <= self.threshold[at] else self.right)[at]
        return self.value[at]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """The probability of being right, from signals by name."""

    signals: tuple[str, ...]
    bias: float
    weights: tuple[float, ...] = ()  # of a logistic one, on signals less their means, by their scales
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    trees: tuple[Tree, ...] = ()  # of a boosted one
    table: tuple[
        tuple[float, float], ...
    ] = ()  # (score, probability), increasing; empty: the logistic function
    bounds: tuple[Bound, ...] = ()

    def __call__(self, values: Mapping[str, float]) -> float:
        """Returns the probability, between 0.01 and 0.99."""
        x = [values[name] for name in self.signals]
        score = self.bias + sum(tree(x) for tree in self.trees)
        if self.weights:
            score += float(np.dot(self.weights, (np.array(x) - self.means) / self.scales))
        if self.table:
            probability = float(np.interp(score, *np.transpose(self.table)))
        else:
            probability = 1 / (1 + math.exp(-max(min(score, 50), -50)))
        return min(max(probability, 1 - _SURE), _SURE)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a model's folder says of its confidences."""

    full: Predictor
    cheap: Predictor
    evidence: Predictor

    def answer(self, seen: signals.Observed, full: bool) -> float:
        """Returns the probability that an answer is right.

        Args:
            full: whether the two more passes were made.
        """
        return (self.full if full else self.cheap)(signals.answer_signals(seen, full))

    def claims(self, seen: signals.Observed) -> list[float]:
        """Returns the probability of each claim's evidence being right."""
        return [self.evidence(dataclasses.asdict(one)) for one in signals.evidence_signals(seen)]


def read_calibration(folder: Path) -> Calibration | None:
    """Returns the calibration of a model's folder, None where there is none.

    Raises:
        UserError: if it was made for another model or other signals, or is malformed.
    """
    values = folder_json(folder, CONFIDENCE)
    if values is None:
        return None
    section = Section(values, str(folder / CONFIDENCE))
    remedy = f"fit it again with o3jax evaluate --calibrate --model_path={folder}, or remove the file"
    if section.integer("version", 0) != signals.VERSION:
        raise UserError(f"{folder / CONFIDENCE} is a calibration of other signals: {remedy}")
    if section.text("model") != fingerprint(folder):
        raise UserError(f"{folder / CONFIDENCE} is the calibration of another model: {remedy}")
    known = {name: signals.names(name == "full") for name in SETS} | {"evidence": signals.evidence_names()}
    return Calibration(*(_predictor(section.section(name), known[name]) for name in SETS))


def fingerprint(folder: Path) -> str:
    """Returns a hash of what decides a model's answers: its configuration files, and of each file of weights
    its size, its beginning and pieces spread evenly over it. So it is quick for weights of any size, and
    training moves it."""
    digest = hashlib.sha256()
    for name in _DESCRIBED_BY:
        path = folder / name
        digest.update(name.encode() + (path.read_bytes() if path.is_file() else b"-"))
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for at in np.linspace(0, max(size - _READ, 0), _PIECES).astype(np.int64).tolist():
                file.seek(at)
                digest.update(file.read(_READ))
    return digest.hexdigest()[:32]


def predictor_json(predictor: Predictor) -> dict[str, Any]:
    """Returns a predictor as the file holds it."""
    kind = "boosted" if predictor.trees else "logistic"
    return {"kind": kind} | dataclasses.asdict(predictor)


def _predictor(section: Section, known: Sequence[str]) -> Predictor:
    names = section.get("signals")
    if not isinstance(names, list) or any(name not in known for name in names):
        raise section.bad("signals", "must be a list of this version's signals: fit the calibration again")
    numbers = functools.partial(_numbers, section)
    count = len(names) if section.get("weights") else 0
    trees = section.get("trees")
    table = section.get("table")
    try:
        predictor = Predictor(
            signals=tuple(names),
            bias=float(section.get("bias")),
            weights=numbers("weights", count),
            means=numbers("means", count),
            scales=numbers("scales", count),
            trees=tuple(_tree(tree, len(names)) for tree in trees),
            table=tuple((float(score), float(probability)) for score, probability in table),
            bounds=tuple(Bound(**one) for one in section.get("bounds")),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise section.bad(
            "trees, table or bounds", f"are malformed ({shown(error)}): fit it again"
        ) from error
    if not math.isfinite(predictor.bias) or 0 in predictor.scales:
        raise section.bad("bias or scales", "are no numbers to compute with: fit the calibration again")
    return predictor


def _numbers(section: Section, key: str, count: int) -> tuple[float, ...]:
    return section.numbers(key, count) if count else ()


def _tree(values: Mapping[str, Sequence[float]], signals_count: int) -> Tree:
    """Returns a tree whose walk ends: every node leads on to later ones.

    Raises:
        ValueError: if it is none.
    """
    fields = [field.name for field in dataclasses.fields(Tree)]
    tree = Tree(**{name: tuple(values[name]) for name in fields})
    count = len(tree.signal)
    if not 0 < count <= _MOST_NODES or any(len(getattr(tree, name)) != count for name in fields):
        raise ValueError("a tree needs one value of each kind for each node")
    for i, signal in enumerate(tree.signal):
        if signal >= signals_count or (signal >= 0 and not i < min(tree.left[i], tree.right[i])):
            raise ValueError(f"node {i} leads nowhere")
        if signal >= 0 and max(tree.left[i], tree.right[i]) >= count:
            raise ValueError(f"node {i} leads out of the tree")
    return tree

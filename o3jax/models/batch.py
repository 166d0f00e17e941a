"""The batch that the model reads, and what training adds to it: frozen dataclasses of arrays.

    Batch              text, frames, dense stream, places and questions: what the model reads
    SupervisedBatch    a Batch, and what is true of it
    PromptBatch        a Batch to be continued by sampling
    GroundingBatch     patches, and what covers each language token

Every array may have axes in front, written `*B`: none in a row, one in a batch, two in micro-batches. What is
None is not there. Grids are data: one compiled program serves all grids that are padded to the same shapes.

The arrays are numpy where rows are made, which needs no jax, and jax arrays on a device. The types are
pytrees wherever a model is imported (`o3jax.models.vision`). At the end is what is done with any of them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Array = Any  # of numpy or of jax; this module is imported where there is no jax


# --- what the model reads ---


@dataclasses.dataclass(frozen=True)
class Patches:
    """Frame pairs (or images) as the vision tower reads them: patches, and where each stands in its frame."""

    values: Float[Array, "*B T P C"] | UInt8[Array, "*B T P C"]  # uint8 as cut out, or floats in [-1, 1]
    length: Int[Array, "*B T"]  # how many of the P patches are real; 0 for padding
    coords: Int[Array, "*B T P 2"]  # row and column of each patch, in merge-block order
    pos_index: Int[Array, "*B T P 4"]  # four rows of the learned position table, and their weights
    pos_weight: Float[Array, "*B T P 4"]


@dataclasses.dataclass(frozen=True)
class Features:
    """What a frozen tower made of patches earlier; where they stand in its place, it does not run."""

    # Of the language stream each token with its DeepStack features, [*B, T, P / 4, 1 + taps, D]; of the dense
    # stream each token, [*B, T, P / 4, D].
    values: Float[Array, "*shape D"]
    length: Int[Array, "*B T"]  # of the patches


@dataclasses.dataclass(frozen=True)
class TextRow:
    """The tokens of the language model."""

    input_ids: Int[Array, "*B S"]
    segment_ids: Int[Array, "*B S"]  # 0 is padding
    positions: Int[Array, "*B 3 S"]  # M-RoPE: time, height, width
    visual_index: Int[Array, "*B S"]  # which visual token stands at each position, -1 for text
    continuation_ids: Int[Array, "*B S"] | None = None  # see `o3jax.models.attention.Mask`
    next_position: Int[Array, "*B"] | None = None  # where a generated token goes on, on all three axes


@dataclasses.dataclass(frozen=True)
class DenseStream:
    """All frames of the videos, small; made by `o3jax.inputs.dense`."""

    times: Float[Array, "*B T"]  # seconds; mean time of each frame pair
    cells: Float[Array, "*B cells 2"]  # centre (x, y) of each token of a frame, in [0, 1]
    patches: Patches | None = None  # these or `features`
    features: Features | None = None
    clip: Int[Array, "*B T"] | None = None  # of which video of the row each pair is, 1 and up; 0 is padding
    # The times of all videos of the row one after the other, further apart than the temporal window reaches.
    clock: Float[Array, "*B T"] | None = None

    @property
    def length(self) -> Int[Array, "*B T"]:
        """How many patches of each frame pair are real; 0 for padding."""
        return (self.features or self.patches).length


@dataclasses.dataclass(frozen=True)
class VisualPlaces:
    """When and where the visual tokens of the language stream are."""

    times: Float[Array, "*B T"]  # seconds; mean time of each frame pair
    centres: Float[Array, "*B T tokens 2"]  # centre (x, y) of each token, in [0, 1]
    clip: Int[Array, "*B T"] | None = None  # as in `DenseStream`
    clock: Float[Array, "*B T"] | None = None


@dataclasses.dataclass(frozen=True)
class Questions:
    """What is asked about the videos of a row; questions about one video are consecutive."""

    ids: Int[Array, "*B Q Sq"]  # tokens, -1 is padding
    mention_index: Int[Array, "*B Q M"] | None = None  # where in the row each mention's state is, -1: padding
    clip: Int[Array, "*B Q"] | None = None  # of which video of the row each is, 1 and up; 0 is padding


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the model reads."""

    text: TextRow
    patches: Patches | None = None  # of the language stream, where it has frames: these or `features`
    features: Features | None = None
    dense: DenseStream | None = None  # this and the rest for the evidence modules
    places: VisualPlaces | None = None
    questions: Questions | None = None

    @property
    def frames(self) -> Patches | Features | None:
        """What stands for the frames of the language stream, if it has any."""
        return self.features or self.patches


@dataclasses.dataclass(frozen=True)
class PointedFrames:
    """Frames that no text refers to: the evidence decoder alone reads them, see `Qwen3VL.add_frames`."""

    patches: Patches
    times: Float[Array, "*B T"]  # seconds
    cells: Float[Array, "*B cells 2"]  # as in `DenseStream`


# --- what training adds ---


@dataclasses.dataclass(frozen=True)
class EvidenceTargets:
    """What is true of each mention; False in a `has` masks what is unknown or padding.

    The axis Q of questions may be one of the axes in front.
    """

    time: Float[Array, "*B M"]  # seconds
    has_time: Bool[Array, "*B M"]
    interval: Float[Array, "*B M 2"]  # seconds; when the object is visible
    has_interval: Bool[Array, "*B M"]
    boxes: Float[Array, "*B M K 4"]  # at the time; several where the mention means several objects
    has_box: Bool[Array, "*B M K"]
    judged: Bool[Array, "*B M"]  # whether the confidence is trained: usually any of the above is known


@dataclasses.dataclass(frozen=True)
class Search:
    """Which frame pairs of the dense stream are evidence of each question, and which may be searched."""

    inside: Bool[Array, "*B Q T"]  # the pairs in a true interval
    known: Bool[Array, "*B Q T"]  # the pairs that count: those of questions whose intervals are known
    candidates: Bool[Array, "*B Q T"]  # the true intervals and times, opened a little at each side


@dataclasses.dataclass(frozen=True)
class EvidenceTruth:
    """What is true of a row's questions."""

    mentions: EvidenceTargets  # [*B, Q, M, ...]
    intervals: Float[Array, "*B Q I 2"] | None = None  # seconds, NaN where there is none
    search: Search | None = None  # made of the intervals, which it replaces, anew each time a row is read


@dataclasses.dataclass(frozen=True)
class Failures:
    """Which clips a row holds, and why one of them could not be read; for the host alone."""

    number: Int[Array, "*B clips"]  # of each clip in its data set; -1 where there is none
    error: UInt8[Array, "*B clips bytes"]  # UTF-8, filled with zeros; all zeros where the clip was read


@dataclasses.dataclass(frozen=True)
class MissingFeatures:
    """Which features of a row are not in the feature cache, so that the training process makes them."""

    key: UInt8[Array, "*B clips 64"]  # of each clip's entry; all zeros where nothing is to be made
    clip: Int[Array, "*B T"]  # of which clip each frame pair of the language stream is, 1 and up


@dataclasses.dataclass(frozen=True)
class SupervisedBatch:
    """A batch to learn from."""

    inputs: Batch
    labels: Int[Array, "*B S"]  # the token that each position must predict; -100 where none
    evidence: EvidenceTruth | None = None
    failures: Failures | None = None
    missing: MissingFeatures | None = None


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Prompts of reinforcement learning, one to a row."""

    inputs: Batch  # `text.next_position` is where a response goes on
    start: Int[Array, "*B"]  # the slot of the first token behind the last frame
    number: Int[Array, "*B"]  # of the clip in its data set; -1 where it could not be read
    failures: Failures | None = None


@dataclasses.dataclass(frozen=True)
class GroundingBatch:
    """Frames, and what covers each language token of theirs, frame pairs one after the other."""

    patches: Patches
    object: Int[Array, "*B tokens"]  # 1 covered, 0 background, -1 neither clearly
    present: Float[Array, "*B tokens 2"]  # whether the object is in each frame of the pair
    box: Float[Array, "*B tokens 4"]  # normalised xyxy
    color: Int[Array, "*B tokens"]  # numbers of the object's attributes
    shape: Int[Array, "*B tokens"]


@dataclasses.dataclass(frozen=True)
class MatchingBatch:
    """Frames at any rate, questions about them, and when what they ask for is seen."""

    dense: DenseStream
    questions: Questions
    inside: Bool[Array, "*B Q T"]  # the pairs that are relevant
    known: Bool[Array, "*B Q T"]  # the pairs that count; none of a question that is padding


TYPES = tuple(kind for kind in list(globals().values()) if dataclasses.is_dataclass(kind))


# --- what is done with any of them ---

Tree = TypeVar("Tree")


def map_arrays(fn: Callable[..., Any], *trees: Tree) -> Tree:
    """Returns the tree of fn(array, ...) over the arrays at one place of trees of one type; None stays."""
    first = trees[0]
    if first is None:
        return None
    if not dataclasses.is_dataclass(first):
        return fn(*trees)
    names = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: map_arrays(fn, *(getattr(tree, name) for tree in trees)) for name in names})


def stack(rows: Sequence[Tree]) -> Tree:
    """Returns rows as a batch, with an axis more in front."""
    return map_arrays(lambda *arrays: np.stack(arrays), *rows)


def take(batch: Tree, index: Any) -> Tree:
    """Returns `array[index]` of all arrays: a row, or some of them."""
    return map_arrays(lambda array: array[index], batch)


def put(batch: Any, index: Any, values: Any) -> None:
    """Writes into the numpy arrays of a batch: `array[index] = value` for each, with a tree of its type."""
    map_arrays(lambda array, value: array.__setitem__(index, value), batch, values)


def flatten(tree: Any, prefix: str = "") -> dict[str, Array]:
    """Returns the arrays by the names of their fields, such as `inputs.text.input_ids`."""
    if tree is None:
        return {}
    if not dataclasses.is_dataclass(tree):
        return {prefix: tree}
    named = [(f"{prefix}.{field.name}".lstrip("."), field.name) for field in dataclasses.fields(tree)]
    return {key: array for name, field in named for key, array in flatten(getattr(tree, field), name).items()}


def unflatten(kind: type[Tree], arrays: Mapping[str, Array], prefix: str = "") -> Tree:
    """Returns the tree of a type that `flatten` was given."""
    values = {}
    for field, hint in typing.get_type_hints(kind).items():
        name = f"{prefix}.{field}".lstrip(".")
        parts = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        if not parts:
            values[field] = arrays.get(name)
        elif any(key.startswith(f"{name}.") for key in arrays):
            values[field] = unflatten(parts[0], arrays, name)
    return kind(**values)

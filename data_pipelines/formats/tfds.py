"""A data set as a TensorFlow Datasets folder: written and read as ArrayRecord, without TensorFlow.

One record is one `Sample`, one feature each of its fields. What is not text is JSON text: TFDS needs
TensorFlow for nested ragged features, and it stores every float as float32. The media lie beside the records,
under the paths that these name, so that the folder can be moved, and trained from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.formats.fields import NUMBER, Record, check_names, mention_record, read_field, read_size
from data_pipelines.formats.sample import Candidate, KeyFrame, Sample
from data_pipelines.reading.guarded import inside, one_line
from o3jax.errors import UserError
from o3jax.files import whole_file
from o3jax.grounding import Grounding

_TEXTS = ("id", "source", "task", "question", "answer", "reasoning", "language", "kind")  # never None


class _SampleBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes samples, given by split; reading needs none. The class's name is the data set's."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, splits: Mapping[str, Sequence[Sample]] | None = None, spread: bool = False, **kwargs: Any
    ):
        self._samples, self._spread = splits, spread
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    field.name: tfds.features.Text(
                        doc="text" if field.name in _TEXTS else f"JSON text of the field {field.name!r}"
                    )
                    for field in dataclasses.fields(Sample)
                }
            ),
            disable_shuffling=True,  # the order is the index's
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        if self._samples is None:
            raise UserError(f"{self.name} is not in {self.data_dir}: write it with experiments.data build")
        if not self._spread:
            return {name: enumerate(map(encode, samples)) for name, samples in self._samples.items()}
        import apache_beam as beam

        return {
            name: beam.Create(list(enumerate(samples))) | beam.MapTuple(lambda n, one: (n, encode(one)))
            for name, samples in self._samples.items()
        }

    def _generate_examples(self) -> None:
        raise NotImplementedError("_split_generators returns the examples themselves")


class O3StgrPublished(_SampleBuilder):
    """Spatio-temporal grounded reasoning, from records in the published STGR format."""


class O3StgrArticle(_SampleBuilder):
    """Video questions with timestamps and boxes, from records in the article's format."""


class O3Synthetic(_SampleBuilder):
    """Questions about the synthetic world of moving shapes, whose truth is exact."""


def encode(sample: Sample) -> dict[str, str]:
    """Returns the features of a sample; `decode` gives the sample back."""
    values = dataclasses.asdict(sample) | _mention_records(sample)
    candidates = zip(values["candidates"], sample.candidates, strict=True)
    values["candidates"] = [record | _mention_records(candidate) for record, candidate in candidates]
    return {
        name: value if name in _TEXTS else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }


def decode(example: Mapping[str, bytes]) -> Sample:
    """Returns the sample of one record as `tfds.data_source` gives it; its values are the index's to judge.

    Raises:
        RecordError: if a field is of another type than `encode` writes.
    """
    values = {name: text.decode() if name in _TEXTS else json.loads(text) for name, text in example.items()}
    check_names(values, [field.name for field in dataclasses.fields(Sample)])
    return Sample(
        **{name: read_field(values, name, str) for name in _TEXTS},
        **{name: read_field(values, name, str, None) for name in ("video_path", "image_path")},
        **_evidence(values),
        image_size=read_size(values),
        duration=None if values["duration"] is None else _number(values["duration"]),
        key_frames=tuple(map(_key_frame, read_field(values, "key_frames", list))),
        candidates=tuple(map(_candidate, read_field(values, "candidates", list))),
    )


def _evidence(values: Record) -> dict[str, Any]:
    """Returns what a sample and a candidate have in common."""
    return {
        "mentions": tuple(map(_mention, read_field(values, "mentions", list))),
        "intervals": tuple(_numbers(interval, 2) for interval in read_field(values, "intervals", list)),
    }


def _mention(item: Record) -> Grounding:
    time, interval = item["time"], item.get("interval")  # sets built earlier lack the interval
    return Grounding(
        read_field(item, "object", str),
        None if time is None else _number(time),
        None if interval is None else _numbers(interval, 2),
        tuple(_numbers(box, 4) for box in read_field(item, "boxes", list)),
    )


def _key_frame(item: Record) -> KeyFrame:
    path = read_field(item, "path", str, None)
    return KeyFrame(read_field(item, "index", int), _number(item["time"]), path)


def _candidate(item: Record) -> Candidate:
    texts = {name: read_field(item, name, str) for name in ("answer", "reasoning")}
    return Candidate(**texts, preference=_number(item["preference"]), **_evidence(item))


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != count:
        raise TypeError(f"{count} numbers were expected, not {values!r:.80}")
    return tuple(map(_number, values))


def _number(value: Any) -> float:
    if type(value) not in NUMBER:
        raise TypeError(f"a number was expected, not {value!r:.80}")
    return float(value)


def _mention_records(answered: Sample | Candidate) -> dict[str, Any]:
    return {
        "mentions": [
            mention_record(mention) | {"interval": mention.interval} for mention in answered.mentions
        ]
    }


def write(
    out: str | os.PathLike[str],
    root: str | os.PathLike[str],
    splits: Mapping[str, Sequence[Sample]],
    beam: Mapping[str, Any] | None = None,
) -> Path:
    """Returns the folder of a TFDS data set that is written to `out`, with the media it names.

    Media are hard links where the file system allows it, else copies. The data set's name tells what the
    samples are: `o3_synthetic`, `o3_stgr_article` or else `o3_stgr_published`.

    Args:
        root: the folder that the samples' paths are relative to.
        splits: the samples of each split.
        beam: `beam_runner` and `beam_options` of TFDS, which then writes by a pipeline.

    Raises:
        UserError: if there are no samples, `out` holds such a data set already, or a file is missing.
    """
    everything = [sample for samples in splits.values() for sample in samples]
    if not all(splits.values()) or not everything:
        raise UserError(f"{root} has a split without usable samples: there is nothing to build")
    sources = {sample.source for sample in everything}
    kind = O3StgrPublished
    if sources == {"article"}:
        kind = O3StgrArticle
    elif all(source.startswith("synthetic-") for source in sources):
        kind = O3Synthetic
    if list(find(out)):
        raise UserError(f"{out} holds a built data set already; remove it or choose another folder")
    for path in sorted({path for sample in everything for path in media(sample)}):
        _place(inside(root, path), Path(out) / path)
    tfds.disable_progress_bar()
    builder = kind(splits, beam is not None, data_dir=out)
    config = tfds.download.DownloadConfig(**(beam or {}))
    # Nothing is downloaded, though TFDS says so, and it wants a folder for that.
    with tempfile.TemporaryDirectory() as nothing, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=nothing, download_config=config)
    return Path(builder.data_dir)


def media(sample: Sample) -> Iterator[str]:
    """Yields the paths of the files that a sample needs."""
    paths = (sample.video_path, sample.image_path, *(frame.path for frame in sample.key_frames))
    yield from (path for path in paths if path)


def _place(source: Path, target: Path) -> None:
    if target.exists():
        if not filecmp.cmp(source, target):
            raise UserError(f"{target} exists already and is not {source}; choose an empty folder")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        with whole_file(target) as temporary:
            shutil.copy2(source, temporary)


def find(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the TFDS folders that `write` made under a folder."""
    for kind in (O3StgrPublished, O3StgrArticle, O3Synthetic):
        yield from Path(folder).glob(f"{kind.name}/*/dataset_info.json")


def read(folder: str | os.PathLike[str], split: str | None = None) -> list[Sample]:
    """Returns the samples of a split, by default the first one, of the data set that `write` put there.

    Raises:
        UserError: if the folder has no such data set or split, or records of another kind.
    """
    found = [path.parent for path in find(folder)]
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} built data sets, not one; name another folder")
    builder = tfds.builder_from_directory(found[0])
    splits = list(builder.info.splits)
    if split is not None and split not in splits:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    return samples_of(builder.as_data_source(split or splits[0]), folder)


def samples_of(examples: Iterable[Mapping[str, bytes]], folder: str | os.PathLike[str]) -> list[Sample]:
    """Returns the samples of the records of a folder; UserError if one is no sample."""
    try:
        return [decode(example) for example in examples]
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder} holds records that are no samples ({one_line(error)}); build it again"
        ) from error

"""Prompts of reinforcement learning: a clip with one question -> a row of static shape, to be continued."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.formats.sample import Sample
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.evidence import check_capacity
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.supervised import MakeRow, Written
from o3jax.errors import UserError
from o3jax.inputs.dense import Source
from o3jax.models.batch import Batch, Failures, PromptBatch, Questions, map_arrays


class MakePrompt(MakeRow):
    """Clip -> prompt row: what `MakeRow` makes of it, without the response."""

    def write(self, clip: Clip) -> Written:
        """Returns the tokens of a clip's prompt, without decoding."""
        return dataclasses.replace(super().write(clip), responses=[[]], pointed=np.zeros(0))

    def map(self, clips: Clip | Sequence[Clip]) -> PromptBatch:
        """Returns the row of a clip; with zeros instead of frames where it cannot be read.

        Raises:
            UserError: if the clip does not fit the row shape, or has not one question.
        """
        (clip,) = (clips,) if isinstance(clips, Clip) else clips
        if len(clip.samples) != 1:
            raise UserError(
                f"{clip.samples[0].id} shares its clip; prompts are single: set questions_per_row=1"
            )
        written = self.write(clip)
        self._check([clip], [written])
        read = self._read(clip, written)
        text, patches, _, ((end,),) = self._text([written], [read])
        text.continuation_ids[:] = 0
        text = dataclasses.replace(text, next_position=np.int32(text.positions[:, end - 1].max() + 1))
        inputs = Batch(text, patches=patches)
        if self.evidence is not None:
            dense, places = self._streams([written], [read])
            inputs = dataclasses.replace(inputs, dense=dense, places=places, questions=self._asked(clip))
        return PromptBatch(
            inputs,
            start=np.int32(len(written.prefix)),
            number=np.int32(-1 if read.error else clip.number),
            failures=self._failures([clip], [read.error]),
        )

    def source(self, clip: Clip) -> Source | None:
        """Returns what boxes about a clip are read from beside the prompt's frames; None for these alone."""
        evidence = self.config.evidence
        if self.evidence is None or evidence.box_frames == "stream" or clip.source.kind == "image":
            return None
        times = clip.dense_plan(evidence, self.processor.video_config.factor).times_s
        size = clip.plan(self.processor, self.frames).size

        def frames_at(
            times: Float[np.ndarray, " n"],
        ) -> tuple[UInt8[np.ndarray, "n H W 3"], Float[np.ndarray, " n"]]:
            try:
                return clip.source.frames_at(times, size, self.reader), times
            except UserError as failure:
                print(f"boxes are read from the prompt's frames alone: {failure}", flush=True)
                return np.zeros((0, *size, 3), np.uint8), np.zeros(0)

        return Source(times, size, frames_at)

    def _question(self, sample: Sample) -> str:
        return sample.question  # the model's own proposals follow later, see `with_text`

    def _asked(self, clip: Clip) -> Questions:
        """Returns what is asked; nothing is annotated."""
        capacity = self.evidence.question_length
        asked = self.processor.tokenizer(clip.samples[0].question)["input_ids"]
        check_capacity(clip.samples[0], len(asked), capacity, "tokens in its question", "question_length")
        ids = np.full((1, capacity), -1, np.int32)
        ids[0, : len(asked)] = asked
        return Questions(ids, clip=np.ones(1, np.int32))


def with_text(prompts: PromptBatch, texts: Sequence[Sequence[int]]) -> PromptBatch:
    """Returns a batch of prompt rows with other tokens behind the last frame.

    Raises:
        UserError: if there is no room for them.
    """
    text = map_arrays(np.copy, prompts.inputs.text)
    size = text.input_ids.shape[1]
    for row, (ids, start) in enumerate(zip(texts, prompts.start.tolist(), strict=True)):
        end, first = start + len(ids), text.positions[row, :, start - 1].max() + 1
        if end > size:
            raise UserError(
                f"a prompt with the model's proposals has {end} tokens, more than the {size} of a row: "
                "raise config.row_length"
            )
        text.input_ids[row, start:] = text.segment_ids[row, start:] = 0
        text.positions[row, :, start:] = 0
        text.input_ids[row, start:end] = ids
        text.segment_ids[row, start:end] = 1
        text.positions[row, :, start:end] = first + np.arange(len(ids))
        text.next_position[row] = first + len(ids)
    return dataclasses.replace(prompts, inputs=dataclasses.replace(prompts.inputs, text=text))


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """What an optimizer step of an iteration begins with."""

    number: int  # in the iteration
    prompts: PromptBatch  # of the whole iteration
    failures: Failures | None  # of the iteration, with its first minibatch


@dataclasses.dataclass(frozen=True)
class Minibatches:
    """Prompts of an iteration -> one item per optimizer step, `minibatches` of them.

    A position inside an iteration starts with its prompts, at the same minibatch.
    """

    prompts: Pipeline
    minibatches: int

    @property
    def batch_size(self) -> int:
        return self.prompts.batch_size // self.minibatches

    @property
    def data_fingerprint(self) -> Mapping[str, str | int]:
        return self.prompts.data_fingerprint

    def open(self, position: int = 0) -> Iterator[Minibatch]:
        """Returns an iterator from prompt `position` on."""
        done = position % self.prompts.batch_size
        iterator, first = self.prompts.open(position - done), done // self.batch_size
        try:
            for batch in iterator:
                prompts = dataclasses.replace(batch, failures=None)
                for number in range(first, self.minibatches):
                    yield Minibatch(number, prompts, None if number else batch.failures)
                first = 0
        finally:
            iterator.close()

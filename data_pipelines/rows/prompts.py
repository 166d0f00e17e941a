"""Prompts of reinforcement learning: a clip with one question -> a row of static shape, to be continued."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.formats.sample import Sample
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.evidence import check_capacity
from data_pipelines.rows.frames import decode_frames, plan_frames
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.supervised import FAILURE_KEYS, MakeRow, Row, Written
from o3jax.errors import UserError
from o3jax.inputs.dense import Source


class MakePrompt(MakeRow):
    """Clip -> prompt row: what `MakeRow` makes of it, without the response.

    Beside the model's arrays there are `next_position`, where a response goes on, `prompt_start`, the slot
    of the first token behind the last frame, and `prompt_number`, the clip's.
    """

    def write(self, clip: Clip) -> Written:
        """Returns the tokens of a clip's prompt, without decoding."""
        return dataclasses.replace(super().write(clip), responses=[[]], pointed=np.zeros(0))

    def map(self, clips: Clip | Sequence[Clip]) -> Row:
        """Returns the row of a clip.

        A clip that cannot be read has zeros instead of frames; its number is -1 in `prompt_number`.

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
        row, ((end,),) = self._text([written], [read])
        del row["labels"]
        row["continuation_ids"][:] = 0
        row["next_position"] = np.int32(row["positions"][:, end - 1].max() + 1)
        row["prompt_start"] = np.int32(len(written.prefix))
        row["prompt_number"] = np.int32(-1 if read.error else clip.number)
        row |= self._failures([clip], [read.error])
        if self.evidence is not None:
            row |= self._streams([written], [read]) | self._questions(
                [clip], [written], [read.error], [[end]]
            )
        return row

    def source(self, clip: Clip) -> Source | None:
        """Returns what boxes about a clip are read from beside the prompt's frames; None for these alone."""
        evidence = self.config.evidence
        if self.evidence is None or evidence.box_frames == "stream" or clip.is_image:
            return None
        times, _ = clip.dense_plan(evidence, self.processor.video_config.factor)
        size = plan_frames(clip.samples, clip.about(), self.processor, self.frames, pairs=clip.pairs).size

        def frames_at(
            times: Float[np.ndarray, " n"],
        ) -> tuple[UInt8[np.ndarray, "n H W 3"], Float[np.ndarray, " n"]]:
            try:
                return decode_frames(clip.video, times, size, self.reader), times
            except UserError as failure:
                print(f"boxes are read from the prompt's frames alone: {failure}", flush=True)
                return np.zeros((0, *size, 3), np.uint8), np.zeros(0)

        return Source(times, size, frames_at)

    def _question(self, sample: Sample) -> str:
        return sample.question  # the model's own proposals follow later, see `with_text`

    def _questions(
        self,
        clips: Sequence[Clip],
        written: Sequence[Written],
        errors: Sequence[str],
        starts: Sequence[Sequence[int]],
    ) -> Row:
        """Returns what is asked; nothing is annotated."""
        (clip,), capacity = clips, self.evidence.question_length
        asked = self.processor.tokenizer(clip.samples[0].question)["input_ids"]
        check_capacity(clip.samples[0], len(asked), capacity, "tokens in its question", "question_length")
        ids = np.full((1, capacity), -1, np.int32)
        ids[0, : len(asked)] = asked
        return {"question_ids": ids, "question_clip": np.ones(1, np.int32)}


def with_text(prompts: Row, texts: Sequence[Sequence[int]]) -> Row:
    """Returns a batch of prompt rows with other tokens behind the last frame.

    Raises:
        UserError: if there is no room for them.
    """
    names = ("input_ids", "positions", "segment_ids", "next_position")
    changed = {name: prompts[name].copy() for name in names}
    size = changed["input_ids"].shape[1]
    for row, ids in enumerate(texts):
        start = int(prompts["prompt_start"][row])
        end, first = start + len(ids), prompts["positions"][row, :, start - 1].max() + 1
        if end > size:
            raise UserError(
                f"a prompt with the model's proposals has {end} tokens, more than the {size} of a row: "
                "raise config.row_length"
            )
        for name in ("input_ids", "segment_ids"):
            changed[name][row, start:] = 0
        changed["positions"][row, :, start:] = 0
        changed["input_ids"][row, start:end] = ids
        changed["segment_ids"][row, start:end] = 1
        changed["positions"][row, :, start:end] = first + np.arange(len(ids))
        changed["next_position"][row] = first + len(ids)
    return prompts | changed


@dataclasses.dataclass(frozen=True)
class Minibatches:
    """Prompts of an iteration -> one item per optimizer step, `minibatches` of them.

    Each item is {"minibatch": its number, "prompts": the batch of the whole iteration}, the first also with
    what the ledger reads. A position inside an iteration starts with its prompts, at the same minibatch.
    """

    prompts: Pipeline
    minibatches: int

    @property
    def batch_size(self) -> int:
        return self.prompts.batch_size // self.minibatches

    @property
    def data_fingerprint(self) -> Mapping[str, str | int]:
        return self.prompts.data_fingerprint

    def open(self, position: int = 0) -> Iterator[Row]:
        """Returns an iterator from prompt `position` on."""
        done = position % self.prompts.batch_size
        iterator, first = self.prompts.open(position - done), done // self.batch_size
        try:
            for batch in iterator:
                failures = {key: batch.pop(key) for key in FAILURE_KEYS}
                for number in range(first, self.minibatches):
                    yield {"minibatch": number, "prompts": batch} | ({} if number else failures)
                first = 0
        finally:
            iterator.close()

"""The facade behind `import o3jax`: load a model, ask it, export it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from o3jax.errors import UserError
from o3jax.fields import folder_file
from o3jax.generate.sampler import Ending, greedy
from o3jax.hf.config import config_from_hf
from o3jax.hf.folder import ASSETS, check_processor, export_model, model_folder
from o3jax.hf.generation import Generation, read_generation
from o3jax.hf.o3_config import Settings, read_settings
from o3jax.hf.weights import Progress, load_weights, stored_dtypes
from o3jax.inference.further import search_on
from o3jax.inference.hidden import Answers, ask_again, observe
from o3jax.inference.reading import Asked, read_request
from o3jax.inference.respond import Request, Response, Steps, respond
from o3jax.inference.together import respond_together
from o3jax.inference.visuals import read_inputs
from o3jax.inputs.processor import Processor, load_processor
from o3jax.models.batch import Batch
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.text import for_decoding
from o3jax.notes import Note
from o3jax.prompts import grammar
from o3jax.report.answer import Answer, Evidence, plain_text, question_language
from o3jax.report.evidence import evidence_of
from o3jax.searched import Progress as SearchProgress
from o3jax.verify import reasons
from o3jax.verify.confidence_model import Calibration, read_calibration
from o3jax.verify.signals import Observed
from o3jax.verify.verdict import VERIFY, absent, verdict
from o3jax.video import Clip, OpenVideo, Wanted
from o3jax.video.sparse import SparseReader

__all__ = ["Answer", "Evidence", "Model", "export_hf", "load", "load_processor"]

# Parameters of a model that has read a padded video sooner than a program for a shorter one is made.
_PROGRAMS_ARE_DEAR = 100_000_000


@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward pass returns."""

    logits: Float[Array, "B S V"]


@jax.jit
def _forward(model: Qwen3VL, batch: Batch) -> Float[Array, "B S V"]:
    return model(batch)


class Model:
    """A Qwen3-VL that answers questions about videos; made by `load`.

    Attributes:
        backbone: the parameters, layers as `for_decoding` makes them.
        folder: where it was loaded from.
        settings: how it wants to be asked.
        generation: how its texts end, and what they should not repeat.
        open_video, open_sparse: open a file, as `OpenVideo` and `SparseReader` do.
        steps: how the parts of an answer are done, where not as `respond` does them.
    """

    def __init__(self, backbone: Qwen3VL, folder: Path, settings: Settings, generation: Generation):
        backbone.text.layers = for_decoding(backbone.text.layers)
        self.backbone = backbone
        self.folder = folder
        self.settings = settings
        self.generation = generation
        self.open_video: Callable[..., OpenVideo] = OpenVideo
        self.open_sparse: Callable[..., SparseReader] = SparseReader
        self.steps: Steps | None = None

    @property
    def config(self) -> Config:
        """The architecture."""
        return self.backbone.config

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self.generation.eos_ids

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """What makes a probability of being right of what is seen of an answer; None where there is none."""
        return read_calibration(self.folder)

    @functools.cached_property
    def processor(self) -> Processor:
        """The processor of the model's folder."""
        return load_processor(self.folder)

    def __call__(self, **inputs: np.ndarray) -> Output:
        """Returns `.logits` [B, S, V] for what a Qwen3-VL processor returned, as numpy arrays.

        Raises:
            UserError: if an input is unknown, or the grids do not fit the placeholders.
        """
        length = np.shape(inputs.get("input_ids", ()))[-1] if "input_ids" in inputs else 0
        return Output(_forward(self.backbone, read_inputs(inputs, self.backbone))[:, :length])

    def generate(self, *, max_new_tokens: int = 256, **inputs: np.ndarray) -> Int[np.ndarray, "B new"]:
        """Returns the greedy continuation of each row; rows that end early are filled with pad tokens.

        Raises:
            UserError: as for a call.
        """
        generate = self.steps.generate if self.steps else greedy
        batch = read_inputs(inputs, self.backbone)
        out = generate(self.backbone, batch, ending(self.generation, max_new_tokens))
        return np.asarray(out.tokens)[:, : int(out.length.max())]

    def answer(
        self,
        video: str | os.PathLike[str],
        question: str,
        *,
        fps: float | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
        max_frames: int | None = None,
        max_new_tokens: int = 768,
        verify: str = "full",
        budget: float | None = None,
        progress: SearchProgress | None = None,
    ) -> Answer:
        """Returns the answer to a question about a video file, with its evidence.

        Args:
            video: a local file.
            question: in English or Chinese; printed forms follow its language.
            fps: the rate at which the video is presented and frames are numbered; 25 by default.
            start_s, end_s, max_frames: as for `request`.
            max_new_tokens: where the text is cut off at the latest.
            verify: "full" asks again with only the evidence and without it, where the model has a calibration
                that makes a confidence of it; "cheap" does not.
            budget, progress: as for `request`.

        Raises:
            UserError: if the question is empty, fps is not positive, or video or calibration are refused.
        """
        if verify not in VERIFY:
            raise UserError(f"verify must be one of {', '.join(VERIFY)}, not {verify!r}")
        calibration = self.calibration  # refused before anything is read
        rate = self.settings.fps if fps is None else fps
        part = {"start_s": start_s, "end_s": end_s, "max_frames": max_frames}
        read = self.request(video, question, fps=rate, **part, budget=budget, progress=progress)
        ask = functools.partial(self.respond, max_new_tokens=max_new_tokens)
        response, request, clip = self.respond_searching(ask, [read])[0]
        passes = None
        if verify == "full" and calibration is not None and not response.never:
            passes = self.ask_again(ask, [request], [response])[0]
        return self.concluded(response, question, clip, video, rate, passes)

    def respond_searching(
        self,
        respond: Callable[[list[Request]], list[Response]],
        read: Sequence[tuple[Request, Clip]],
    ) -> list[tuple[Response, Request, Clip]]:
        """Returns the response to each question as `answer` takes it, and what was read for it: where a long
        video shows something else than what is asked for, its search goes on.

        Args:
            respond: answers requests, as `respond`.
            read: what `request` returned.
        """
        said, exact = respond([request for request, _ in read]), self.settings.exact_names
        return [
            search_on(respond, request, clip, one, question_language(request.question), exact)
            for (request, clip), one in zip(read, said, strict=True)
        ]

    def ask_again(
        self,
        respond: Callable[[list[Request]], list[Response]],
        requests: Sequence[Request],
        responses: Sequence[Response],
    ) -> list[Answers]:
        """Returns the answers of two more passes to each request, see `hidden.ask_again`."""
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.backbone))
        return ask_again(respond, requests, responses, padded=parameters < _PROGRAMS_ARE_DEAR)

    def concluded(
        self,
        response: Response,
        question: str,
        clip: Clip,
        video: str | os.PathLike[str],
        rate: float,
        passes: Answers | None = None,
    ) -> Answer:
        """Returns the answer that a response to a question is.

        Args:
            clip, rate: the frames that were read for it, and of how many per second.
            video: the file, to be named.
            passes: what is answered with only its evidence and without it, see `hidden.ask_again`.
        """
        seen, language = self.observe(response, question, clip, passes), question_language(question)
        judged = verdict(seen, self.calibration, full=passes is not None)
        evidence, notes = evidence_of(seen, judged.claims, clip.size, rate)
        if response.never:  # the text rests on what is not asked for
            judged, evidence = absent(response.never), ()
        if not seen.finished:
            notes.append(Note("tokens", len(response.tokens)))
        said, reasoning = reasons.answer_and_reasoning(response.text)
        height, width = clip.size
        return Answer(
            question=question,
            text=plain_text(said, language),
            evidence=evidence,
            intervals=tuple(dict.fromkeys(grammar.parse(response.text).intervals)),
            confidence=judged.confidence,
            confidence_kind=judged.kind,
            reasons=tuple(reason.text(language) for reason in judged.reasons),
            bound=judged.bound,
            relevance=response.curve(),
            candidates=response.candidates,
            search=response.search,
            reasoning=reasoning,
            raw=self.processor.decode(response.tokens),
            video={
                "path": str(video),
                "size": [width, height],
                "duration_s": clip.duration_s,
                "fps": rate,
                "status": clip.status,
                "notes": [*clip.notes, *notes],
            },
            model=self.folder.name,
        )

    def request(
        self,
        video: str | os.PathLike[str],
        question: str,
        *,
        fps: float | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
        max_frames: int | None = None,
        task: str | None = None,
        search: bool = True,
        budget: float | None = None,
        progress: SearchProgress | None = None,
    ) -> tuple[Request, Clip]:
        """Returns a question about a video file, ready for `respond`, and the frames that were read.

        Args:
            fps: the rate at which the video is presented; the model's own by default.
            start_s, end_s: the part of the video that is shown, to its end by default; times stay those of
                the whole.
            max_frames: of the language stream, where that is fewer than the model's own number.
            task: chooses the system prompt, see `o3jax.prompts.templates.messages`.
            search: whether a video is searched that is longer than the model reads at a time; else it is read
                whole all the same, for questions that share its frames.
            budget: share of a long video's frames that may be decoded; 5 %, and at least 3,000, by default.
            progress: is told how far the search of a long video is.

        Raises:
            UserError: if the question is empty or the video cannot be read.
        """
        prompt = self.processor.prompt(question, self.settings.prompt_style, task)
        rate = self.settings.fps if fps is None else fps
        part = Wanted(rate, start_s=start_s, end_s=end_s)  # refuses what no rate and no part can be
        return read_request(self, video, Asked(question, prompt, part, max_frames, search, budget, progress))

    def respond(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Response]:
        """Returns the greedy response to each request, whole, with the evidence modules' estimates if any.

        Raises:
            UserError: if `max_new_tokens` is not positive.
        """
        return self._said(functools.partial(respond, steps=self.steps), requests, max_new_tokens)

    def respond_together(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Response]:
        """Returns what `respond` does, without estimates: what is about the same frames (one array) is
        encoded once, and prompts about them that begin alike are prefilled once.

        Raises:
            UserError: as `respond`.
        """
        return self._said(respond_together, requests, max_new_tokens)

    def observe(
        self, response: Response, question: str, clip: Clip, passes: Answers | None = None
    ) -> Observed:
        """Returns what was seen of a response being made: all that its confidence is taken from.

        Args:
            clip, passes: as for `concluded`.
        """
        tokens, duration_s = response.tokens, clip.duration_s
        finished = len(tokens) > 0 and int(tokens[-1]) in self.eos_ids
        faults = reasons.reasons(response.text, question, duration_s, len(tokens), finished)
        return observe(self.processor, question, response, duration_s, faults, finished, passes)

    def _said(
        self, generate: Callable[..., list[Response]], requests: Sequence[Request], max_new_tokens: int
    ) -> list[Response]:
        quoted = self.processor.tokenizer.quoted
        responses = generate(
            self.backbone,
            self.processor,
            [request.as_read(quoted) for request in requests],
            ending(self.generation, max_new_tokens),
            self.settings.box_step,
        )
        said = []
        for response, request in zip(responses, requests, strict=True):
            text = grammar.whole(response.text, grammar.begun(request.prompt))
            said.append(dataclasses.replace(response, text=text).of(request))
        return said


def ending(generation: Generation, max_new_tokens: int) -> Ending:
    """Returns where a model's texts end; UserError unless `max_new_tokens` is positive."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    return Ending(max_new_tokens, generation.eos_ids, generation.pad_id, generation.repetition_penalty)


def load(
    path: str | os.PathLike[str] = "o3-tiny",
    *,
    dtype: Any = None,
    check_finite: bool = True,
    progress: Progress | None = None,
) -> Model:
    """Returns the model of a folder: a Qwen3-VL from Hugging Face, or one that `export_hf` wrote.

    A LoRA adapter beside the weights is merged in.

    Args:
        path: a local folder, or the name of an embedded model (`o3-tiny`).
        dtype: of the weights. By default bfloat16 on accelerators; on a CPU as they are stored if that is
            bfloat16, else float32. A CPU computes in float32 all the same: bfloat16 halves the memory.
        check_finite: refuse weights that hold NaN or infinity; takes a second for every 3 GB.
        progress: is told how many bytes of how many have been read.

    Raises:
        UserError: if the folder is missing or no Qwen3-VL; the sentence says what is wrong.
    """
    folder = model_folder(path)
    config, settings, generation = config_from_hf(folder), read_settings(folder), read_generation(folder)
    cpu = jax.default_backend() == "cpu"
    if dtype is None:
        # The embedded models are small: there, speed is worth the memory.
        narrow = not cpu or (folder.parent != ASSETS and stored_dtypes(folder) == {"BF16"})
        dtype = jnp.bfloat16 if narrow else jnp.float32
    # A folder of bare weights has no tokenizer.
    processor = load_processor(folder) if folder_file(folder, "tokenizer.json") else None
    if processor is not None:
        check_processor(processor, config)
    backbone = load_weights(
        folder,
        config,
        dtype=dtype,
        compute_dtype=jnp.float32 if cpu else None,
        decoding=True,
        check_finite=check_finite,
        progress=progress,
    )
    model = Model(backbone, folder, settings, generation)
    if processor is not None:
        model.processor = processor
    return model


def export_hf(model: Model, folder: str | os.PathLike[str], *, dtype: Any = None) -> None:
    """Writes the model as a folder that transformers loads: weights, configuration, processor files.

    Evidence modules lie beside them in o3_evidence.safetensors and o3_config.json, which transformers
    does not read.

    Args:
        folder: must not exist, or be empty.
        dtype: of the stored weights; None keeps the parameters' and is bitwise the model.

    Raises:
        UserError: if the folder is not empty.
    """
    # A folder of bare weights has no tokenizer to carry over.
    processor = model.processor if folder_file(model.folder, "tokenizer.json") else None
    export_model(model.backbone, model.folder, Path(folder), processor, model.settings, dtype=dtype)

"""What a model says about the items of one video or a few: each is read and encoded once for all prompts of
like frames."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from data_pipelines.formats.benchmarks.item import VIDEO, Frames, Item, Prompt, PromptBuilder
from data_pipelines.formats.benchmarks.media import local
from data_pipelines.formats.benchmarks.videozerobench import thinned
from experiments.evaluation.benchmarks.frames import read_shown
from o3jax.api import Model, ending
from o3jax.errors import UserError
from o3jax.generate.sampler import greedy
from o3jax.hf.generation import read_generation
from o3jax.inference.respond import Request, Response, pad_inputs
from o3jax.prompts import templates
from o3jax.video import Clip, read_video

Record = dict[str, Any]
_TOGETHER = 8  # generations after one prefix at a time


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are made."""

    max_new_tokens: int | None = None  # None: as the prompt's published run, else 1024
    time_limit_s: float | None = None  # of one item
    blind: bool = False  # without the video: what the text alone gives away

    def limit(self, prompt: Prompt) -> int:
        """Returns where a response to a prompt is cut off."""
        return self.max_new_tokens or prompt.max_new_tokens or 1024


class Asked(NamedTuple):
    """An item with its prompts, and the rule of its frames where that is not the model's own."""

    item: Item
    prompts: Sequence[Prompt]
    frames: Frames | None = None


def answer_video(model: Model, asked: Sequence[Asked], decoding: Decoding) -> list[Record]:
    """Returns a record for each item about one video or a few; where something fails, each video is tried
    alone, and then each item."""
    try:
        with _time_limit(decoding.time_limit_s, len(asked)):
            return _answer(model, asked, decoding)
    except (UserError, TimeoutError, MemoryError, jax.errors.JaxRuntimeError) as error:
        if len(asked) > 1:
            parts = list(_by_video(asked).values())
            parts = parts if len(parts) > 1 else [[one] for one in asked]
            return [record for part in parts for record in answer_video(model, part, decoding)]
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return [{"id": asked[0].item.id, "error": reason}]


@contextlib.contextmanager
def _time_limit(seconds: float | None, items: int) -> Iterator[None]:
    """TimeoutError where the items take longer than so long each."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds * items)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _answer(model: Model, asked: Sequence[Asked], decoding: Decoding) -> list[Record]:
    ends = read_generation(model.folder).eos_ids
    records: list[Record] = [{"id": one.item.id, "texts": {}, "decoded": {}} for one in asked]

    def note(number: int, prompt: Prompt, response: Response) -> None:
        limit = decoding.limit(prompt)
        tokens = response.tokens[:limit]
        text = response.text if len(tokens) == len(response.tokens) else model.processor.decode(tokens)
        records[number]["texts"][prompt.part] = text
        records[number]["decoded"][prompt.part] = {
            "tokens": len(tokens),
            "finished": bool(len(tokens)) and int(tokens[-1]) in ends,
            "probability": round(float(response.probabilities[:limit].mean()), 6) if len(tokens) else 0.0,
        }

    if decoding.blind:
        for number, one in enumerate(asked):
            for prompt in one.prompts:
                note(number, prompt, _blind(model, prompt, decoding.limit(prompt)))
        return records
    videos = _by_video(asked)
    with contextlib.ExitStack() as opened:
        parts: list[list[tuple[int, Prompt, Request]]] = []
        for location, some in videos.items():
            path = opened.enter_context(local(location))
            parts += _parts(model, path, {id(one): n for n, one in enumerate(asked)}, some, records)
        for begin in range(0, len(parts), len(videos)):
            part = [one for some in parts[begin : begin + len(videos)] for one in some]
            limit = max(decoding.limit(prompt) for _, prompt, _ in part)
            requests = [request for *_, request in part]
            responses = model.respond_together(requests, max_new_tokens=limit)
            for (number, prompt, _), response in zip(part, responses, strict=True):
                note(number, prompt, response)
    return records


def _by_video(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    videos: dict[str, list[Asked]] = {}
    for one in asked:
        videos.setdefault(one.item.video, []).append(one)
    return videos


def _parts(
    model: Model, path: Path, numbers: dict[int, int], asked: Sequence[Asked], records: list[Record]
) -> list[list[tuple[int, Prompt, Request]]]:
    """Returns what is asked about one video, in parts that are generated at a time; notes its frames.

    Args:
        numbers: of the items in the records, by what is asked of each.
    """
    rule, question = asked[0].frames, asked[0].item.question
    base, clip = model.request(path, question, search=False, max_frames=2 if rule else None)
    if rule:
        base = read_shown(rule, base, path, model.processor.video_config)
    most = rule.most if rule else len(base.frames)
    height, width = clip.size
    about = {"size": [width, height], "duration_s": round(clip.duration_s, 3), "status": clip.status}
    wanted = [(one, prompt) for one in asked for prompt in one.prompts]
    parts = []
    for frames, some in _by_frames(wanted):
        seen = _with_frames(base, clip, path, most, *frames)
        seconds = [round(i / seen.metadata["fps"], 3) for i in seen.metadata["frames_indices"]]
        for begin in range(0, len(some), _TOGETHER):
            parts.append([])
            for one, prompt in some[begin : begin + _TOGETHER]:
                number = numbers[id(one)]
                parts[-1].append((number, prompt, asked_for(model, seen, one.item, prompt, clip)))
                if frames == ((), None):
                    records[number]["frames_s"] = seconds
                else:
                    records[number].setdefault("other_frames_s", {})[prompt.part] = seconds
    for one in asked:
        records[numbers[id(one)]]["video"] = about
    return parts


def _by_frames(wanted: Sequence[tuple[Asked, Prompt]]) -> list[tuple[tuple, list[tuple[Asked, Prompt]]]]:
    """Returns the prompts by what they must see beside the usual frames: (key times, picture)."""
    groups: dict[tuple, list[tuple[Asked, Prompt]]] = {}
    for one, prompt in wanted:
        groups.setdefault((prompt.key_times, prompt.image), []).append((one, prompt))
    return list(groups.items())


def _with_frames(
    base: Request, clip: Clip, path: Path, most: int, key_times: tuple[float, ...], picture: bytes | None
) -> Request:
    """Returns the request with the frames of some times among its own, so many at most, and with a picture
    after them."""
    fps, indices = base.metadata["fps"], list(base.metadata["frames_indices"])
    frames = dict(zip(map(int, indices), base.frames, strict=True))
    if key_times:
        times = sorted(t for t in key_times if 0 <= t <= clip.duration_s)
        more = read_video(path, times_s=times, size=base.frames.shape[1:3])
        keys = [int(np.floor(t * fps + 0.5)) for t in more.times_s]
        frames |= dict(zip(keys, more.frames, strict=True))
        kept = thinned(sorted(frames), set(keys), max(most, len(keys)))
        frames = {index: frames[index] for index in kept}
    if picture is not None:
        height, width = base.frames.shape[1:3]
        shown = _picture(picture, (width, height))
        last = max(frames)
        frames |= {last + 1: shown, last + 2: shown}  # a pair of its own
    if len(frames) == len(set(indices)) and not key_times:
        return base
    order = sorted(frames)
    metadata = {"fps": fps, "frames_indices": np.array(order)}
    return dataclasses.replace(base, frames=np.stack([frames[i] for i in order]), metadata=metadata)


def _picture(data: bytes, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return np.asarray(opened.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise UserError(f"the question's picture cannot be read ({error}): download the data again") from None


def asked_for(model: Model, seen: Request, item: Item, prompt: Prompt, clip: Clip) -> Request:
    """Returns a request about the frames of another one, with a prompt as the model reads it."""
    frames, seconds = len(seen.frames), clip.duration_s
    sampling = f"[Video sampling info]\n- Duration: {seconds:.3f} seconds\n- Sampled frames: {frames}"
    before, there, after = prompt.text.replace("{sampling}", f"{sampling}\n\n").partition(VIDEO)
    if not there:
        before, after = "", before
    if prompt.task is not None:
        said = templates.messages(after, model.settings.prompt_style, prompt.task)
    else:
        parts = [{"type": "video"}, {"type": "text", "text": after}]
        parts = [{"type": "text", "text": before}, *parts] if before else parts
        said = [*_system(prompt), {"role": "user", "content": parts}]
    # Proposals of the evidence modules are put behind the question, which stands in the prompt.
    question = prompt.question or item.question
    return dataclasses.replace(seen, question=question, prompt=model.processor.apply_chat_template(said))


def prompts_of(build: PromptBuilder, item: Item, model: Model) -> Sequence[Prompt]:
    """Returns the prompts of an item; what its files say in them is text, and no special token."""
    quoted = model.processor.tokenizer.quoted
    asked = {name: quoted(value) for name, value in item.tags.items() if "question" in name}
    plain = dataclasses.replace(
        item,
        question=quoted(item.question),
        options=tuple(map(quoted, item.options)),
        tags={**item.tags, **asked},
    )
    raw = {quoted(text): text for text in (item.question, *(item.tags[name] for name in asked))}
    return [
        dataclasses.replace(prompt, question=raw.get(prompt.question, prompt.question))
        for prompt in build(plain)
    ]


def _system(prompt: Prompt) -> list[dict[str, Any]]:
    if prompt.system is None:
        return []
    return [{"role": "system", "content": [{"type": "text", "text": prompt.system}]}]


def _blind(model: Model, prompt: Prompt, limit: int) -> Response:
    """Returns the response to a prompt's text alone."""
    text = prompt.text.replace("{sampling}", "").replace(VIDEO, "").strip()
    messages = [*_system(prompt), {"role": "user", "content": [{"type": "text", "text": text}]}]
    chat = model.processor.apply_chat_template(messages)
    batch = pad_inputs(model.processor(text=[chat], padding_side="right"), model.backbone)
    out = greedy(model.backbone, batch, ending(read_generation(model.folder), limit))
    length = int(out.length[0])
    tokens = np.asarray(out.tokens[0, :length])
    return Response(tokens, np.exp(np.asarray(out.logprobs[0, :length])), model.processor.decode(tokens))

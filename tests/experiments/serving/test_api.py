"""The official openai client against a live server."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import openai
import pytest
from PIL import Image

import o3jax
from tests.support.server import MODEL, question

DATA = "data:video/mp4;base64,"
FIRST, WHEN = "Which object appears first?", "When does the first object appear?"


@pytest.fixture(scope="module")
def client(server):
    return server.openai()


@pytest.fixture(scope="module")
def alone(clip):
    """The library's own answer, which the server's must be."""
    return o3jax.load().answer(clip, FIRST)


def ask(client, url, text=FIRST, **options):
    return client.chat.completions.create(model=MODEL, messages=question(url, text), **options)


def test_a_question_is_answered_as_by_the_library(client, uploaded, alone, clip):
    reply = ask(client, uploaded)
    (choice,) = reply.choices
    assert choice.message.content == alone.text and choice.finish_reason == "stop"
    o3, expected = choice.o3, json.loads(alone.to_json())
    assert o3["answer"] == alone.text and o3["raw"] == alone.raw and o3["reasons"] == expected["reasons"]
    assert o3["confidence"] == pytest.approx(alone.confidence, abs=1e-3)
    for mine, theirs in zip(o3["evidence"], expected["evidence"], strict=True):
        assert (mine["object"], mine["frame"], mine["box_px"]) == (
            theirs["object"],
            theirs["frame"],
            theirs["box_px"],
        )
        assert mine["time_s"] == pytest.approx(theirs["time_s"], abs=1e-3)
    assert o3["video"]["path"] == clip.name and o3["evidence"]
    assert reply.usage.completion_tokens > 10 and reply.usage.prompt_tokens > 100
    assert reply.usage.total_tokens == reply.usage.completion_tokens + reply.usage.prompt_tokens


def test_a_stream_says_the_same(client, uploaded, alone):
    chunks = list(ask(client, uploaded, stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in said) == alone.text
    assert len([c for c in said if getattr(c.delta, "reasoning_content", None)]) > 1  # as it comes
    assert said[-1].finish_reason == "stop" and said[-1].o3["answer"] == alone.text
    assert not any(choice.finish_reason for choice in said[:-1])
    assert chunks[-1].usage.completion_tokens > 10 and len({chunk.id for chunk in chunks}) == 1


def test_samples_differ_and_a_seed_repeats_them(client, uploaded):
    options = {"n": 3, "temperature": 1.5, "seed": 4}
    first, again = (ask(client, uploaded, **options) for _ in range(2))
    texts = [choice.o3["raw"] for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2] and len(set(texts)) > 1
    assert [choice.o3["raw"] for choice in again.choices] == texts
    streamed = {0: "", 1: "", 2: ""}
    for chunk in ask(client, uploaded, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == {choice.index: choice.message.content for choice in first.choices}


def test_a_text_is_cut_off(client, uploaded, alone):
    word = alone.reasoning.replace("<think>", "").split()[1]
    (choice,) = ask(client, uploaded, stop=[word, "never"]).choices
    assert choice.finish_reason == "stop" and word not in (choice.message.reasoning_content or "")
    assert choice.o3["needs_review"] and choice.message.content == ""
    (choice,) = ask(client, uploaded, max_tokens=5).choices
    assert choice.finish_reason == "length" and choice.o3["needs_review"]


def test_time_is_explicit(client, uploaded, clip):
    """The part that is shown; times stay those of the whole video, frames are counted at the rate asked."""
    part = {"fps": 10, "start_s": 2.0, "end_s": 4.0, "max_frames": 4}
    (choice,) = ask(client, uploaded, WHEN, extra_body=part).choices
    assert choice.o3["video"]["fps"] == 10 and choice.o3["part"]["start_s"] == 2.0
    times = [time for time, _ in choice.o3["relevance"]]
    assert 2.0 <= min(times) and max(times) < 4.0
    for item in choice.o3["evidence"]:
        assert item["frame"] == int(item["time_s"] * 10 + 0.5)


def test_every_way_to_name_a_video(client, uploaded, clip, media):
    (media / "sub").mkdir(exist_ok=True)
    (media / "sub" / "film.mp4").write_bytes(clip.read_bytes())
    data = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
    said = [ask(client, url).choices[0].o3["raw"] for url in (uploaded, "sub/film.mp4", data)]
    assert len(set(said)) == 1


def test_a_picture(client, tmp_path, server):
    path = tmp_path / "red.png"
    Image.new("RGB", (96, 64), "red").save(path)
    url = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    (choice,) = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=16
    ).choices
    assert choice.o3["video"]["size"] == [96, 64]
    report = server.http.get(choice.o3["report"])
    assert report.status_code == 200 and "data:video/mp4" in report.text


def test_text_alone(client):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And now? <|im_end|>"},
    ]
    reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    assert reply.choices[0].o3 is None and 0 < reply.usage.completion_tokens <= 8


def test_files(client, server, clip):
    file = client.files.create(file=("../../<b>.mp4", clip.read_bytes()), purpose="vision")
    assert file.bytes == clip.stat().st_size and file.filename == "<b>.mp4" and file.purpose == "vision"
    assert (file.o3["width"], file.o3["height"], file.o3["fps"]) == (128, 128, 25)
    assert file.o3["duration_s"] == pytest.approx(6.0)
    assert client.files.retrieve(file.id).id == file.id
    assert file.id in [one.id for one in client.files.list()]
    assert client.files.content(file.id).read() == clip.read_bytes()
    assert client.files.delete(file.id).deleted
    for use in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError):
            use(file.id)
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        ask(client, file.id)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "o3jax"


def test_the_report_and_the_review(client, server, uploaded, clip):
    o3 = ask(client, uploaded).choices[0].o3
    page = server.http.get(o3["report"])
    assert page.status_code == 200 and "<h1>Which object appears first?</h1>" in page.text
    review = {
        "verdict": "fixed",
        "answer": "the square",
        "evidence": [{"object": "x", "time_s": 1.0, "box": [0.1, 0.2, 0.3, 0.4], "interval": None}],
    }
    address = o3["report"].replace("report", "review")
    assert server.http.post(address, json=review).status_code == 200
    kept = server.folder / "work" / "answers" / f"{o3['id']}.review.json"
    assert json.loads(kept.read_text()) == review | {"note": ""}
    answer = json.loads(kept.with_name(f"{o3['id']}.json").read_text())
    assert answer["raw"] == o3["raw"] and Path(answer["video"]["path"]).read_bytes() == clip.read_bytes()
    wrong = server.http.post(address, json={"verdict": "maybe"})
    assert wrong.status_code == 422 and "verdict" in wrong.json()["error"]["message"]
    assert server.http.post("/v1/answers/answer-0/review", json=review).status_code == 404


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "'o3-tiny' is"),
        ({"temperature": -1}, openai.UnprocessableEntityError, "temperature"),
        ({"temperature": 2.5}, openai.UnprocessableEntityError, "temperature"),
        ({"top_p": 0}, openai.UnprocessableEntityError, "top_p"),
        ({"n": 0}, openai.UnprocessableEntityError, "n:"),
        ({"max_tokens": 0}, openai.UnprocessableEntityError, "max_tokens"),
        ({"stop": [""]}, openai.UnprocessableEntityError, "stop"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        ({"messages": question("file-0", "x")}, openai.NotFoundError, "file-0"),
        ({"messages": question("", "x")}, openai.UnprocessableEntityError, "url"),
        ({"messages": question(DATA + "!!!!", "x")}, openai.UnprocessableEntityError, "base64"),
        ({"messages": question(DATA + "AAAA", "x")}, openai.UnprocessableEntityError, "data URL"),
        ({"extra_body": {"fps": 0}}, openai.UnprocessableEntityError, "fps"),
        ({"extra_body": {"start_s": 7}}, openai.UnprocessableEntityError, "start_s is 7"),
        ({"extra_body": {"start_s": 3, "end_s": 2}}, openai.UnprocessableEntityError, "end_s"),
        ({"extra_body": {"max_frames": 0}}, openai.UnprocessableEntityError, "max_frames"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_named(client, uploaded, media, change, error, said, stream):
    options = {"model": MODEL, "messages": question(uploaded, FIRST), "stream": stream}
    with pytest.raises(error) as raised:
        client.chat.completions.create(**options | change)
    assert said in raised.value.message and str(media.parent) not in raised.value.message
    assert set(raised.value.body) == {"message", "type", "param", "code"}


def test_an_empty_question_and_two_videos(client, uploaded):
    with pytest.raises(openai.UnprocessableEntityError, match="the question is empty"):
        ask(client, uploaded, "  ")
    double = question(uploaded, FIRST) + question(uploaded, FIRST)
    with pytest.raises(openai.BadRequestError, match="one video or image, not 2"):
        client.chat.completions.create(model=MODEL, messages=double)


def test_what_cannot_be_uploaded(client, server):
    with pytest.raises(openai.UnprocessableEntityError, match="notes.txt is a text file"):
        client.files.create(file=("notes.txt", b"hello " * 100), purpose="vision")
    with pytest.raises(openai.UnprocessableEntityError, match="empty"):
        client.files.create(file=("nothing.mp4", b""), purpose="vision")
    with pytest.raises(openai.APIStatusError) as raised:
        client.files.create(file=("large.mp4", b"\0" * (2**20 + 2**17)), purpose="vision")
    assert raised.value.status_code == 413 and "larger" in raised.value.message
    assert not list((server.folder / "work" / "files").glob("*.part"))

"""Judges: a served model that answers, stalls, or talks nonsense; a rule; nobody. What was said is kept."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from experiments.evaluation.benchmarks import judge
from experiments.evaluation.benchmarks.judge import Question, Served, judged, read_score
from o3jax.errors import UserError
from o3jax.files import read_json
from tests.support.benchmarks import scripted
from tests.support.commands import run_command


class Server:
    """An OpenAI-compatible address; `say` gives (status, text) for the n-th request."""

    def __init__(self, say):
        self.asked: list[dict] = []
        self.at_once = self.most = 0
        server, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802 (the library's name)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.asked)
                    server.asked.append({**body, "key": self.headers.get("Authorization"), "path": self.path})
                status, text = say(number, body)
                value = text if isinstance(text, bytes) else json.dumps(text).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(value)))
                self.end_headers()
                self.wfile.write(value)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve(monkeypatch):
    servers = []
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)

    def start(say):
        servers.append(Server(say))
        monkeypatch.setenv("O3JAX_JUDGE_URL", servers[-1].url)
        monkeypatch.setenv("O3JAX_JUDGE_KEY", "secret")
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def reply(text):
    return 200, {"choices": [{"message": {"content": text}}]}


QUESTIONS = [Question(f"What is it? ({n})", "A cat.", f"a cat {n}") for n in range(12)]


def test_replies_are_asked_for_once_and_kept(serve, tmp_path):
    server = serve(lambda number, body: reply(" 2\n"))
    path = tmp_path / "judge.jsonl"
    found = judged(Served("m"), [*QUESTIONS, QUESTIONS[0]], path)
    assert [read_score(one) for one in found] == [2] * 13 and len(server.asked) == 12
    first = server.asked[0]
    assert first["key"] == "Bearer secret" and first["path"] == "/v1/chat/completions"
    assert (first["model"], first["temperature"]) == ("m", 0)
    assert first["messages"][0]["content"].startswith("\nAs an AI assistant, your task is to evaluate")
    assert first["messages"][1]["content"].endswith("\nYour response: ")
    with path.open("a") as file:
        file.write('{"key": "cut o')
    assert len(judged(Served("m"), QUESTIONS, path)) == 12 and len(server.asked) == 12
    judged(Served("m"), [Question("new", "a", "b")], path)
    assert len(judged(Served("m"), [Question("new", "a", "b")], path)) == 1 and len(server.asked) == 13
    judged(Served("other"), QUESTIONS[:2], path)  # another judge is asked anew
    assert len(server.asked) == 15


def test_a_judge_that_stumbles_is_asked_again(serve, tmp_path):
    odd = [(500, {}), (429, {}), (200, b"not json"), (200, {"choices": []}), reply("3")]
    server = serve(lambda number, body: odd[min(number, 4)])
    assert judged(Served("m"), QUESTIONS[:1], tmp_path / "judge.jsonl") == ["3"] and len(server.asked) == 5


@pytest.mark.parametrize(
    ("answer", "words"),
    [((500, {}), "does not answer"), ((200, b"<html>"), "does not answer"), ((401, {}), "refuses (401")],
)
def test_a_judge_that_does_not_answer_is_one_sentence_and_nothing_is_lost(serve, tmp_path, answer, words):
    serve(lambda number, body: reply("3") if "(3)" in body["messages"][1]["content"] else answer)
    path = tmp_path / "judge.jsonl"
    with pytest.raises(UserError, match="judge at http") as error:
        judged(Served("m"), QUESTIONS[3:6], path, workers=1)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert len(path.read_text().splitlines()) == 1


def test_nobody_listens(monkeypatch, tmp_path):
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("O3JAX_JUDGE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="does not answer"):
        judged(Served("m"), QUESTIONS[:1], tmp_path / "judge.jsonl")
    monkeypatch.setenv("O3JAX_JUDGE_URL", "file:///etc")
    with pytest.raises(UserError, match="needs the address in O3JAX_JUDGE_URL"):
        Served("m")


def test_a_budget_is_kept(serve, tmp_path):
    server = serve(lambda number, body: reply("1"))
    with pytest.raises(UserError, match="has 12 answers to read, and --judge_budget is 5"):
        judged(Served("m"), QUESTIONS, tmp_path / "judge.jsonl", budget=5)
    assert not server.asked


@pytest.mark.parametrize(
    ("text", "score"),
    [("3", 3), (" 0 ", 0), ("2.", -1), ("Score: 2", -1), ("", -1), ("7", -1), ("-1", -1), ("9" * 5000, -1)],
)
def test_scores_as_published(text, score):
    assert read_score(text) == score


def test_the_table_says_when_there_is_no_judge_or_none_to_trust(made, serve, monkeypatch, tmp_path, capfd):
    scripted(monkeypatch)
    given = ("--benchmark=vstar", f"--data_root={made / 'vstar'}", f"--workdir={tmp_path}")
    done = run_command(capfd, "evaluate", *given)
    result = read_json(tmp_path / "vstar" / "result.json")
    assert done.code == 0 and "need a judge" in done.out.replace("\n", " ")
    assert result["metrics"]["Acc"] is None and result["metrics"]["mLGM"] is None
    assert result["metrics"]["m_tIoU_c1"] == pytest.approx(1.0)
    assert result["metrics"]["joint_vqa_temp_c1"] is None and result["metrics"]["joint_temp_spat_c1"] == 1.0
    # The same answers, judged: numbers and nonsense in turn.
    serve(lambda number, body: reply("3" if number % 2 else "I would say three"))
    done = run_command(capfd, "evaluate", *given, "--judge=openai:m")
    result = read_json(tmp_path / "vstar" / "result.json")
    assert done.code == 0 and result["metrics"]["Acc"] == 0.5
    assert result["judge"] == {"name": "openai:m", "asked": 10, "unreadable": 5}
    assert {row["parsed"]["judge_reply"] for row in result["rows"]} == {"3", "I would say three"}
    assert "5 replies unreadable" in done.out.replace("\n", " ")

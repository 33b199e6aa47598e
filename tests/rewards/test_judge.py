"""The judge, against a real HTTP server on this machine that answers, fails, limits and lies."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RecipeError
from prefopt.rewards import RewardConfig, ScoreFailure, build_scorer
from prefopt.rewards.endpoint import is_local
from prefopt.rewards.judge import Judge
from prefopt.rewards.kinds import JudgeSection
from tests.rewards.attempts import said

Answer = tuple[int, dict[str, str], bytes]


def grade(text: str, tokens: int | None = 10) -> Answer:
    body: dict[str, Any] = {"choices": [{"message": {"content": text}}]}
    if tokens is not None:
        body["usage"] = {"total_tokens": tokens}
    return 200, {}, json.dumps(body).encode()


class Server:
    """Answers each call with what `answer` gives for its number and body; remembers what it was asked."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.asked.append(body)
                    server.keys.append(self.headers.get("Authorization"))
                    server.paths.append(self.path)
                    number = len(server.asked) - 1
                status, headers, content = answer(number, body)
                if status == 0:  # hangs up
                    self.connection.close()
                    return
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


Serve = Callable[[Callable[[int, dict[str, Any]], Answer]], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(answer: Callable[[int, dict[str, Any]], Answer]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def judge(server: Server, *, pauses: list[float] | None = None, **options: Any) -> Judge:
    section = {"kind": "judge", "enabled": True, "endpoint": server.address, "model": "m", "timeout": 5, **options}
    waits: list[float] = [] if pauses is None else pauses
    return Judge(JudgeSection.model_validate(section), pause=waits.append)


def reason(judge: Judge) -> str:
    [score] = judge.score([said("a")])
    assert isinstance(score, ScoreFailure)
    return score.reason


def test_a_grade_is_read_from_the_reply_and_equal_questions_are_asked_once(serve: Serve) -> None:
    server = serve(lambda _, body: grade("out of 10: 7" if "blue" in body["messages"][0]["content"] else "3.5"))
    found = judge(server)
    assert found.score([said("blue"), said("red"), said("blue")]) == [7.0, 3.5, 7.0]
    assert (found.low, found.high) == (1.0, 10.0)
    assert len(server.asked) == 2
    assert set(server.paths) == {"/v1/chat/completions"}
    assert server.keys == [None, None]
    assert server.asked[0]["temperature"] == 0.0
    assert (found.budget.calls, found.budget.tokens) == (2, 20)


def test_what_the_judge_is_asked_holds_prompt_and_answer_as_they_are(serve: Serve) -> None:
    server = serve(lambda *_: grade("7"))
    attempt = said(
        "see {prompt} and {low}", prompt=({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    )
    judge(server, instruction="{prompt}|{answer}|{low}-{high}").score([attempt])
    assert server.asked[0]["messages"][0]["content"] == "system: s\n\nuser: u|see {prompt} and {low}|1-10"


def test_calls_that_fail_for_the_moment_are_tried_again_and_wait_as_asked(serve: Serve) -> None:
    answers: list[Answer] = [
        (429, {"Retry-After": "7"}, b"slow down"),
        (503, {}, b""),
        (0, {}, b""),
        (200, {}, b"<html>not JSON</html>"),
        (200, {"Content-Length": "500"}, b'{"choices": ['),
        (200, {}, b'{"choices": []}'),
        grade("4"),
    ]
    server = serve(lambda number, _: answers[number])
    pauses: list[float] = []
    found = judge(server, retries=6, pauses=pauses, timeout=1)
    assert found.score([said("a")]) == [4.0]
    assert pauses == [7.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert found.budget.calls == 7


def test_a_wait_that_is_asked_for_is_cut_and_tries_end(serve: Serve) -> None:
    server = serve(lambda *_: (429, {"Retry-After": "86400"}, b"later"))
    pauses: list[float] = []
    assert "answered 429: later." in reason(judge(server, retries=2, pauses=pauses))
    assert pauses == [60.0, 60.0]
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_the_asking(serve: Serve, status: int) -> None:
    server = serve(lambda *_: (status, {}, b"no"))
    scores = judge(server, parallel=1).score([said(str(number)) for number in range(20)])
    assert all(isinstance(score, ScoreFailure) and f"answered {status}: no" in score.reason for score in scores)
    assert len(server.asked) == 1


def test_a_wrong_request_is_not_tried_again_and_is_one_completions_failure(serve: Serve) -> None:
    server = serve(lambda number, _: (400, {}, b"too long") if number == 0 else grade("5"))
    first, second = judge(server, parallel=1).score([said("a"), said("b")])
    assert isinstance(first, ScoreFailure)
    assert "answered 400: too long" in first.reason
    assert second == 5.0


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ("I like it", "its reply has no grade: 'I like it'"),
        ("", "its reply has no grade"),
        ("11", "its grade 11 is not between 1 and 10"),
        ("-3", "its grade -3 is not between"),
    ],
)
def test_a_reply_without_a_grade_in_range_is_a_failure(serve: Serve, reply: str, told: str) -> None:
    assert told in reason(judge(serve(lambda *_: grade(reply))))


@pytest.mark.parametrize("reply", ["8/10", "8 out of 10", "I say 8", "8"])
def test_a_grade_out_of_so_many_is_the_grade(serve: Serve, reply: str) -> None:
    assert judge(serve(lambda *_: grade(reply))).score([said("a")]) == [8.0]


def test_a_reply_without_text_that_counts_its_tokens_is_paid_for_and_not_asked_again(serve: Serve) -> None:
    empty = json.dumps({"choices": [{"message": {"content": None}}], "usage": {"total_tokens": 30}}).encode()
    server = serve(lambda *_: (200, {}, empty))
    found = judge(server)
    assert "no chat completion with a text" in reason(found)
    assert (found.budget.calls, found.budget.tokens) == (1, 30)


def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret\nsk-other")
    with pytest.raises(RecipeError, match="holds more than a key") as caught:
        judge(serve(lambda *_: grade("5")), key_variable="JUDGE_KEY")
    assert "sk-" not in str(caught.value)


def test_the_budget_of_calls_and_of_tokens_ends_the_asking(serve: Serve) -> None:
    server = serve(lambda *_: grade("5", tokens=40))
    attempts = [said(str(number)) for number in range(6)]
    by_calls = judge(server, max_calls=2, parallel=1).score(attempts)
    assert by_calls[:2] == [5.0, 5.0]
    assert "budget of 2 calls (max_calls) is spent" in str(by_calls[2])
    by_tokens = judge(server, max_total_tokens=100, parallel=1).score(attempts)
    assert by_tokens[:3] == [5.0, 5.0, 5.0]
    assert "budget of 100 tokens (max_total_tokens) is spent" in str(by_tokens[3])


def test_tokens_are_estimated_where_the_endpoint_counts_none(serve: Serve) -> None:
    found = judge(serve(lambda *_: grade("5", tokens=None)))
    found.score([said("a" * 4000)])
    assert found.budget.tokens > 1000


def test_a_server_that_is_silent_or_not_there_fails_at_the_time_limit(serve: Serve) -> None:
    ended = threading.Event()

    def silent(*_: Any) -> Answer:
        ended.wait(20)
        return grade("5")

    server = serve(silent)
    try:
        assert "TimeoutError" in reason(judge(server, timeout=0.2, retries=0))
    finally:
        ended.set()
    gone = serve(lambda *_: grade("5"))
    gone_judge = judge(gone, retries=0)
    gone.close()
    assert "can't be reached (ConnectionRefusedError" in reason(gone_judge)


def test_a_call_ends_at_its_time_limit_though_its_headers_come_in_drops() -> None:
    ended = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(200):  # every drop begins the time limit of a socket anew
                if ended.wait(0.05):
                    return
                connection.sendall(b"x")
            content = grade("5")[2]
            connection.sendall(b"\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))

    thread = threading.Thread(target=drip)
    thread.start()
    section = {"kind": "judge", "enabled": True, "model": "m", "timeout": 0.3, "retries": 0}
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    try:
        assert "took longer than 0.3 seconds" in reason(Judge(JudgeSection(**section, endpoint=address)))
    finally:
        ended.set()
        thread.join()
        listening.close()


def test_an_endpoint_on_this_machine_is_not_called_through_a_proxy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = serve(lambda *_: grade("1")), serve(lambda *_: grade("5"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy.address.removesuffix("/v1"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert judge(server).score([said("a")]) == [5.0]
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("address", "local"),
    [("http://localhost:8/v1", True), ("http://127.3.2.1/v1", True), ("http://[::1]:8/v1", True),
     ("http://api.localhost/v1", True), ("http://10.0.0.1/v1", False), ("http://localhost.example.com/v1", False)],
)  # fmt: skip
def test_what_is_an_address_of_this_machine(address: str, local: bool) -> None:
    assert is_local(address) == local


def test_the_budget_goes_on_where_a_process_before_left_it(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda *_: grade("5", tokens=40))
    section = {"kind": "judge", "enabled": True, "endpoint": server.address, "model": "m", "parallel": 1}

    def spend(count: int, **budget: int) -> tuple[list[Any], dict[str, dict[str, int]]]:
        scorer = build_scorer(RewardConfig.model_validate(section | budget), tmp_path / "ledgers")
        return scorer.score([said(str(number)) for number in range(count)]), scorer.spent

    assert spend(2, max_calls=3) == ([5.0, 5.0], {"judge": {"calls": 2, "tokens": 80}})
    [ledger] = (tmp_path / "ledgers").iterdir()
    ledger.write_bytes(ledger.read_bytes() + b'\n{"tok')  # torn by a kill
    scores, spent = spend(2, max_calls=3)
    assert scores[0] == 5.0
    assert "budget of 3 calls (max_calls) is spent" in str(scores[1])
    assert spent == {"judge": {"calls": 3, "tokens": 120}}
    assert "budget of 110 tokens" in str(spend(1, max_calls=9, max_total_tokens=110)[0][0])
    assert len(server.asked) == 3


def test_a_redirect_is_not_followed(serve: Serve) -> None:
    other = serve(lambda *_: grade("5"))
    server = serve(lambda *_: (307, {"Location": f"{other.address}/chat/completions"}, b""))
    assert "answered 307" in reason(judge(server, retries=0))
    assert other.asked == []


def test_the_key_comes_from_the_environment_and_is_in_no_message(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    server = serve(lambda *_: (400, {}, b"bad key sk-secret"))
    found = judge(server, key_variable="JUDGE_KEY")
    told = reason(found)
    assert server.keys == ["Bearer sk-secret"]
    assert "bad key <key>" in told
    config = RewardConfig.model_validate(
        {"kind": "judge", "enabled": True, "endpoint": server.address, "model": "m", "key_variable": "JUDGE_KEY"}
    )
    assert "sk-secret" not in told + repr(found.__dict__) + config.model_dump_json()
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(RecipeError, match="there is no environment variable of that name"):
        judge(server, key_variable="JUDGE_KEY")

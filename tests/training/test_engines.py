"""Judging in one pass says what generating says, and a server's answers come back in the order of the prompts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import ROOT
from training.engines import ServerEngine, TransformersEngine, load_subject
from training.prompts import notes_prompt, qa_prompt, stream_line, stream_question
from training.scoring import as_chat


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(load_subject(ROOT / "src" / "kea" / "models" / "embedded", sink_token=False))


def test_one_pass_agrees_with_generation(engine: TransformersEngine) -> None:
    passages = ["Tarn Osk lives in Velford.", "Mira Dal is the ruler of Gomstad."]
    prompts = [
        f"{qa_prompt(passages, 'Where does Tarn Osk live?')} ",
        as_chat(qa_prompt(passages, "Who rules Gomstad?")),
        f"{notes_prompt('Tarn Osk was seen in Velford.')} ",
        as_chat(f"{stream_line(1, 42)}\n{stream_line(2, 97)}\n{stream_question(1)}"),
    ]
    answers = engine.complete(prompts, limit=40)
    assert engine.answers_exactly(prompts, answers) == [True] * len(prompts)
    assert engine.answers_exactly(prompts, [f"{answer}x" for answer in answers]) == [False] * len(prompts)


class Upper(BaseHTTPRequestHandler):
    """A completions server that answers every prompt with its upper case, last one first."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "upper"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choices = [{"index": i, "text": prompt.upper()} for i, prompt in enumerate(body["prompt"])]
        self._answer({"choices": choices[::-1]})

    def _answer(self, value: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upper)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_answers_in_the_order_of_the_prompts(server_url: str) -> None:
    engine = ServerEngine(server_url)
    assert engine.complete(["a", "b", "c"], limit=10) == ["A", "B", "C"]
    assert engine.answers_exactly(["a", "b"], ["A", "x"]) == [True, False]

"""`kea complete` and `kea chat`: on a server, on an engine of their own, and the conversation that a chat keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kea.cli.app import app
from kea.cli.chat import Conversation
from kea.cli.complete import _write
from kea.cli.options import SamplingOptions
from kea.client.connection import Connection
from kea.program.output import parse_output
from kea.types import GenerateOptions
from tests.cli.support import Served, fake_transport, kea, start
from tests.fakes.engine import FakeEngine
from tests.server.support import ChatTokenizer

STORY = ", there was a little girl"


def test_a_completion_in_this_process(stories260k: Path) -> None:
    result = kea("complete", "Once upon a time", str(stories260k), "--max-tokens", "12", "--temperature", "0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(STORY)
    assert result.stderr == "Loading stories260k\n"


def test_a_completion_on_a_server_with_the_prompt_from_stdin(served: Served) -> None:
    arguments = ("--url", served.url, "--max-tokens", "12", "--temperature", "0", "--stop", " girl")
    result = kea("complete", "-", *arguments, stdin="Once upon a time")
    assert (result.returncode, result.stdout) == (0, ", there was a little\n")


def test_a_completion_that_breaks_off_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces(*written: str) -> Iterator[str]:
        yield from written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _write(pieces("Once", " upon"))
    with pytest.raises(KeyboardInterrupt):
        _write(pieces())
    assert capsys.readouterr().out == "Once upon\n"


def test_a_reader_that_goes_away_ends_the_completion_quietly(served: Served) -> None:
    with start(
        "complete", "Once upon a time", "--url", served.url, "--max-tokens", "400", "--temperature", "0"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5)
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""


def test_a_placeholder_in_the_prompt_is_text(served: Served) -> None:
    result = kea("complete", "Once {{upon}} a time", "--url", served.url, "--max-tokens", "4")
    assert result.returncode == 0, result.stderr


def test_what_does_not_fit_is_wrong_input(served: Served) -> None:
    result = kea("complete", "Once", "--url", served.url, "--max-tokens", "10k")
    assert result.returncode == 2
    assert "10000" in result.stderr
    assert "512" in result.stderr


def test_a_model_without_a_chat_template_cannot_chat(served: Served) -> None:
    result = kea("chat", "--url", served.url, stdin="hello\n")
    assert result.returncode == 2
    assert "no chat template" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_chat_from_a_pipe(embedded_model: Path) -> None:
    result = kea(
        "chat",
        "--temperature",
        "0",
        stdin="Question: Where does Tarn Osk live?\nAnswer:\n/nope\n/reset\n/exit\nnot read\n",
    )
    assert result.returncode == 0, result.stderr
    assert "The embedded model is a test instrument" in result.stderr
    assert "There is no command /nope." in result.stderr
    assert "The conversation is forgotten." in result.stderr
    assert len([line for line in result.stdout.splitlines() if line]) == 2


def test_a_chat_tells_its_model_and_takes_messages_of_several_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(lambda prompt, options: "yes", tokenizer=ChatTokenizer())
    lines = ["one \\", "two", '"""three', "", '  four"""', '"""five"""', "/help", '"""six', "never ended"]
    monkeypatch.setattr("kea.cli.chat.create_transport", lambda target: fake_transport(engine))
    result = CliRunner().invoke(app, ["chat"], input="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert "You talk to kea-embedded." in result.output
    asked = ["one \ntwo", "three\n\n  four", "five", "six\nnever ended"]
    assert [prompt.count("yes") for prompt in engine.record.prompts] == [0, 1, 2, 3]
    for prompt, question in zip(engine.record.prompts, asked, strict=True):
        assert question in prompt


def test_a_chat_with_a_server_tells_the_servers_model(served: Served) -> None:
    result = kea("chat", "--url", served.url, stdin="/exit\n")
    assert result.returncode == 0, result.stderr
    assert "You talk to stories." in result.stderr


def test_the_embedded_model_is_sampled_unless_told_otherwise() -> None:
    """Greedily it repeats itself without an end."""
    assert SamplingOptions().to_settings(is_embedded=True) == {"temperature": 0.7, "top_p": 0.9}
    assert SamplingOptions(temperature=0.0).to_settings(is_embedded=True) == {"temperature": 0.0, "top_p": 0.9}
    assert SamplingOptions(stop=["a"]).to_settings(is_embedded=False) == {"stop": ["a"]}


def test_a_conversation_grows_by_turns_and_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(prompt: str, options: GenerateOptions) -> str:
        return f"answer {prompt.count('answer') + 1}"

    engine = FakeEngine(answer, tokenizer=ChatTokenizer())
    conversation = Conversation(parse_output({}), "Be {{brief}}.")
    with Connection(fake_transport(engine)) as connection, connection.session() as session:
        conversation.ask(session, "one?")
        conversation.ask(session, "two?")
        assert conversation.turns == [
            ("user", "one?"),
            ("assistant", "answer 1"),
            ("user", "two?"),
            ("assistant", "answer 2"),
        ]
        assert all("Be {{brief}}." in prompt for prompt in engine.record.prompts)
        conversation.begin_with("")
        conversation.ask(session, "three?")
    assert "one?" not in engine.record.prompts[-1]
    assert "Be" not in engine.record.prompts[-1]
    assert capsys.readouterr().out == "answer 1\nanswer 2\nanswer 1\n"


def test_what_a_model_writes_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(lambda prompt, options: "a\x1b[31mb", tokenizer=ChatTokenizer())
    conversation = Conversation(parse_output({}))
    with Connection(fake_transport(engine)) as connection, connection.session() as session:
        assert conversation.ask(session, "?") == "a\x1b[31mb"
    assert capsys.readouterr().out == "a[31mb\n"

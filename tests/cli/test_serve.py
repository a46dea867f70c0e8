"""`kea serve` as a process: ready, used by the official client, ended by signals, and nothing left of it."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from openai import APIError, AuthenticationError, OpenAI

from tests.cli.support import Served, children_of, is_running, kea, serve, start

KEY = "open-sesame-1"
# Streams of many outputs, which are not over before a signal is looked at.
SLOWLY = ("--max-burst-ms", "0", "--max-num-seqs", "4")
LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


def test_the_line_of_json(served: Served) -> None:
    assert served.ready == {
        "host": "127.0.0.1",
        "port": served.ready["port"],
        "url": f"http://127.0.0.1:{served.ready['port']}",
        "model": "stories",
        "pid": served.process.pid,
    }


def test_the_official_client_is_answered(served: Served) -> None:
    client = OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["stories"]
    answer = client.completions.create(model="stories", prompt="Once upon a time", max_tokens=12, temperature=0)
    assert answer.choices[0].text.startswith(", there was a little girl")


def test_lines_for_people_keys_functions_and_an_end_by_sigint(stories260k: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def shout(text):\n    return text.upper()\n")
    arguments = (str(stories260k), "--kv-memory", "8MiB", "--max-model-len", "256", "--functions", "own.py")
    with serve(*arguments, cwd=tmp_path, KEA_API_KEY=f"{KEY} another-key-2") as server:
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
        assert OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0).models.list().data
        assert server.interrupt() == 0
        assert server.process.stderr is not None
        said = server.process.stderr.read()
    assert f"serves stories260k at {server.url}" in said
    assert "context 256 tokens" in said
    assert "2 API keys" in said
    assert said.splitlines()[-2:] == ["Shutting down.", "Stopped."]
    assert KEY not in said
    assert "Traceback" not in said


def test_guessed_tokens_change_nothing_and_are_counted(stories260k: Path) -> None:
    prompt = "Tom had a big red ball. Lily had a red box. " * 3
    guessing = ("--num-speculative-tokens", "6", "--prompt-lookup-min", "1", "--tpot-objective-ms", "1000")
    with serve(str(stories260k), "--kv-memory", "8MiB", *guessing) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        texts = [
            client.completions.create(
                model="stories260k",
                prompt=prompt,
                max_tokens=40,
                temperature=0,
                extra_body={"speculative_config": {"num_speculative_tokens": number}},
            )
            .choices[0]
            .text
            for number in (0, 8)
        ]
        by_default = client.completions.create(model="stories260k", prompt=prompt, max_tokens=40, temperature=0)
        metrics = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    assert texts == [by_default.choices[0].text] * 2
    lines = [line for line in metrics.splitlines() if line.startswith("kea:spec_decode")]
    counts = {line.split("{")[0]: float(line.split()[-1]) for line in lines}
    assert 0 < counts["kea:spec_decode_num_accepted_tokens_total"] <= counts["kea:spec_decode_num_draft_tokens_total"]


@LINUX
def test_a_supervisors_signal_to_all_lets_a_stream_end(stories260k: Path) -> None:
    with serve(str(stories260k), "--kv-memory", "8MiB", "--shutdown-grace-s", "60", *SLOWLY) as server:
        children = children_of(server.process.pid)
        assert children
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        options = {"ignore_eos": True, "n": 8}
        stream = client.completions.create(
            model="stories260k", prompt="Once", max_tokens=400, stream=True, extra_body=options
        )
        next(stream)
        os.killpg(server.process.pid, signal.SIGTERM)
        reasons = [chunk.choices[0].finish_reason for chunk in stream]
        assert reasons[-1] == "length"
        assert server.process.wait(60) == 0
        assert [pid for pid in children if is_running(pid)] == []
        assert server.process.stderr is not None
        said = server.process.stderr.read().splitlines()
    assert said[-2:] == [
        "Shutting down: waiting up to 60 s for 1 request; Ctrl-C again ends them now.",
        "Stopped.",
    ]


def test_a_second_ctrl_c_ends_streams_with_an_error_and_says_so(stories260k: Path) -> None:
    with serve(str(stories260k), "--kv-memory", "8MiB", *SLOWLY) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model="stories260k", prompt="Once", max_tokens=450, stream=True, extra_body={"ignore_eos": True, "n": 32}
        )
        next(stream)
        for _ in range(2):
            os.killpg(server.process.pid, signal.SIGINT)
            time.sleep(0.05)  # two signals that are not taken yet are one
        with pytest.raises(APIError, match="shut down before"):
            list(stream)
        assert server.process.wait(60) == 0
        assert server.process.stderr is not None
        said = server.process.stderr.read().splitlines()
    assert said[-2:] == ["Shutting down: ending 1 request now.", "Stopped."]
    assert not any("Traceback" in line for line in said)


@LINUX
def test_a_killed_server_leaves_no_engine(stories260k: Path) -> None:
    with serve(str(stories260k), "--kv-memory", "8MiB") as server:
        children = children_of(server.process.pid)
        server.process.kill()
        deadline_s = time.monotonic() + 30
        while any(is_running(pid) for pid in children) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert [pid for pid in children if is_running(pid)] == []


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_loads_ends_it_at_once(number: signal.Signals, stories260k: Path) -> None:
    with start("serve", str(stories260k), "--port", "0") as process:
        deadline_s = time.monotonic() + 60
        while not (children := children_of(process.pid)) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        began_s = time.monotonic()
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - began_s < 2  # imports alone, which were waited for, take longer
        assert process.returncode == 130, said
        assert said.splitlines()[-1] == "Interrupted."
        assert "Traceback" not in said
        assert [pid for pid in children if is_running(pid)] == []


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(served: Served, stories260k: Path) -> None:
    result = kea("serve", str(stories260k), "--port", str(served.ready["port"]))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: Cannot listen on 127.0.0.1:{served.ready['port']}")


TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


def test_a_template_a_default_sampling_and_an_engine_that_tells_its_settings(stories260k: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    recommended = {"temperature": 0.6, "top_k": 20, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(recommended))
    model = (str(stories260k), "--kv-memory", "8MiB", "--quantize", "int8")
    chat = ("--chat-template", "chat.jinja", "--generation-config", ".", "--allowed-origins", "https://app.example")
    decoding = ("--num-speculative-tokens", "6", "--tpot-objective-ms", "50.5")
    with serve(*model, *chat, *decoding, cwd=tmp_path) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Once upon a time"}]
        answer = client.chat.completions.create(model="stories260k", messages=messages, max_tokens=8, temperature=0)  # type: ignore[arg-type]
        assert answer.choices[0].message.content
        response = client.responses.create(model="stories260k", input="Once", max_output_tokens=4)
        assert (response.temperature, response.top_p) == (0.6, 1)
        request = urllib.request.Request(f"{server.url}/health", headers={"Origin": "https://app.example"})
        with urllib.request.urlopen(request) as health:
            assert health.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert server.interrupt() == 0
        assert server.process.stderr is not None
        said = server.process.stderr.read()
    assert "temperature 0.6, top_k 20 where a request of OpenAI's form names none" in said
    assert "float32 on cpu, weights in int8" in said
    assert "up to 6 tokens guessed by prompt lookup; steps that decode stay below 50.5 ms" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--quantize", "int4"), "quantize is 'int4'; it must be one of int8"),
        (("--device", "gpu"), "device is 'gpu'; it must be auto, cpu, cuda or cuda:N"),
        (("--max-burst-ms", "-1"), "max-burst-ms is '-1'; it must be a number of milliseconds above 0, or 0"),
        (("--num-threads", "100000"), "num_threads is 100000; it must be at least 1 and at most"),
        (("--tpot-objective-ms", "0"), "tpot-objective-ms is '0'; it must be a number of milliseconds above 0"),
        (("--chat-template", "{% if %}"), "The chat template cannot be parsed"),
        (("--chat-template", "not-here.jinja"), "chat-template is 'not-here.jinja', which cannot be read"),
        (("--generation-config", "vllm"), "generation-config is 'vllm'; it must be auto, none, or a directory"),
        (("--allowed-origins", "app.example"), "allowed_origins has 'app.example'"),
    ],
)
def test_what_cannot_be_had_is_told_before_anything_is_loaded(
    arguments: tuple[str, ...], told: str, stories260k: Path
) -> None:
    result = kea("serve", str(stories260k), "--port", "0", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {told}"), result.stderr
    assert "Loading" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--max-model-len", "9999"), "max_model_len is 9999; it must be at least 1 and at most 512"),
        (("--kv-memory", "1KiB"), "A KV memory of 1,024 bytes holds 0 tokens"),
    ],
)
def test_what_the_models_config_forbids_is_told_without_its_weights(
    arguments: tuple[str, ...], told: str, stories260k: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((stories260k / "config.json").read_bytes())
    result = kea("serve", str(tmp_path), "--port", "0", *arguments)
    assert result.returncode == 2
    assert f"error: {told}" in result.stderr, result.stderr


@pytest.mark.parametrize("debug", ["", "1"])
def test_verbose_logs_what_kea_does_and_others_only_where_debugging_is_asked_for(
    debug: str, stories260k: Path, tmp_path: Path
) -> None:
    (tmp_path / "speaks.py").write_text(
        "import logging\nlogging.getLogger('somebody').info('hello from somebody')\ndef f(x):\n    return x\n"
    )
    own = ("--kv-memory", "8MiB", "--functions", "speaks.py", "--port", "0", "--json-ready")
    with start("--verbose", "serve", str(stories260k), *own, cwd=tmp_path, KEA_DEBUG=debug) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        urllib.request.urlopen(f"{ready['url']}/health").read()
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert "INFO kea.server.run: serving stories260k at" in said
    assert "GET /health: 200 in" in said
    assert ("hello from somebody" in said) == bool(debug)
    if not debug:
        assert "LlamaConfig" not in said, "the config is transformers' to tell"

"""How a command ends: its exit status and its one sentence, for every way in which it can go wrong before it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kea import __version__
from kea.errors import InvalidRequest
from tests.cli.support import TIMEOUT_S, environment, kea, start


def test_the_version() -> None:
    result = kea("--version")
    assert (result.returncode, result.stdout) == (0, f"kea {__version__}\n")


def test_the_package_is_the_command() -> None:
    command = [sys.executable, "-m", "kea", "models", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage: python -m kea models" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--kv-memory", "lots"), "error: kv-memory is 'lots'; it must be a number of bytes"),
        (("serve", "--max-model-len", "many"), "error: max-model-len is 'many'"),
        (("serve", "--max-body-bytes", "-1"), "error: max-body-bytes is '-1'"),
        (("serve", "--enable-lora"), "error: --enable-lora: Kea does not serve LoRA adapters."),
        (
            ("serve", "--tensor-parallel-size", "2"),
            "error: --tensor-parallel-size is 2: Kea runs a model on one device.",
        ),
        (("serve", "some/model", "--host", "0.0.0.0"), "error: Refusing to listen on '0.0.0.0' without API keys"),
        (("serve", "some/model", "--port", "70000"), "error: port is 70000; it must be at least 0 and at most 65535."),
        (
            ("serve", "some/model", "--api-key", "short"),
            "error: An API key of 5 characters is unusable: it needs 8 ASCII",
        ),
        (
            ("serve", "some/model", "--dtype", "int3"),
            "error: dtype is 'int3'; allowed: auto, float32, bfloat16, float16.",
        ),
        (
            ("serve", "some/model", "--tool-call-parser", "qwen99"),
            "error: tool_call_parser is 'qwen99'; allowed: auto, none, harmony, hermes, mistral, llama3.",
        ),
        (
            ("complete", "a", "--max-model-len", "9999"),
            "error: max_model_len is 9999; it must be at least 1 and at most 1024.",
        ),
        (("complete", "a", "--kv-memory", "1KiB"), "error: A KV memory of 1,024 bytes holds 0 tokens"),
        (("serve", "some/model", "--functions", "absent.py"), "error: There is no file absent.py."),
        (("complete", ""), "error: The prompt is empty"),
        (("complete", "a", "model", "--url", "http://h"), "error: A model and --url are both given"),
        (("complete", "a", "model", "--temperature", "-1"), "temperature is -1"),
        (("complete", "a", "--url", "h:1"), "error: url is 'h:1'; it must begin with http:// or https://."),
        (("complete", "a", "./absent"), "error: There is no model directory ./absent."),
        (("serve", "/absent"), "error: There is no model directory /absent."),
        (("run", "absent.py"), "error: There is no file absent.py."),
        (("nope",), "No such command 'nope'"),
        (("serve", "--nope"), "No such option"),
        (("complete",), "Missing argument"),
    ],
)
def test_wrong_input_is_a_sentence_and_status_2(arguments: tuple[str, ...], said: str) -> None:
    result = kea(*arguments)
    assert result.returncode == 2, result.stderr
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_key_is_not_repeated() -> None:
    assert "sesame" not in kea("serve", "some/model", "--api-key", "sesame").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("chat", "--url", "http://127.0.0.1:9"), "does not answer"),
        (("complete", "a", "--url", "http://127.0.0.1:9"), "does not answer"),
    ],
)
def test_what_fails_is_a_sentence_and_status_1(arguments: tuple[str, ...], said: str) -> None:
    result = kea(*arguments, stdin="hello\n")
    assert result.returncode == 1, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_hub_that_does_not_answer_is_told_at_once() -> None:
    result = kea("complete", "a", "some/model", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1
    loading, error = result.stderr.splitlines()  # no line of the hub's client, which tries six times
    assert loading == "Loading some/model"
    assert error.startswith(
        "error: There is no directory some/model here and no copy of it in the cache, and the hub at"
    )


def test_debug_adds_the_traceback() -> None:
    result = kea("run", "absent.py", KEA_DEBUG="1")
    assert result.returncode == 2
    assert InvalidRequest.__name__ in result.stderr
    assert "error: There is no file absent.py." in result.stderr


def test_an_application_with_an_error_shows_its_own_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import absent_module\n")
    result = kea("run", str(tmp_path / "broken.py"))
    assert result.returncode == 1
    assert "ModuleNotFoundError: No module named 'absent_module'" in result.stderr
    assert "entry.py" not in result.stderr


@pytest.mark.parametrize("after_s", [0.1, 0.3, 0.6])
def test_ctrl_c_while_it_starts_is_clean(after_s: float) -> None:
    is_ours = False
    while not is_ours:
        with start("chat", "--url", "http://127.0.0.1:9", "--system", "x") as process:
            time.sleep(after_s)
            os.killpg(process.pid, signal.SIGINT)
            _, said = process.communicate(timeout=30)
        # The interpreter's own start, which is long on a busy machine, takes no program's word for it.
        is_ours = not ("Fatal Python error" in said or ('"<string>", line 1, in' in said and "entry.py" not in said))
        after_s *= 2
    # It may have ended before: empty input (0), no server there (1), in the middle of Python's own end (-2).
    assert process.returncode in {130, 0, 1, -signal.SIGINT}, said
    assert "Traceback" not in said


def test_ctrl_c_does_not_wait_for_a_model_that_loads(tmp_path: Path) -> None:
    with start("complete", "Once", HOME=str(tmp_path)) as process:  # where nothing is compiled or noted yet
        assert process.stderr is not None
        assert process.stderr.readline() == "Loading kea-embedded\n"
        time.sleep(1.0)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
        took_s = time.monotonic() - began
    assert (process.returncode, said) == (130, "Interrupted.\n")
    assert took_s < 5  # loading takes ten seconds and more, and an ordinary exit waited for it

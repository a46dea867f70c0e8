"""What templates write chooses the parsers: templates in the manner of the common families, through the real
tokenizer.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kea.errors import InvalidRequest
from kea.server.app import create_app
from kea.server.config import ServerConfig
from kea.server.parsers.choose import CALL_FORMATS
from kea.server.parsers.probe import TemplateFacts, probe_template
from kea.server.state import AppState
from tests.fakes.engine import FakeEngine

if TYPE_CHECKING:
    from kea.server.served import Tokenizer

TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
END = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{% for m in messages %}<|start|>{{ m.role }}<|channel|>final<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TEMPLATES = {
    "plain": (TURN + END, "", ""),
    "qwen": (
        "{% if tools %}<|system|>{{ tools | tojson }}{% endif %}"
        + TURN
        + "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        + '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
        + "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}"
        + END
        + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
        "hermes",
        "<think>",
    ),
    "llama3": (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        + TURN
        + '{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", "parameters": '
        + "{{ c.function.arguments | tojson }}}{% endfor %}"
        + END,
        "llama3",
        "",
    ),
    "mistral": (
        "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
        + TURN
        + "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}"
        + '[TOOL_CALLS][{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}]'
        + "{% endfor %}"
        + END,
        "mistral",
        "",
    ),
    "deepseek": (TURN + END + "{% if add_generation_prompt %}<think>\n{% endif %}", "", "<think>"),
    "harmony": (HARMONY, "harmony", "harmony"),
}


def load(model: Path, folder: Path, template: str) -> Tokenizer:
    """Load the small model's tokenizer with another chat template."""
    from kea.models import Tokenizer

    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"), copy_function=shutil.copyfile)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_parsers_follow_the_template(stories260k: Path, tmp_path: Path, name: str) -> None:
    template, calls, reasoning = TEMPLATES[name]
    tokenizer = load(stories260k, tmp_path / "model", template)
    app = create_app(ServerConfig(port=0), FakeEngine(), tokenizer)
    state: AppState = app.state.kea
    chosen = state.model.output_format
    if calls == "harmony":
        assert chosen.is_harmony
    else:
        assert chosen.calls is CALL_FORMATS.get(calls)
        assert (chosen.reasoning.begin if chosen.reasoning else "") == reasoning
    assert ("reasoning_effort" in state.model.reads) == (name == "harmony")
    assert ("enable_thinking" in state.model.reads) == (name == "qwen")


def test_a_template_that_refuses_everything_has_no_parsers() -> None:
    def render(*_: object, **__: object) -> str:
        raise InvalidRequest("no")

    assert probe_template(render) == TemplateFacts()


async def test_an_output_that_begins_inside_the_reasoning_is_seen(stories260k: Path, tmp_path: Path) -> None:
    tokenizer = load(stories260k, tmp_path / "model", TEMPLATES["deepseek"][0])
    model = create_app(ServerConfig(port=0), FakeEngine(), tokenizer).state.kea.model
    token_ids = await model.encode_chat([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    end = tokenizer.decode(token_ids[-16:], skip_special=False)
    parser = model.output_format.create_parser(end, with_tools=False)
    read = [*parser.feed("hm</think>x"), *parser.finish()]
    assert [(type(delta).__name__, delta.text) for delta in read] == [("Reasoning", "hm"), ("Content", "x")]

"""What crosses to another process comes back as it was, and most of it as plain tuples."""

from __future__ import annotations

import pickle
from dataclasses import replace

from kea.cluster.base import Died, Loading, Message
from kea.cluster.packing import pack, unpack
from kea.engine.base import Generated, GenerationFailed
from kea.errors import EngineDied, EngineFault
from kea.types import Chunk, Finish, FinishReason, TokenLogprob, Usage

USAGE = Usage(1, 0, 1, 0.0, 0.0, 0.0)
PLAIN: list[Message] = [
    Generated(7, Chunk((1,), "a")),
    Generated(8, Chunk((2, 3), "")),
    Generated(9, Chunk(text="rest")),
]
OTHER: list[Message] = [
    Generated(7, Chunk((1,), "a", logprobs=(TokenLogprob(1, -0.5, 1),))),
    Generated(7, Chunk((1,), "a", prompt_logprobs=())),
    Generated(7, Chunk((1,), "a", prompt_logprobs=(None, TokenLogprob(1, -0.5, 1)))),
    Generated(7, Chunk((), "", finish=Finish(FinishReason.STOP, USAGE, 3, "x", "y"))),
    Generated(7, Chunk((5,), "z", finish=Finish(FinishReason.LENGTH, replace(USAGE, num_preemptions=2), 3))),
    Loading("weights", 0.5),
]


def test_messages_come_back_as_they_were_and_in_order() -> None:
    messages: list[Message] = [OTHER[0], *PLAIN, *OTHER[1:], PLAIN[0]]
    back = unpack(pickle.loads(pickle.dumps(pack(messages))))
    assert back == messages
    assert [type(message) for message in back] == [type(message) for message in messages]
    assert all(isinstance(message.chunk, Chunk) for message in back if isinstance(message, Generated))


def test_errors_come_back_too() -> None:
    failed, died = unpack(
        pickle.loads(pickle.dumps(pack([GenerationFailed(1, EngineFault("a")), Died(EngineDied("b"))])))
    )
    assert isinstance(failed, GenerationFailed)
    assert str(failed.error) == "a"
    assert isinstance(died, Died)
    assert str(died.error) == "b"


def test_pieces_of_text_cross_as_plain_tuples() -> None:
    assert [type(packed) for packed in pack(PLAIN)] == [tuple] * 3
    assert not any(type(packed) is tuple for packed in pack(OTHER))

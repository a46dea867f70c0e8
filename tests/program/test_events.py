from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kea.errors import CallFailed, EngineDied
from kea.program.events import KEEP_ALIVE, EventDecoder, StreamEvent
from kea.program.status import CallRow, CallState, SessionStatus, status_from_json


@given(st.lists(st.text()))
def test_events_survive_the_wire(texts: list[str]) -> None:
    events = [*(StreamEvent("piece", {"text": text}) for text in texts), StreamEvent("done")]
    data = KEEP_ALIVE + b"".join(event.encode() + KEEP_ALIVE for event in events)
    decoder = EventDecoder()
    assert [event for line in data.decode().split("\n") for event in decoder.feed(line)] == events


def test_a_status_survives_the_wire() -> None:
    error = CallFailed("no")
    error.__cause__ = EngineDied("dead")
    row = CallRow("c", "f", CallState.FAILED, 0.5, 0.1, 0.2, 0.3, 0.4, 1.0, 5, 3, 2, ("a",), ("b", "c"), 2, 0, error)
    status = SessionStatus(7, "name", "tenant", 3.5, 0, 3, (row,))
    read = status_from_json(status.to_json())
    assert read.calls[0].error is not None
    assert isinstance(read.calls[0].error.__cause__, EngineDied)
    assert read.to_json() == status.to_json()

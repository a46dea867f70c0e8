"""Steps on their way: launched, and not yet landed, which is when their tokens are read and taken.

On a device the next step is launched before the last one lands: it takes the tokens from where they were drawn, and
the host plans, and takes what was drawn before, while the device computes. So an end is found one step late, and what
was computed behind it is void, as behind the end of a burst. Knows no commands, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kea.engine.draft import StepWork, WorkItem
from kea.engine.runner import DrawnAhead
from kea.engine.sampling import Drawn, Draws
from kea.errors import KeaError

DrawnRows = list[tuple[WorkItem, Drawn | KeaError]]


@dataclass(slots=True, eq=False)
class Flight:
    """A step that was launched. Lives until it has landed.

    `items`: what it computes. `find_unsound` waits for the step and gives those whose numbers are not finite. `known`:
    what some items drew, or why they cannot; the others are `drawing`, in the order of `draws`. `draw_behind` draws the
    next tokens of items of which so many were as guessed. `void`: contexts whose part of the step means nothing.
    """

    work: StepWork
    items: Sequence[WorkItem]
    find_unsound: Callable[[], list[WorkItem]]
    draw_behind: Callable[[Sequence[WorkItem], int], DrawnRows]
    known: DrawnRows
    draws: Draws | None = None
    drawing: Sequence[WorkItem] = ()
    launched_s: float = 0.0
    void: set[int] = field(default_factory=set)

    def launch(self) -> None:
        """Note in its contexts that the step is on its way."""
        for item in self.work.items:
            context = item.context
            context.num_flying += item.end - item.start
            context.num_unknown += item.draws
            generation = context.generation
            if item.draws and generation is not None and generation.tracker.num_left <= context.num_unknown:
                context.is_grounded = True  # the output has no room for another token

    def land(self) -> None:
        """Note in its contexts that the step is computed."""
        for item in self.work.items:
            context = item.context
            context.num_flying -= item.end - item.start
            context.num_unknown -= item.draws
            if not context.num_flying:
                context.is_grounded = False

    def finish(self) -> DrawnRows:
        """Wait for the step and return each drawing item's first token."""
        void = {row for row, item in enumerate(self.drawing) if self.is_void(item)}
        drawn = [] if self.draws is None else self.draws.finish(void)
        rows = [*self.known, *zip(self.drawing, drawn, strict=True)]
        return [(item, it) for item, it in rows if not self.is_void(item)] if self.void else rows

    def is_void(self, item: WorkItem) -> bool:
        return item.context.context_id in self.void

    @property
    def drawn_ahead(self) -> DrawnAhead | None:
        """What the next step can begin with before this one lands."""
        if self.draws is None or not self.drawing:
            return None
        rows = {item.context.context_id: row for row, item in enumerate(self.drawing)}
        return DrawnAhead(self.draws.choice.tokens, rows)

    @property
    def late(self) -> list[WorkItem]:
        """The items whose token is another one than the next step began with; known once it has finished."""
        return [] if self.draws is None else [self.drawing[row] for row in self.draws.choice.late]

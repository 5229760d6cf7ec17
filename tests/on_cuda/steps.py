"""How often the host waits for the card in one step of an optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from tests.support.pretended_cuda import PretendedCuda, Wait


class Steps:
    """The steps of the optimiser that made the most, the last of several."""

    def __init__(self) -> None:
        self.steps, self.waits = 0, list[Wait]()

    @property
    def counts(self) -> tuple[int, int] | None:
        """Reads and uploads from the end of the last step but one to that of the last; None without two steps."""
        if self.steps < 2:
            return None
        kinds = [wait.kind for wait in self.waits]
        return kinds.count("read"), kinds.count("upload")


@contextmanager
def waits_a_step(card: PretendedCuda) -> Iterator[Steps]:
    """What the last step within this block waited for, known after it."""
    ends: dict[int, list[int]] = {}
    alive: list[Optimizer] = []  # so that no two have one id

    def ended(optimiser: Optimizer, *_: object) -> None:
        alive.append(optimiser)
        ends.setdefault(id(optimiser), []).append(len(card.waits))

    found, handle = Steps(), register_optimizer_step_post_hook(ended)
    try:
        yield found
    finally:
        handle.remove()
    main = max(reversed(ends.values()), key=len, default=[])
    found.steps = len(main)
    if len(main) > 1:
        found.waits = card.waits[main[-2] : main[-1]]

"""Who is at it: short leases for work that is quick to do again, and one message at a time for a run that waits.

Callbacks, pushes and people send a waiting run messages, too. If each of them went on looking, their number would grow
for as long as the run waits, and every look would take longer than the one before.
"""

from __future__ import annotations

from typing import Any

from worker.celery import Servers

LEASE_SECONDS = 4.0
"""How long the lease of a tick, a run's step or a rebuild outlives its worker; it is renewed while they are at it. Two
at once would do the work twice, and no harm."""

POLL_SECONDS = 0.25
"""How often a run looks again while it waits: for the horizon, or for windows others are loading."""

HELD_SECONDS = 1.0
"""How often it looks while another worker is at it, who may be dead: then the lease runs out, and somebody goes on."""

TURN_SECONDS = 10.0
"""A message that was to look again and has not come for so long counts as lost; whatever comes next takes its place."""


def overtaken(here: Servers, run_id: str, turn: str | None) -> bool:
    """Whether this message was sent to look again and another one has taken its place since."""
    return turn is not None and not here.store.end_turn(f"step:{run_id}", turn)


def look_again(here: Servers, step: Any, run_id: str, *, countdown: float = POLL_SECONDS, **options: Any) -> None:
    """Sends the message that looks again after so many seconds, unless one is on its way."""
    turn = here.store.take_turn(f"step:{run_id}", TURN_SECONDS)
    if turn is not None:
        step.apply_async(kwargs={"run_id": run_id, "turn": turn}, countdown=countdown, **options)

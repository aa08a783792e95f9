"""When an engine that has ended is started again.

What lives here: `Respawn`, which decides. What must not: processes, clocks.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Policy: TypeAlias = Literal["never", "on_failure", "always"]

POLICIES: tuple[Policy, ...] = ("never", "on_failure", "always")

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0
GOOD_LIFE_S = 60.0
"""An engine that has lived so long starts with a clean record."""


class Respawn:
    """Decides whether, and when, an engine is replaced.

    The first replacement comes at once; each further one that does not live for `GOOD_LIFE_S`
    waits twice as long as the one before, and after `limit` of them the place stays empty.

    Example:
        >>> respawn = Respawn("on_failure", limit=3)
        >>> [respawn.delay_s(0, exit_code=-9, lived_s=1.0) for _ in range(4)]
        [0.0, 0.1, 0.2, None]
    """

    def __init__(
        self, policy: Policy, limit: int = 10, longest_delay_s: float = LONGEST_DELAY_S
    ) -> None:
        """Take the policy.

        Args:
            policy: "never"; "on_failure" for an exit code other than 0, or a signal; "always" for
                every end that nobody asked for.
            limit: replacements in a row that may fail; 0 for no limit.
            longest_delay_s: no replacement waits for longer.
        """
        self.policy = policy
        self.limit = limit
        self.longest_delay_s = longest_delay_s
        self._in_a_row: dict[int, int] = {}

    def delay_s(
        self,
        slot: int,
        *,
        exit_code: int,
        lived_s: float,
        was_told: bool = False,
        was_forced: bool = False,
    ) -> float | None:
        """Return how long to wait before an engine is replaced; None for "not at all".

        Args:
            slot: whose place: an engine and its replacements share one.
            exit_code: or minus the signal's number.
            lived_s: how long it lived.
            was_told: it was told to stop.
            was_forced: the agent killed it for a task that was cancelled by force.
        """
        if was_forced:
            return 0.0
        if was_told or self.policy == "never":
            return None
        if self.policy == "on_failure" and exit_code == 0:
            return None
        before = 0 if lived_s >= GOOD_LIFE_S else self._in_a_row.get(slot, 0)
        if self.limit and before >= self.limit:
            return None
        self._in_a_row[slot] = before + 1
        if not before:
            return 0.0
        # The exponent has a bound of its own: without a limit it would outgrow a float.
        return min(self.longest_delay_s, FIRST_DELAY_S * 2.0 ** min(before - 1, 30))

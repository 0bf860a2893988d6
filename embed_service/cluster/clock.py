"""The monotonic clock of another machine, in terms of this one's."""

from __future__ import annotations

DRIFT = 1e-4  # two quartz clocks part by less than this


class RemoteClock:
    """Each message carries the sender's time. The one that travelled the shortest tells the difference best; as clocks drift, an old
    difference counts for less and less."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._heard = 0.0

    def heard(self, theirs: float, ours: float) -> None:
        """A message that was sent at `theirs` has come at `ours`, in seconds of the two clocks."""
        offset = ours - theirs
        if self._offset is not None:
            offset = min(offset, self._offset + DRIFT * (ours - self._heard))
        self._offset, self._heard = offset, ours

    def here(self, theirs: float) -> float:
        """Their time in our clock; late by as long as the fastest message took."""
        return theirs + (self._offset or 0.0)

"""What the device did with its time: how long it computed, and how long it did nothing although work waited."""

from __future__ import annotations

from embed_service.telemetry import metrics


class DeviceTime:
    """Counts into the metrics. Times are seconds of the monotonic clock, which both processes of a machine share."""

    def __init__(self) -> None:
        self._ended: float | None = None

    def reset(self) -> None:
        """Another engine: nothing is known of the time before its first answer, which is a canary's."""
        self._ended = None

    def computed(self, started: float, ended: float, waiting_since: float | None) -> None:
        """A micro-batch was computed, whose oldest work waited since `waiting_since`; None for a canary, for which nobody waits."""
        metrics.engine_busy_seconds.inc(max(0.0, ended - started))
        if self._ended is not None and waiting_since is not None:
            metrics.engine_idle_seconds.inc(max(0.0, started - max(self._ended, waiting_since)))
        self._ended = ended

"""How long a start will still take: seconds per phase of the last start, else of the preset whose models these are, else nothing.

A phase that this start does not go through costs nothing, so a start with a download and one without are told apart by themselves; a
download's own rest comes from its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qmdctl.settings import Settings
from qmdctl.startup.phases import ORDER, Phase
from qmdctl.state import State
from qmdctl.tailnet import SIDECARS
from qmdctl.terminal import human_seconds

NOT_REMEMBERED = frozenset({"downloading", "waiting", "login", "approval", "ready"})  # up to the line, another service, a person; no end
TOTAL = "total"  # beside the phases: the whole start
MODEL_KEYS = ("EMBED_MODEL", "RERANK_MODEL", "VLLM_MODEL")


@dataclass(frozen=True)
class Progress:
    """Where one service is: its phase, for how many seconds, and at how many bytes per second (0: not known)."""

    phase: Phase
    seconds: float
    rate: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """`expected`: service → phase → seconds. `source`: what from, as words for people; empty when there is nothing to go by."""

    expected: Mapping[str, Mapping[str, float]]
    source: str = ""

    def remaining(self, progress: Mapping[str, Progress]) -> float | None:
        """Seconds until all are ready, sidecars aside, which take moments or a person's hand; None when that cannot be told."""
        rests = {service: self._rest(service, where) for service, where in progress.items() if service not in SIDECARS}
        for service in rests:
            if progress[service].phase.name == "waiting":  # its own rest begins when the others are ready
                others = [rest for name, rest in rests.items() if name != service and progress[name].phase.name != "waiting"]
                rests[service] = _sum(rests[service], max((rest for rest in others if rest is not None), default=0.0))
        known = list(rests.values())
        return None if not known or None in known else max(rest for rest in known if rest is not None)

    def text(self, progress: Mapping[str, Progress]) -> str:
        """ "about 2 min left (last start took 4 min 05 s)", or as much of it as is known."""
        rest = self.remaining(progress)
        if rest is None or all(where.phase.ready for service, where in progress.items() if service not in SIDECARS):
            return ""  # what is left is a sidecar's
        left = f"about {_round(rest)} left" if rest >= 1 else "any moment now" if rest > 0 else "longer than expected"
        return f"{left} ({self.source})" if self.source else left

    def _rest(self, service: str, where: Progress) -> float | None:
        """Of this phase and the ones after it; 0 when ready, None when nothing is known of this service."""
        phase = where.phase
        if phase.ready:
            return 0.0
        expected = self.expected.get(service)
        if not expected:
            return None
        own = max(0.0, expected.get(phase.name, 0.0) - where.seconds)
        if phase.name == "downloading":
            if not where.rate or not phase.total_bytes:
                return None
            own = max(0, phase.total_bytes - phase.done_bytes) / where.rate
        return own + sum(seconds for name, seconds in expected.items() if _rank(name) > _rank(phase.name))


def make_estimate(settings: Settings, state: State) -> Estimate:
    """From the last complete start of these models here, else from their preset."""
    last = state.last_start(start_key(settings))
    known = {service: last[service] for service in settings.services if last.get(service)}
    if any(service not in known for service in settings.services if service not in SIDECARS):
        return preset_estimate(settings)
    totals = [phases[TOTAL] for phases in known.values() if TOTAL in phases]
    return Estimate(known, f"last start took {human_seconds(max(totals))}" if totals else "going by the last start")


def preset_estimate(settings: Settings) -> Estimate:
    """The table's figures where all models are a preset's own; they are for a first start."""
    from qmdctl.presets import load_presets

    models = {key: settings[key] for key in MODEL_KEYS if key != "VLLM_MODEL" or "vllm" in settings.services}
    for preset in load_presets().values():
        if preset.cpu == settings.cpu and all(preset.settings.get(key) == value for key, value in models.items()):
            return Estimate(preset.first_start, f"estimated for the preset {preset.name}")
    return Estimate({})


def start_key(settings: Settings) -> str:
    """What a start's times hold for: the folder, the models, with a GPU or without."""
    return " ".join([str(settings.project.folder), "cpu" if settings.cpu else "gpu", *(settings[key] for key in MODEL_KEYS)])


def remember(key: str, state: State, seconds: Mapping[str, Mapping[str, float]], total: float) -> None:
    """Keep a complete start: service → phase → seconds, and `total`, unless a download made that a figure of its own."""
    downloaded = any("downloading" in phases for phases in seconds.values())
    last = state.last_start(key)
    kept = {}
    for service, phases in seconds.items():
        seen = {name: round(value, 1) for name, value in phases.items() if name in ORDER and name not in NOT_REMEMBERED}
        if seen:
            whole = last.get(service, {}).get(TOTAL) if downloaded else total
            kept[service] = seen if whole is None else {**seen, TOTAL: round(whole, 1)}
    if kept:
        state.remember_start(key, kept)


def _rank(phase: str) -> int:
    return ORDER.index(phase) if phase in ORDER else -1


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def _round(seconds: float) -> str:
    """About: to 5 s below a minute, to half minutes above."""
    if seconds < 60:
        return f"{max(5, round(seconds / 5) * 5)} s"
    halves = round(seconds / 30)
    return f"{halves / 2:g} min" if seconds < 3600 else human_seconds(seconds)

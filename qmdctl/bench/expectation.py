"""What the preset says that this machine should reach. These figures are estimates (presets.yaml says what from), and are called so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qmdctl.bench.figures import PhaseFigures, SearchFigures
from qmdctl.bench.workload import Workload
from qmdctl.presets import Preset, choose_preset, find_preset, load_presets

if TYPE_CHECKING:
    from qmdctl.hardware import Hardware
    from qmdctl.settings import Settings

ROLES = {"embed": "EMBED_MODEL", "rerank": "RERANK_MODEL", "generate": "VLLM_MODEL"}
# What presets.yaml counts with.
GENERATED_TOKENS = 80  # of an expansion
TOKENS_PER_CHUNK = 600


@dataclass(frozen=True)
class Compared:
    """One figure beside the estimate, `ratio` = measured / expected; `reason` says why there is none, `note` what each counts with."""

    name: str
    unit: str
    expected: float
    measured: float | None
    reason: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.measured is None else self.measured / self.expected

    def payload(self) -> dict[str, Any]:
        ratio = self.ratio
        return {
            "figure": self.name,
            "unit": self.unit,
            "estimate": self.expected,
            "measured": None if self.measured is None else round(self.measured, 3),
            "ratio": None if ratio is None else round(ratio, 3),
            "reason": self.reason or None,
            "note": self.note or None,
        }


@dataclass(frozen=True)
class Expectation:
    """`preset` is None where none is meant for this stack, for the `reason`."""

    preset: Preset | None
    reason: str = ""
    note: str = ""

    def payload(self, compared: list[Compared]) -> dict[str, Any]:
        return {
            "preset": self.preset.name if self.preset else None,
            "machine": self.preset.bandwidth_of if self.preset else None,
            "reason": self.reason or None,
            "note": self.note or None,
            "figures": [one.payload() for one in compared],
        }


def named_preset(name: str, served: Mapping[str, str]) -> Expectation:
    """The one that the user named, whatever is served. ConfigurationError for a name that is none."""
    preset = find_preset(name)
    others = _others(preset, served)
    return Expectation(preset, note=f"the preset counts with other models than are served: {', '.join(others)}" if others else "")


def box_preset(settings: Settings, hardware: Hardware, served: Mapping[str, str]) -> Expectation:
    """The one that `qmdctl init` proposes for this machine, where the models served are its own."""
    preset = load_presets()["cpu"] if settings.cpu else choose_preset(hardware)
    others = _others(preset, served)
    if others:
        reason = (
            f"preset {preset.name}, which suits this machine, counts with other models: {', '.join(others)}. --preset NAME compares anyway"
        )
        return Expectation(None, reason)
    return Expectation(preset)


def _others(preset: Preset, served: Mapping[str, str]) -> list[str]:
    """Of the preset's models those that are not served; of a role that is unknown nothing is said."""
    wanted = {role: preset.settings.get(key, "") for role, key in ROLES.items()}
    return [model for role, model in wanted.items() if served.get(role) and served[role] != model]


def compare(preset: Preset, figures: list[PhaseFigures], workload: Workload) -> list[Compared]:
    """A search and 10,000 chunks, as one agent sees them on an otherwise idle machine. Work that was made smaller is not compared."""
    alone, whole = {run.run.phase.name: run for run in figures if run.run.phase.agents == 1}, Workload()
    searches = alone["searches"].searches if "searches" in alone else None
    indexing = alone["indexing"].indexing if "indexing" in alone else None
    reason = "" if searches else "no search with one agent was measured"
    if workload.expansion is None:
        reason = f"the estimate counts {GENERATED_TOKENS} generated tokens, and there was no expansion"
    elif workload.candidates < whole.candidates or workload.max_tokens < whole.max_tokens:
        reason = "the searches were made smaller"
    why = "" if indexing else "no indexing with one agent was measured"
    if workload.batch < whole.batch:
        why = f"the batches were made smaller: {workload.batch} chunks in place of {whole.batch}"
    return [
        Compared(
            "search",
            "s",
            preset.seconds_per_search,
            searches.p50 if searches and not reason else None,
            reason,
            _generated(searches) if searches and not reason else "",
        ),
        Compared(
            "10,000 chunks",
            "min",
            preset.minutes_per_10000_chunks,
            indexing.minutes_per_10000 if indexing and not why else None,
            why,
            f"{TOKENS_PER_CHUNK} tokens a chunk; here {indexing.tokens_per_chunk:.0f}" if indexing and not why else "",
        ),
    ]


def _generated(searches: SearchFigures) -> str:
    """An expansion ends where the model ends it, which may be at five times as many tokens."""
    expansion = searches.links.get("expansion")
    here = f"here {expansion.generated:.0f}" if expansion and expansion.generated else "how many here the server did not tell"
    return f"{GENERATED_TOKENS} generated tokens; {here}"

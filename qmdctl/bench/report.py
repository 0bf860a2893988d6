"""What a run found, as a table for people and as one document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qmdctl.bench.advice import Advice
from qmdctl.bench.expectation import Compared, Expectation
from qmdctl.bench.figures import P95_SAMPLES, PhaseFigures, failures, first_failure, traffic
from qmdctl.bench.history import Last
from qmdctl.bench.load import Run
from qmdctl.bench.target import Target
from qmdctl.terminal import human_bytes, table


@dataclass
class Report:
    target: Target
    run: Run
    seed: str
    phases: list[PhaseFigures]
    expectation: Expectation
    compared: list[Compared] = field(default_factory=list)
    last: Last | None = None
    advice: list[Advice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def payload(self) -> dict[str, Any]:
        run = self.run
        return {
            **self.target.payload(),
            "workload": {**run.workload.payload(), "seed": self.seed},
            "seconds": round(run.seconds, 2),
            "interrupted": run.interrupted,
            "warm_up_requests": len(run.warming),
            "phases": [phase.payload() for phase in self.phases],
            "bytes": traffic(run),
            "failures": failures(run),
            "shortened": run.shortened,
            "expectation": self.expectation.payload(self.compared),
            "last_run": self.last.payload() if self.last else None,
            "advice": [advice.payload() for advice in self.advice],
            "notes": self.notes,
        }

    def text(self) -> str:
        parts = [
            self._head(),
            self._rates(),
            self._links(),
            self._bytes(),
            self._failures(),
            self._compared(),
            self._last(),
            self._advice(),
        ]
        parts.append("\n".join(f"! {note}" for note in [*self.run.shortened, *self.notes]))
        return "\n\n".join(part for part in parts if part)

    def _head(self) -> str:
        target, workload = self.target, self.run.workload
        facts = ", ".join(str(value) for name, value in target.facts.items() if name not in ("restarts", "version"))
        models = [target.models.get(role, "?") for role in ("embed", "rerank")]
        lines = [f"{target.embed_url}: {models[0]}, {models[1]}" + (f" ({facts})" if facts else "")]
        if workload.expansion:
            lines.append(f"{target.generate_url}: {target.models.get('generate', 'its model')}")
        how = f"expansion by {workload.expansion} of at most {workload.max_tokens} tokens" if workload.expansion else "no expansion"
        lines.append(
            f"Batches of {workload.batch} chunks; searches: {how}, query vectors, rerank of {workload.candidates} chunks. Seed {self.seed}."
        )
        return "\n".join(lines)

    def _rates(self) -> str:
        rows, few = [], False
        for phase in self.phases:
            searches, index = phase.searches, phase.indexing
            failed = phase.run.failed_searches
            count = (
                ""
                if phase.run.phase.name == "indexing"
                else f"{searches.count if searches else 0}" + (f" (+{failed} failed)" if failed else "")
            )
            few = few or (searches is not None and searches.p95 is None)
            rows.append(
                (
                    phase.run.phase.title,
                    count,
                    f"{searches.p50:.2f} s" if searches else "",
                    (f"{searches.p95:.2f} s" if searches.p95 is not None else "-") if searches else "",
                    f"{searches.slowest:.2f} s" if searches else "",
                    f"{index.chunks_per_second:.1f}" if index else "" if phase.run.phase.name == "searches" else "no batch",
                    f"{index.tokens_per_second:.0f}" if index else "",
                )
            )
        if not rows:
            return ""
        header = ("", "searches", "p50", "p95", "slowest", "chunks/s", "tokens/s")
        note = f"\n-: a p95 needs {P95_SAMPLES} searches in a phase; --seconds and --searches allow more" if few else ""
        return table(rows, header) + note

    def _links(self) -> str:
        """A search link by link, of the phases with the fewest agents."""
        rows, seen = [], set()
        for phase in self.phases:
            if phase.searches is None or phase.run.phase.name in seen:
                continue
            seen.add(phase.run.phase.name)
            for name, link in phase.searches.links.items():
                told = [f"{link.parts[part]:.3f}" if link.parts else "" for part in ("queue", "tokenise", "compute")]
                rate = f"{link.generated:.0f} tokens, {link.generated_per_second:.0f}/s" if link.generated else ""
                share = f"{link.seconds / phase.searches.mean_seconds:.0%}" if phase.searches.mean_seconds else ""
                rows.append(
                    (phase.run.phase.title, name, f"{link.seconds:.3f}", share, *told, f"{link.rest:.3f}" if link.parts else "", rate)
                )
        header = ("seconds, means", "link", "whole", "share", "queue", "tokenise", "compute", "rest", "")
        return table(rows, header) if rows else ""

    def _bytes(self) -> str:
        rows = [
            (kind, str(one["requests"]), human_bytes(one["sent_bytes"]), human_bytes(one["received_bytes"]))
            for kind, one in traffic(self.run).items()
        ]
        trips = ", ".join(f"{service} {1000 * seconds:.1f} ms" for service, seconds in self.target.round_trips.items())
        return table(rows, ("bodies", "requests", "sent", "received")) + (f"\nRound trip: {trips}" if trips else "") if rows else ""

    def _failures(self) -> str:
        counted = failures(self.run)
        if not counted:
            return ""
        told = "; ".join(f"{kind}: " + ", ".join(f"{count} × {why}" for why, count in counts.items()) for kind, counts in counted.items())
        first = first_failure(self.run)
        return f"✗ Failed requests: {told}" + (f"\n  The first: {first.kind}: {first.said}" if first and first.said else "")

    def _compared(self) -> str:
        preset = self.expectation.preset
        if preset is None:
            return f"Not compared with a preset: {self.expectation.reason}" if self.expectation.reason else ""
        rows = [
            (
                one.name,
                f"{one.measured:.2f} {one.unit}" if one.measured is not None else "-",
                f"{one.expected:g} {one.unit}",
                f"{one.ratio:.2f}" if one.ratio is not None else one.reason,
            )
            for one in self.compared
        ]
        note = f"\n{self.expectation.note[:1].upper()}{self.expectation.note[1:]}." if self.expectation.note else ""
        counted = "".join(f"\n{one.name[:1].upper()}{one.name[1:]}: the estimate counts {one.note}." for one in self.compared if one.note)
        about = f"Preset {preset.name} is an estimate for {preset.bandwidth_of}; nobody measured it.{counted}"
        return table(rows, (f"preset {preset.name}", "measured", "estimate", "ratio")) + f"\n{about}{note}"

    def _last(self) -> str:
        if self.last is None:
            return ""
        rows = [
            (change.name, f"{change.now:.2f} {change.unit}", f"{change.then:.2f} {change.unit}", f"{change.slower:+.0%} time")
            for change in self.last.changes
        ]
        return table(rows, (f"last run: {self.last.at}", "now", "then", "")) + "\nOf few samples a tenth more or less is chance."

    def _advice(self) -> str:
        return "\n".join(f"• {advice.sentence}\n  → {advice.setting}" for advice in self.advice)

"""What the figures mean and which setting moves them. Each rule looks at a share that was measured and is silent below its threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmdctl.bench.figures import IndexFigures, LinkFigures, PhaseFigures, SearchFigures

LARGE = 0.5  # of a search: the link that is worth looking at first
NOTABLE = 0.25  # of the seconds of a link: the part that is named
FAR_SECONDS = 0.02  # a round trip from which on the way matters
SLOWED = 1.5  # times as long: under indexing, or with more agents than their number explains


@dataclass(frozen=True)
class Advice:
    """`setting` is the key, option or verb that moves the figure."""

    about: str
    sentence: str
    setting: str

    def payload(self) -> dict[str, str]:
        return {"about": self.about, "sentence": self.sentence, "setting": self.setting}


@dataclass(frozen=True)
class Measured:
    """What the rules look at. `settings` are the box's, empty on a laptop; `facts` embed's /health, `round_trips` seconds by service."""

    phases: list[PhaseFigures]
    facts: Mapping[str, Any] = field(default_factory=dict)
    round_trips: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def phase(self, name: str, agents: int | None = None) -> PhaseFigures | None:
        """That of so many agents, else of the fewest."""
        found = [one for one in self.phases if one.run.phase.name == name and agents in (None, one.run.phase.agents)]
        return min(found, key=lambda one: one.run.phase.agents, default=None)

    @property
    def fewest(self) -> Searching | None:
        """The searches of the fewest agents, which may be several."""
        return _searching(self.phase("searches"))

    @property
    def alone(self) -> Searching | None:
        return _searching(self.phase("searches", 1))

    @property
    def under(self) -> Searching | None:
        """Those under indexing, of as many agents as `fewest`."""
        return _searching(self.phase("searches under indexing", self.fewest.agents)) if self.fewest else None

    @property
    def indexing(self) -> IndexFigures | None:
        phase = self.phase("indexing")
        return phase.indexing if phase else None

    @property
    def crowded(self) -> Searching | None:
        """The searches of the most agents, where there are several."""
        found = [one for one in self.phases if one.run.phase.name == "searches" and one.run.phase.agents > 1 and one.searches]
        return _searching(max(found, key=lambda one: one.run.phase.agents, default=None))


@dataclass(frozen=True)
class Searching:
    """A phase in which searches were answered. `enough`: so many, and all of them, that its means are no chance."""

    figures: SearchFigures
    agents: int
    enough: bool


def _searching(phase: PhaseFigures | None) -> Searching | None:
    return Searching(phase.searches, phase.run.phase.agents, phase.enough) if phase and phase.searches else None


def _said(sentence: str, *of: Searching) -> str:
    """A verdict on the means of these; a guess where they rest on too few searches."""
    if all(one.enough for one in of):
        return sentence
    return f"Perhaps, as few searches came to their end: {sentence}"


def advise(measured: Measured) -> list[Advice]:
    """In the order in which they are worth reading."""
    return [advice for rule in RULES for advice in rule(measured)]


def failed(measured: Measured) -> list[Advice]:
    kinds = {failure for counts in measured.failures.values() for failure in counts}
    result = []
    if kinds & {"503", "no connection", "connection lost"}:
        sentence = "Requests were refused or cut off: a service restarted, was paused, or its queue was full (MAX_QUEUED_TOKENS)."
        result.append(Advice("failures", sentence, "qmdctl status; qmdctl logs"))
    if "timeout" in kinds:
        result.append(
            Advice(
                "failures",
                "Requests were not answered in time; a QMD client gives up after 30 to 120 s, some after 10.",
                "--timeout SECONDS",
            )
        )
    return result


def device(measured: Measured) -> list[Advice]:
    where, attention = str(measured.facts.get("device", "")), measured.facts.get("attention")
    if where.startswith("cpu"):
        sentence = "The embed service computes on the processor: embedding and rerank are tens of times slower than on a GPU."
        return [Advice("device", sentence, "DEVICE=cuda, and COMPOSE_FILE without compose.cpu.yaml (qmdctl doctor says what is missing)")]
    if where.startswith("cuda") and attention and attention != "varlen":
        sentence = f"Attention fell back to {attention}, one call per length: the embed service's log says why at its start."
        return [Advice("device", sentence, "USE_FLASH_ATTN; qmdctl logs embed")]
    return []


def expansion(measured: Measured) -> list[Advice]:
    fewest = measured.fewest
    link = fewest.figures.links.get("expansion") if fewest else None
    if fewest is None or link is None or link.seconds < LARGE * fewest.figures.mean_seconds:
        return []
    share = link.seconds / fewest.figures.mean_seconds
    told = f": {link.generated:.0f} tokens, one after the other, at {link.generated_per_second:.0f} per second" if link.generated else ""
    sentence = f"Expansion is {share:.0%} of a search{told}. The speed is the memory's bandwidth over the bytes of the weights."
    if measured.settings.get("VLLM_ENFORCE_EAGER", "").lower() in ("1", "true", "yes"):
        return [Advice("expansion", _said(sentence + " CUDA graphs are off.", fewest), "VLLM_ENFORCE_EAGER=false")]
    lighter = (
        "a smaller VLLM_MODEL"
        if "FP8" in measured.models.get("generate", "")
        else "VLLM_MODEL: an FP8 or AWQ checkpoint, or a smaller model"
    )
    return [Advice("expansion", _said(sentence, fewest), lighter)]


def rerank(measured: Measured) -> list[Advice]:
    fewest = measured.fewest
    link = fewest.figures.links.get("rerank") if fewest else None
    if fewest is None or link is None or link.seconds < LARGE * fewest.figures.mean_seconds:
        return []
    share = link.seconds / fewest.figures.mean_seconds
    rate = f", {link.tokens / link.seconds:.0f} tokens/s" if link.tokens else ""
    sentence = f"The rerank is {share:.0%} of a search{rate}. Its seconds grow with the model and with the candidates."
    return [Advice("rerank", _said(sentence, fewest), "RERANK_MODEL: a smaller one; or fewer candidates at the client (qmd query -C 20)")]


def waiting(measured: Measured) -> list[Advice]:
    """Time in the queue although nobody else searches."""
    alone = measured.alone
    queued = sum(link.parts.get("queue", 0.0) for link in alone.figures.links.values()) if alone else 0.0
    if alone is None or queued < NOTABLE * alone.figures.mean_seconds:
        return []
    sentence = f"Searches waited {queued:.1f} s in the queue although this run sent nothing else: others use the service now."
    return [Advice("queue", _said(sentence, alone), "run it again when the box is idle; GET /metrics has who asks for how much")]


def way(measured: Measured) -> list[Advice]:
    """What the server does not account for: the network, TLS, JSON, and the wait behind a micro-batch that another one sent."""
    fewest = measured.fewest
    told = [link for link in fewest.figures.links.values() if link.parts] if fewest else []
    rest, whole = sum(link.rest for link in told), sum(link.seconds for link in told)
    batch = measured.indexing.batch if measured.indexing else None
    trips = measured.round_trips.get("embed", 0.0)
    others = "the wait for a micro-batch of others that is being computed"
    result = []
    if fewest and whole and rest >= NOTABLE * whole:
        sentence = (
            f"{rest / whole:.0%} of embedding and rerank is neither queue, tokenising nor computing: way, TLS, JSON (a round trip takes "
            f"{1000 * trips:.0f} ms), or {others}."
        )
        far = "qmdctl test (does the path go through a relay?); open UDP port 41651 of the box" if trips >= FAR_SECONDS else "qmdctl test"
        result.append(Advice("network", _said(sentence, fewest), f"{far}; GET /metrics has who else asks"))
    if batch and batch.parts and batch.rest >= NOTABLE * batch.seconds:
        sentence = f"{batch.rest / batch.seconds:.0%} of a batch is its way and its JSON, or {others} ({1000 * batch.rest:.0f} ms)."
        setting = (
            "the path (qmdctl test); GZIP_MIN_BYTES; a client that asks for base64"
            if trips >= FAR_SECONDS
            else "GZIP_MIN_BYTES=0 (off), on a fast link"
        )
        result.append(Advice("network", sentence, setting))
    return result


def indexing(measured: Measured) -> list[Advice]:
    figures = measured.indexing
    batch = figures.batch if figures else None
    if figures is None or batch is None or not batch.parts:
        return []
    if batch.parts["tokenise"] >= NOTABLE * batch.seconds:
        return [Advice("indexing", f"{batch.parts['tokenise'] / batch.seconds:.0%} of a batch is tokenising.", "TOKENIZER_THREADS")]
    if batch.parts["compute"] < LARGE * batch.seconds:
        return []
    sentence = (
        f"The device computes {batch.parts['compute'] / batch.seconds:.0%} of a batch's time ({figures.tokens_per_second:.0f} tokens/s): "
        "more than that is the model's size and the device's speed."
    )
    on_gpu = str(measured.facts.get("device", "")).startswith("cuda")
    larger = "; larger micro-batches help a little where they are small: TARGET_BATCH_MS, MAX_BATCH_TOKENS" if on_gpu else ""
    return [Advice("indexing", sentence, f"EMBED_MODEL: a smaller one (every index is embedded again){larger}")]


def under_indexing(measured: Measured) -> list[Advice]:
    fewest, under = measured.fewest, measured.under
    if fewest is None or under is None or under.figures.mean_seconds < SLOWED * fewest.figures.mean_seconds:
        return []
    links, before = under.figures.links, fewest.figures.links
    grown: dict[str, float] = {name: link.seconds - before[name].seconds for name, link in links.items() if name in before}
    name = max(grown, key=lambda one: grown[one])
    times = under.figures.mean_seconds / fewest.figures.mean_seconds
    sentence = f"Under indexing a search takes {times:.1f} times as long; most of it is added to {name}"
    if name == "expansion":
        shared = _said(sentence + ": vLLM and the embed service share one device.", fewest, under)
        return [Advice("under indexing", shared, "TARGET_BATCH_MS lower; a box for each service")]
    part, more = _grown_part(links[name], before[name])
    if part in WAITS and links[name].parts:
        told = f", {more:.2f} s of it in {part}: a search waits {WAITS[part]}."
        setting = "TARGET_BATCH_MS lower (smaller micro-batches, some fewer chunks/s)"
        return [Advice("under indexing", _said(sentence + told, fewest, under), setting)]
    setting = "TARGET_BATCH_MS lower; BULK_AGING_SECONDS higher lets searches pass more bulk work"
    return [Advice("under indexing", _said(f"{sentence} ({part}).", fewest, under), setting)]


# The queue ends where a text goes to the engine, at which one micro-batch of each lane stands by while another one is computed.
WAITS = {
    "queue": "for its turn behind other requests of its lane",
    "rest": "for the rest of one micro-batch, which is not in queue (or for the line, which the batches fill)",
}


def _grown_part(link: LinkFigures, before: LinkFigures) -> tuple[str, float]:
    """The part that has grown most, and by how many seconds."""
    grown = {name: value - before.parts.get(name, 0.0) for name, value in link.parts.items()} | {"rest": link.rest - before.rest}
    name = max(grown, key=lambda one: grown[one])
    return name, grown[name]


def crowd(measured: Measured) -> list[Advice]:
    """Many agents: whether they get more searches together than one does."""
    alone, crowded = measured.alone, measured.crowded
    if alone is None or crowded is None:
        return []
    many, one, agents = crowded.figures, alone.figures, crowded.agents
    written, before = many.links.get("expansion"), one.links.get("expansion")
    if written and before and written.seconds > SLOWED * 2 * before.seconds:
        sentence = (
            f"With {agents} agents an expansion takes {written.seconds / before.seconds:.1f} times as long: they wait for each other."
        )
        setting = "VLLM_MAX_NUM_SEQS, and VLLM_KV_CACHE_GB for as many texts at once"
        return [Advice("agents", _said(sentence, alone, crowded), setting)]
    if many.per_second < SLOWED * one.per_second:
        sentence = f"{agents} agents get {many.per_second:.2f} searches/s together, one alone {one.per_second:.2f}: the device is full."
        return [Advice("agents", _said(sentence, alone, crowded), "a smaller RERANK_MODEL, or another box (docs/scale.md)")]
    return []


RULES: tuple[Callable[[Measured], list[Advice]], ...] = (failed, device, waiting, expansion, rerank, way, under_indexing, indexing, crowd)

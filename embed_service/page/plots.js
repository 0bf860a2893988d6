// Small plots, their table, and the bar of memory. SVG by hand: a line needs no library.

import { byId, bytes, clock, el, milliseconds, number, say } from "./shared.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 80;
const GAP_SECONDS = 30;
const FEW = 40; // so few points are shown as dots as well: a single search has no line

const PLOTS = [
  { id: "texts", title: "Texts per second", now: (s) => number(s.texts_per_second), format: number, lines: [["texts_per_second", "a", ""]] },
  { id: "tokens", title: "Tokens per second", now: (s) => number(s.tokens_per_second), format: number, lines: [["tokens_per_second", "a", ""]] },
  {
    id: "latency",
    title: "Search latency",
    dots: true,
    format: milliseconds,
    lines: [["search_p50", "a", "p50"], ["search_p95", "b", "p95"]],
  },
  {
    id: "queue",
    title: "Waiting texts",
    now: (s, now) => number(Object.values(now.lanes).reduce((sum, lane) => sum + lane.queued_sequences, 0)),
    format: number,
    lines: [["queued_interactive", "a", "interactive"], ["queued_bulk", "b", "bulk"]],
  },
];

const PARTS = {
  weights: "Weights of the models",
  service: "The rest of this service",
  kv_cache: "vLLM’s KV cache",
  vllm: "vLLM’s budget",
  other: "Everything else",
  free: "Free",
};

const KINDS = {
  card: "The GPU’s own memory.",
  unified: "One memory for processor and GPU.",
  machine: "The machine’s memory; models are computed on its processor.",
};

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

/** The frames of the plots, filled by `drawPlots`. */
export function setUpPlots() {
  for (const plot of PLOTS) {
    const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": plot.title });
    const legend = el("p", { class: "legend-line" });
    for (const [, colour, label] of plot.lines) if (label) legend.append(el("span", { class: `key ${colour}` }), label);
    if (plot.id === "queue") legend.append(el("span", { class: "open" }));
    byId("plots").append(
      el("figure", { class: "card plot", id: `plot-${plot.id}` },
        el("figcaption", {}, el("h3", {}, plot.title), el("p", { class: "now" }, "–"), el("p", { class: "more muted" })),
        el("p", { class: "top-label muted", "aria-hidden": "true" }),
        svg,
        el("p", { class: "axis muted", "aria-hidden": "true" }, el("span", {}, "10 min ago"), el("span", {}, "now")),
        legend,
      ),
    );
  }
}

/** `samples` as /stats has them, oldest first; `stats` the last answer. */
export function drawPlots(samples, stats) {
  const last = samples.at(-1);
  const end = last ? last.time : 0;
  const seconds = stats.window.seconds;
  for (const plot of PLOTS) {
    const figure = byId(`plot-${plot.id}`);
    const values = samples.flatMap((s) => plot.lines.map(([field]) => s[field])).filter((v) => v != null);
    const most = Math.max(...values, 0);
    const top = rounded(most);
    const latency = stats.search_seconds;
    let now, more;
    if (plot.id === "latency") {
      now = latency.searches ? milliseconds(latency.p50) : "no search";
      more = latency.searches ? `p95 ${milliseconds(latency.p95)} of ${latency.searches} searches` : "in the last ten minutes";
    } else {
      now = last ? plot.now(last, stats.now) : "–";
      more = plot.id === "queue"
        ? `${stats.now.lanes.interactive.queued_sequences} interactive, ${stats.now.lanes.bulk.queued_sequences} bulk; ` +
          `${number(stats.now.queued_tokens)} tokens`
        : `highest ${plot.format(most)}`;
    }
    say(figure.querySelector(".now"), now);
    say(figure.querySelector(".more"), more);
    say(figure.querySelector(".top-label"), top ? plot.format(top) : "");
    const svg = figure.querySelector("svg");
    svg.setAttribute("aria-label", `${plot.title}: now ${now}; ${more}. Highest in ten minutes: ${values.length ? plot.format(most) : "nothing"}.`);
    const x = (sample) => WIDTH - ((end - sample.time) / seconds) * WIDTH;
    const y = (value) => HEIGHT - 2 - (top ? (value / top) * (HEIGHT - 6) : 0);
    svg.replaceChildren(shape("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }));
    for (const [field, colour] of plot.lines) {
      const points = samples.filter((s) => s[field] != null && x(s) >= 0).map((s) => [x(s), y(s[field])]);
      if (!points.length) continue;
      // A line joins what is near: over minutes without a search it would tell of times that nobody measured.
      const near = (GAP_SECONDS / seconds) * WIDTH;
      const path = points.map(([px, py], n) => `${n && px - points[n - 1][0] <= near ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
      if (plot.lines.length === 1) {
        svg.append(shape("path", { class: `area ${colour}`, d: `${path}L${points.at(-1)[0].toFixed(1)} ${HEIGHT}L${points[0][0].toFixed(1)} ${HEIGHT}Z` }));
      }
      svg.append(shape("path", { class: `line ${colour}`, d: path }));
      if (plot.dots && points.length <= FEW) svg.append(shape("path", { class: `line dots ${colour}`, d: points.map(([px, py]) => `M${px.toFixed(1)} ${py.toFixed(1)}h0.01`).join("") }));
    }
  }
  const open = stats.now.in_flight;
  say(document.querySelector("#plot-queue .open"), `${open} request${open === 1 ? "" : "s"} open`);
  if (byId("table-details").open) drawTable(samples);
}

/** The next of 1, 2, 5 × 10ⁿ, so that the scale does not move with every sample. */
function rounded(value) {
  if (!(value > 0)) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

export function drawTable(samples) {
  const groups = new Map();
  for (const sample of samples) {
    const slot = Math.floor(sample.time / 30) * 30;
    groups.set(slot, [...(groups.get(slot) || []), sample]);
  }
  const mean = (group, field) => group.reduce((sum, s) => sum + s[field], 0) / group.length;
  const worst = (group, field) => group.reduce((most, s) => (s[field] == null ? most : Math.max(most ?? 0, s[field])), null);
  const middle = (group) => {
    const known = group.filter((s) => s.search_p50 != null).map((s) => s.search_p50).sort((a, b) => a - b);
    return known.length ? known[Math.floor((known.length - 1) / 2)] : null;
  };
  const ms = (value) => (value == null ? "–" : number(value * 1000));
  const rows = [...groups].sort(([a], [b]) => b - a).map(([slot, group]) =>
    el("tr", {},
      el("th", { scope: "row" }, clock(slot)),
      ...[
        number(mean(group, "texts_per_second")), number(mean(group, "tokens_per_second")),
        String(group.reduce((sum, s) => sum + s.searches, 0)), ms(middle(group)), ms(worst(group, "search_p95")),
        number(Math.max(...group.map((s) => s.queued_interactive))), number(Math.max(...group.map((s) => s.queued_bulk))),
      ].map((text) => el("td", {}, text)),
    ));
  byId("table").tBodies[0].replaceChildren(...rows);
}

export function drawMemory(memory) {
  say(byId("memory-kind"), `${KINDS[memory.kind]} ${bytes(memory.total_bytes)} in all.`);
  const parts = memory.parts.filter((part) => part.bytes > 0);
  const words = parts.map((part) => `${PARTS[part.name]} ${bytes(part.bytes)}`);
  byId("memory-bar").setAttribute("aria-label", words.join(", "));
  byId("memory-bar").replaceChildren(...parts.map((part) => {
    const segment = el("span", { class: `part ${part.name}` });
    segment.style.flexGrow = part.bytes / memory.total_bytes;
    return segment;
  }));
  const used = memory.kv_cache_used;
  byId("memory-parts").replaceChildren(...parts.map((part) => {
    const filled = used != null && (part.name === "kv_cache" || part.name === "vllm") ? `, cache ${Math.round(used * 100)} % in use` : "";
    return el("div", {},
      el("dt", {}, el("span", { class: `swatch ${part.name}`, "aria-hidden": "true" }), PARTS[part.name]),
      el("dd", {}, bytes(part.bytes) + filled),
    );
  }));
}

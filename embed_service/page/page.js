// The page at /: asks /stats every two seconds while it is looked at, and /health, which is open, where /stats wants a key.

import { setUpClients, tellClients } from "./clients.js";
import { drawMemory, drawPlots, drawTable, setUpPlots } from "./plots.js";
import { setUpSearch } from "./search.js";
import { Refused, ask, byId, bytes, clock, duration, el, say, setUpKey, showAccess } from "./shared.js";

const EVERY_MS = 2000;
const AFTER_FAILURE_MS = 5000;
const MOST_SAMPLES = 300;

const TITLE = "QMD embed service";
const SENTENCES = { // as routes/page.py has them
  ok: "Both models answer.",
  paused: "Paused: the device is free for something else. Until qmdctl resume, requests wait for a moment and are then refused (503).",
  idle: "Unloaded for idleness. The next request loads the models and waits for them.",
};

let samples = [];
let stats = null;
let health = null;
let askedModels = false;
let denied = false; // by the last /stats, and no other key since
let timer = 0;
let running = false;

function showStatus() {
  const state = health.status;
  byId("status").dataset.state = state;
  say(byId("state"), { ok: "Ready", loading: "Loading", error: "Error", paused: "Paused", idle: "Idle" }[state] || state);
  const progress = health.progress;
  let sentence = SENTENCES[state];
  if (state === "error") sentence = health.error || "The models cannot be served.";
  else if (!sentence) {
    const phase = (health.phase !== "downloading" && progress?.text) || health.phase; // how far a download is, the bar shows
    sentence = `Not ready yet: ${phase}. Requests wait for a while, then are refused (503).`;
  }
  if (progress?.stalled) sentence += " No new byte for a minute: check the network.";
  say(byId("sentence"), sentence);
  const downloading = Boolean(progress?.total_bytes) && (health.phase === "downloading" || state === "error");
  byId("download").hidden = !downloading;
  if (downloading) {
    byId("bar").max = progress.total_bytes;
    byId("bar").value = progress.done_bytes;
    say(byId("bytes"), `${bytes(progress.done_bytes)} of ${bytes(progress.total_bytes)}`);
  }
  const since = [];
  if (stats?.ready_since && state === "ok") {
    since.push(`Ready since ${clock(stats.ready_since, true)} (${duration(Date.now() / 1000 - stats.ready_since)})`);
  }
  if (health.uptime_seconds != null) since.push(`running for ${duration(health.uptime_seconds)}`);
  if (health.engine?.restarts) since.push(`engine started again ${health.engine.restarts}×${health.engine.last_end ? `: ${health.engine.last_end}` : ""}`);
  say(byId("since"), since.join(" · "));
  document.title = state === "ok" ? TITLE : `${byId("state").textContent} · ${TITLE}`;
}

function showFacts() {
  const model = (role) => {
    const found = stats?.models?.[role];
    const name = found?.model || health.models?.[role];
    const more = found ? [found.architecture, found.kind === "embedding" ? `${found.dimensions} dimensions` : found.kind.replace("_", "/"),
      `up to ${found.max_tokens} tokens`].join(", ") : "";
    return [name, more, found?.revision ? `revision ${found.revision.slice(0, 18)}` : ""];
  };
  const engine = health.engine || {};
  const facts = [
    ["Embeddings", ...model("embed")],
    ["Reranking", ...model("rerank")],
    ["Generation", stats ? (stats.generation ? "forwarded to GENERATION_URL" : "not forwarded here") : null],
    ["Device", [health.device, engine.dtype].filter(Boolean).join(", ")],
    ["Executor", [engine.executor, engine.attention && `attention ${engine.attention}`].filter(Boolean).join(", ")],
    ["Prompt policy", health.prompt_policy],
    ["Embedding fingerprint", health.fingerprint],
    ["Started", stats ? clock(stats.started_at, true) : null],
    ["Version", health.version],
  ].filter(([, value]) => value);
  const wanted = JSON.stringify(facts);
  if (byId("facts").dataset.shown === wanted) return;
  byId("facts").dataset.shown = wanted;
  byId("facts").replaceChildren(...facts.map(([name, value, ...more]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value, ...more.filter(Boolean).map((text) => el("span", { class: "muted more" }, text)))),
  ));
}

async function askStats() {
  if (denied) return;
  try {
    const fresh = (await ask(`/stats?after=${samples.at(-1)?.id ?? 0}`)).body;
    if (stats && stats.started_at !== fresh.started_at) samples = []; // another process counts from 1 again: the next answer has all
    else samples = [...samples, ...fresh.samples].slice(-MOST_SAMPLES);
    stats = fresh;
    health = fresh.health;
    tellClients({ oneAddress: fresh.generation });
    showAccess(null);
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 0 || error.status >= 500) throw error;
    denied = true;
    showAccess(error);
    tellClients({ key: error.status === 401 ? true : undefined });
    stats = null;
    samples = [];
  }
}

async function askHealth() {
  if (denied) health = (await ask("/health", { accept: [503] })).body;
  tellClients({ embed: health.models?.embed, rerank: health.models?.rerank });
}

function showNumbers() {
  byId("numbers").hidden = stats === null;
  byId("memory").hidden = !stats?.memory;
  byId("search").hidden = byId("clients").hidden = false;
  if (stats === null) return;
  drawPlots(samples, stats);
  if (stats.memory) drawMemory(stats.memory);
}

/** The name of the generation server's model, for the client configuration: of what is listed, what is not ours. */
async function askModels() {
  if (askedModels || !stats?.generation || health.status !== "ok") return;
  askedModels = true;
  const { body } = await ask("/v1/models");
  const ours = Object.values(health.models);
  tellClients({ generate: body.data.find((entry) => !ours.includes(entry.root))?.id });
}

async function look() {
  if (running) return;
  running = true;
  clearTimeout(timer);
  let wait = EVERY_MS;
  try {
    await setUpClients();
    await askStats();
    await askHealth();
    showStatus();
    showFacts();
    showNumbers();
    await askModels();
  } catch (error) {
    wait = AFTER_FAILURE_MS;
    byId("status").dataset.state = "away";
    say(byId("state"), "No answer");
    say(byId("sentence"), `${error.message} Trying again.`);
    document.title = `No answer · ${TITLE}`;
  } finally {
    running = false;
  }
  if (!document.hidden) timer = setTimeout(look, wait);
}

setUpPlots();
setUpSearch();
setUpKey(() => {
  denied = false;
  askedModels = false;
  look();
});
byId("table-details").addEventListener("toggle", () => drawTable(samples));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
look();

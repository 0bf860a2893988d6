// The box to try a search: the same requests that clients send.

import { ask, byId, el, milliseconds, say } from "./shared.js";

const MOST_TEXTS = 1000; // of one rerank request
const SHOWN = 50;

export function setUpSearch() {
  byId("search-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (byId("run").disabled) return;
    const query = byId("query").value.trim();
    const texts = byId("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
    const way = document.querySelector("input[name=way]:checked").value;
    const problem = !query ? "Write a question first." : !texts.length ? "Write at least one text." :
      texts.length > MOST_TEXTS ? `These are ${texts.length} texts; one search takes up to ${MOST_TEXTS}.` : "";
    byId("search-error").hidden = !problem;
    say(byId("search-error"), problem);
    if (problem) return;
    byId("run").disabled = true;
    byId("search").setAttribute("aria-busy", "true");
    say(byId("search-said"), "Searching…");
    try {
      const started = performance.now();
      const { ranked, timing } = way === "rerank" ? await byReranker(query, texts) : await byCosine(query, texts);
      show(texts, ranked, (performance.now() - started) / 1000, timing);
    } catch (error) {
      byId("answers").replaceChildren();
      say(byId("search-said"), "");
      byId("search-error").hidden = false;
      say(byId("search-error"), error.message);
    } finally {
      byId("run").disabled = false;
      byId("search").removeAttribute("aria-busy");
    }
  });
}

/** [[index, score]…], best first, and the server's own times in milliseconds. */
async function byReranker(query, documents) {
  const { body, response } = await ask("/v1/rerank", { body: { query, documents } });
  return { ranked: body.results.map((r) => [r.index, r.relevance_score]), timing: timingOf(response) };
}

async function byCosine(query, documents) {
  const [asked, found] = await Promise.all([
    ask("/v1/embeddings", { body: { input: [query], input_type: "query" } }),
    ask("/v1/embeddings", { body: { input: documents, input_type: "document" } }),
  ]);
  const target = asked.body.data[0].embedding;
  const scores = found.body.data.map(({ index, embedding }) => [index, embedding.reduce((sum, v, n) => sum + v * target[n], 0)]);
  return { ranked: scores.sort(([, a], [, b]) => b - a), timing: timingOf(found.response) };
}

function timingOf(response) {
  const header = response.headers.get("server-timing") || "";
  return header.split(",").map((part) => part.trim().match(/^(\w+);dur=([\d.]+)/)).filter(Boolean).map(([, name, ms]) => [name, Number(ms)]);
}

function show(texts, ranked, seconds, timing) {
  const inside = timing.map(([name, ms]) => `${name} ${milliseconds(ms / 1000)}`).join(", ");
  say(byId("search-said"), `${ranked.length} texts ranked in ${milliseconds(seconds)}${inside ? `; on the server: ${inside}` : ""}.` +
    (ranked.length > SHOWN ? ` The best ${SHOWN} are shown.` : ""));
  const most = Math.max(...ranked.map(([, score]) => Math.abs(score)), 1e-9);
  byId("answers").replaceChildren(...ranked.slice(0, SHOWN).map(([index, score]) => {
    const bar = el("span", { class: "fill" });
    bar.style.width = `${Math.max(0, (score / most) * 100)}%`;
    return el("li", {},
      el("p", {}, texts[index]),
      el("p", { class: "score" }, el("span", { class: "meter", "aria-hidden": "true" }, bar), el("span", {}, `score ${score.toFixed(4)}`)),
    );
  }));
}

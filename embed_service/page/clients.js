// The configuration of QMD clients for this very address. The templates are those of `qmdctl client`.

import { ask, byId, el, say, storedKey } from "./shared.js";

const VARIABLE = "QMD_API_KEY";
let clients = {};
const known = { embed: "", rerank: "", generate: "Qwen/Qwen3-4B", oneAddress: false, key: false };

export async function setUpClients() {
  if (Object.keys(clients).length) return;
  clients = (await ask("/page/clients.json")).body;
  byId("client").append(...Object.entries(clients).map(([name, client]) => el("option", { value: name }, client.title)));
  byId("generate").value = guessed();
  byId("client").addEventListener("change", draw);
  byId("generate").addEventListener("input", draw);
  byId("copy").addEventListener("click", copy);
  draw();
}

/** What is known by now: {embed, rerank, generate, oneAddress, key}; fields that are undefined stay. */
export function tellClients(facts) {
  const before = JSON.stringify(known);
  for (const [name, value] of Object.entries(facts)) if (value !== undefined) known[name] = value;
  if (JSON.stringify(known) !== before && Object.keys(clients).length) draw();
}

/** Where vLLM would be by the stack's own names. */
function guessed() {
  const here = new URL(location.origin);
  if (here.hostname.startsWith("qmd-embed.")) return here.origin.replace("qmd-embed.", "qmd-vllm.");
  return `http://${here.hostname}:8000`;
}

const quotedForShell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
const WORDS = /^(true|false|yes|no|on|off|null|y|n)$/i; // which YAML would not read as text
const quotedForYaml = (text) => (/^[A-Za-z][\w./:@-]*[\w/]$/.test(text) && !WORDS.test(text) ? text : JSON.stringify(text));

export function render(client, values) {
  const quoted = client.format === "yaml" ? quotedForYaml : quotedForShell;
  const template = (values.oneAddress && client.one_url) || client.template;
  const words = {
    embed: quoted(values.address), generate: quoted(values.generateAddress), embed_model: quoted(values.embed),
    rerank_model: quoted(values.rerank), generate_model: quoted(values.generate), key: values.key ? `"$${VARIABLE}"` : "any", variable: VARIABLE,
  };
  return (template + (values.key ? client.key || "" : "")).replaceAll(/@(\w+)@/g, (whole, name) => words[name] ?? whole);
}

function draw() {
  const client = clients[byId("client").value];
  const needed = !known.oneAddress && client.template.includes("@generate@");
  byId("generate-field").hidden = !needed;
  const generateAddress = known.oneAddress ? location.origin : byId("generate").value.trim().replace(/\/+$/, "");
  const key = known.key || Boolean(storedKey());
  say(byId("config"), render(client, { ...known, address: location.origin, generateAddress, key }));
  say(byId("copied"), "");
  const notes = [...(client.notes || [])];
  if (client.only_one_url && !known.oneAddress) notes.unshift("GENERATION_URL is not set here, so this client cannot expand queries.");
  if (key) notes.push(`Put your key into the environment variable ${VARIABLE}.`);
  byId("notes").replaceChildren(...notes.map((note) => el("li", {}, note)));
}

async function copy() {
  const text = byId("config").textContent;
  try {
    await navigator.clipboard.writeText(text); // only over https and on loopback
    say(byId("copied"), "Copied.");
  } catch {
    const range = document.createRange();
    range.selectNodeContents(byId("config"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    let done = false;
    try {
      done = document.execCommand("copy");
    } catch {
      // gone from this browser
    }
    say(byId("copied"), done ? "Copied." : "Selected: press Ctrl+C or Cmd+C.");
    if (!done) byId("config").focus();
  }
}

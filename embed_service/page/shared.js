// What both pages use: elements without markup from strings, the key of this tab, requests, numbers as words.

const KEY = "qmd-api-key";
const LOOK_MS = 10_000;
const COMPUTE_MS = 300_000; // far above REQUEST_DEADLINE_SECONDS, after which the server itself says why

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a string child becomes text, never markup. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** Change a text only where it differs, so that screen readers hear changes alone. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export class Refused extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function storedKey() {
  try {
    return sessionStorage.getItem(KEY) || "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

/** Ask this server. Resolves to {body, response}; throws Refused with the server's sentence, or with status 0 where it does not answer.
 *  `body` is sent as JSON by POST, for which the server may take as long as its own limit for a request. */
export async function ask(path, { body, accept = [] } = {}) {
  const headers = {};
  const key = storedKey();
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  let answer = null;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(body === undefined ? LOOK_MS : COMPUTE_MS), // a box that vanished ends no connection
    });
    answer = await response.json();
  } catch (error) {
    // What is not JSON is an answer all the same: a proxy's page, for example.
    if (error.name !== "SyntaxError") throw new Refused(0, "The server does not answer. Is it running, and is this computer connected?");
  }
  if ((response.ok || accept.includes(response.status)) && answer !== null) return { body: answer, response };
  const error = answer?.error;
  const message = (typeof error === "object" && error?.message) || answer?.detail;
  throw new Refused(response.status, message || `The server answered ${response.status} without saying why.`, error?.code);
}

/** The form that asks for a key. `changed` is called when there is another one, or none any more. */
export function setUpKey(changed) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const value = byId("key").value.trim();
    if (!value) return;
    if (/[^\x21-\x7e]/.test(value)) {
      say(byId("access-sentence"), "A key has no spaces and only plain letters, digits and signs. Copy it again.");
      return;
    }
    try {
      sessionStorage.setItem(KEY, value);
    } catch {
      say(byId("access-sentence"), "This browser keeps nothing for this page, so a key cannot be used here.");
      return;
    }
    byId("key").value = "";
    changed();
  });
  byId("forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    changed();
    byId("access").scrollIntoView({ block: "nearest" });
  });
}

/** Show how access stands: an error of `ask`, or null where the server let us in. Returns whether it did. */
export function showAccess(error) {
  const denied = error?.status === 401 || error?.status === 403;
  const key = storedKey();
  byId("access").hidden = !denied && !key;
  byId("key-form").hidden = error?.status !== 401;
  byId("forget").hidden = !key;
  if (error?.code === "missing_api_key") say(byId("access-sentence"), "This server wants an API key. Its owner makes one with qmdctl keys add.");
  else if (denied) say(byId("access-sentence"), error.message);
  else if (key) say(byId("access-sentence"), "This tab uses an API key.");
  return !denied;
}

export function number(value) {
  if (value == null) return "–";
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  if (value >= 100 || Number.isInteger(value)) return String(Math.round(value));
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function milliseconds(seconds) {
  if (seconds == null) return "–";
  const ms = seconds * 1000;
  return ms >= 10_000 ? `${seconds.toFixed(1)} s` : `${ms >= 100 ? Math.round(ms) : Number(ms.toPrecision(2))} ms`;
}

export function bytes(value) {
  return value >= 1e9 ? `${(value / 1e9).toFixed(value >= 1e11 ? 0 : 1)} GB` : `${Math.round(value / 1e6)} MB`;
}

export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${total} s`;
}

export function clock(seconds, withDay = false) {
  const options = { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };
  if (withDay) Object.assign(options, { day: "numeric", month: "short" });
  return new Date(seconds * 1000).toLocaleString("en-GB", options);
}

// The API reference at /docs: /openapi.json as a page, without a library.

import { ask, byId, el, say, setUpKey, showAccess } from "./shared.js";

let definitions = {};

const resolved = (schema) => {
  let found = schema || {};
  while (found.$ref) found = definitions[found.$ref.split("/").at(-1)] || {};
  return found;
};
const nameOf = (schema) => schema?.$ref?.split("/").at(-1);

/** "string or list of strings or null" */
function typeOf(schema) {
  const name = nameOf(schema);
  const inner = resolved(schema);
  if (inner.const !== undefined) return JSON.stringify(inner.const);
  if (inner.enum) return inner.enum.map((value) => JSON.stringify(value)).join(" or ");
  const choices = inner.anyOf || inner.oneOf;
  if (choices) return [...new Set(choices.map(typeOf))].join(" or ");
  if (inner.type === "array") return `list of ${inner.items ? typeOf(inner.items) : "values"}`;
  if (name && inner.properties) return name;
  return inner.type || "any value";
}

/** Bounds, from wherever in the alternatives they stand. */
function limitsOf(schema) {
  const inner = resolved(schema);
  const words = [];
  const add = (key, text) => {
    if (inner[key] !== undefined) words.push(`${text} ${inner[key]}`);
  };
  add("minimum", "at least"), add("maximum", "at most"), add("exclusiveMinimum", "above"), add("minItems", "items: at least");
  add("maxItems", "items: at most"), add("maxLength", "characters: at most");
  for (const choice of inner.anyOf || inner.oneOf || []) words.push(...limitsOf(choice));
  return [...new Set(words)];
}

/** Schemas with fields that a schema leads to: itself, its alternatives, what its lists hold. */
function objectsOf(schema, seen = new Set()) {
  const inner = resolved(schema);
  if (seen.has(inner)) return [];
  seen.add(inner);
  if (inner.properties) return [[nameOf(schema) || inner.title || "Object", inner]];
  return [...(inner.anyOf || inner.oneOf || []), ...(inner.items ? [inner.items] : [])].flatMap((next) => objectsOf(next, seen));
}

function fieldTable(schema, label) {
  const required = new Set(schema.required || []);
  const rows = Object.entries(schema.properties).map(([name, field]) => {
    const said = [field.description || resolved(field).description || "", limitsOf(field).join(", ")].filter(Boolean).join(" ");
    const unless = field.default !== undefined && field.default !== null ? ` Default: ${JSON.stringify(field.default)}.` : "";
    return el("tr", {}, el("th", { scope: "row" }, el("code", {}, name)),
      el("td", {}, el("span", { class: "type" }, typeOf(field) + (required.has(name) ? ", required" : ""))), el("td", {}, said + unless));
  });
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, ...["Field", "Type", "What"].map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...rows)));
}

/** Tables of a schema and, folded, of the schemas that its fields lead to. */
function tables(schema, label, seen = new Set()) {
  const parts = [];
  for (const [name, object] of objectsOf(schema)) {
    if (seen.has(name)) continue;
    seen.add(name);
    if (object.description) parts.push(el("p", { class: "muted" }, object.description));
    parts.push(fieldTable(object, `${label}: ${name}`));
    for (const field of Object.values(object.properties)) {
      for (const [inner] of objectsOf(field)) {
        if (seen.has(inner)) continue;
        parts.push(el("details", { class: "nested" }, el("summary", {}, inner), ...tables(field, label, seen)));
      }
    }
  }
  return parts;
}

function exampleOf(path, method, content) {
  const lines = [`curl ${location.origin}${path}`];
  if (document.body.dataset.keyed) lines.push(`  -H "Authorization: Bearer $QMD_API_KEY"`);
  if (method === "post") {
    if (!content?.example) return null;
    lines.push("  -H 'Content-Type: application/json'", `  -d '${JSON.stringify(content.example).replaceAll("'", `'"'"'`)}'`);
  }
  return lines.join(" \\\n");
}

const anchorOf = (path) => `op${path.replaceAll(/[^\w]/g, "-")}`;

function operation(path, method, described, others) {
  const parts = [el("h2", { id: `${anchorOf(path)}-title` }, el("span", { class: `method ${method}` }, method.toUpperCase()), path), el("p", {}, described.summary)];
  if (others.length) parts.push(el("p", { class: "muted" }, `Also at ${others.join(", ")}.`));
  const content = described.requestBody?.content?.["application/json"];
  const example = exampleOf(path, method, content);
  if (example) parts.push(el("h3", {}, "Example"), el("pre", { tabindex: "0", role: "region", "aria-label": `Example: ${path}` }, example));
  if (described.parameters) {
    parts.push(el("h3", {}, "Parameters"), fieldTable({
      properties: Object.fromEntries(described.parameters.map((p) => [p.name, { ...p.schema, description: `(${p.in}) ${p.description}` }])),
    }, `Parameters of ${path}`));
  }
  if (content) parts.push(el("h3", {}, "Request"), ...tables(content.schema, `Request to ${path}`));
  const answer = described.responses["200"];
  const schema = answer.content?.["application/json"]?.schema;
  const fields = schema ? tables(schema, `Answer of ${path}`) : [];
  if (fields.length) parts.push(el("details", {}, el("summary", {}, "Answer"), ...fields));
  else parts.push(el("p", { class: "muted" }, `Answers ${Object.keys(answer.content || {}).join(" or ")}.`));
  const errors = Object.entries(described.responses).filter(([status]) => status !== "200").map(([status, response]) =>
    el("tr", {}, el("th", { scope: "row" }, status), el("td", {}, response.description)));
  parts.push(el("details", {}, el("summary", {}, "Errors"), el("table", {}, el("tbody", {}, ...errors))));
  return el("section", { class: "card operation", id: anchorOf(path), "aria-labelledby": `${anchorOf(path)}-title` }, ...parts);
}

function draw(openapi) {
  definitions = openapi.components.schemas;
  if (openapi.components.securitySchemes) document.body.dataset.keyed = "yes";
  // Another name of an operation has its request, its answer and its summary with a remark behind it.
  const groups = [];
  for (const [path, methods] of Object.entries(openapi.paths)) {
    const [method, described] = Object.entries(methods)[0];
    const base = described.summary.replace(/ \(another name of (\S+)\)$/, "");
    const main = base === described.summary ? null : groups.find((group) => group.described.summary === base);
    if (main) main.others.push(path);
    else groups.push({ path, method, described, others: [] });
  }
  byId("contents").replaceChildren(el("ul", {}, ...groups.map(({ path, method }) =>
    el("li", {}, el("a", { href: `#${anchorOf(path)}` }, el("span", { class: `method ${method}` }, method.toUpperCase()), path)))));
  byId("contents").hidden = false;
  byId("operations").replaceChildren(...groups.map(({ path, method, described, others }) => operation(path, method, described, others)));
  say(byId("said"), `Version ${openapi.info.version}. ${openapi.info.description}`);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

async function load() {
  try {
    draw((await ask("/openapi.json")).body);
    showAccess(null);
  } catch (error) {
    byId("contents").hidden = true;
    byId("operations").replaceChildren();
    if (showAccess(error)) say(byId("said"), error.message);
    else say(byId("said"), "");
  }
}

setUpKey(load);
await load();

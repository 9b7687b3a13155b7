"use strict";
// Shows /openapi.json, and sends requests from its examples. Every text is set as text, never as markup.

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
};

const keyField = document.getElementById("key");
const anchor = (method, path) => `${method}-${path}`.replace(/[^a-zA-Z0-9]+/g, "-");

const typeOf = (schema) => {
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.oneOf) return schema.oneOf.map(typeOf).join(" | ");
  if (schema.type === "array") return `list of ${typeOf(schema.items || {})}`;
  const bounds = [];
  if (schema.minimum !== undefined) bounds.push(`from ${schema.minimum}`);
  if (schema.maximum !== undefined) bounds.push(`to ${schema.maximum}`);
  return [schema.type || "any", ...bounds].join(" ");
};

const fields = (schema) => {
  const rows = Object.entries(schema.properties || {}).map(([name, field]) => {
    const needed = (schema.required || []).includes(name);
    const fallback = field.default === undefined ? null : make("div", { className: "status" }, `default ${JSON.stringify(field.default)}`);
    return make("tr", {},
      make("td", {}, make("code", {}, name), needed ? make("div", { className: "needed" }, "needed") : null),
      make("td", {}, typeOf(field), fallback),
      make("td", {}, field.description || ""));
  });
  return make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "Field"), make("th", {}, "Type"), make("th", {}, "What it does"))), make("tbody", {}, ...rows));
};

const tryIt = (method, path, operation, schema) => {
  const status = make("span", { className: "status" });
  status.setAttribute("role", "status");
  const answer = make("pre", { hidden: true });
  const send = make("button", { type: "button" }, "Send");
  const stop = make("button", { type: "button", className: "quiet", hidden: true }, "Stop");
  const parameters = (operation.parameters || []).filter((parameter) => parameter.in === "path").map((parameter) => {
    const input = make("input", { value: parameter.example || "" });
    return { name: parameter.name, input, shown: make("label", { className: "key" }, parameter.name, input) };
  });
  let body = null;
  if (schema) {
    body = make("textarea", { value: JSON.stringify(schema.example || {}, null, 2), spellcheck: false });
    body.setAttribute("aria-label", "Request body");
  }
  let controller = null;
  stop.addEventListener("click", () => controller && controller.abort());
  send.addEventListener("click", async () => {
    controller = new AbortController();
    send.disabled = true;
    stop.hidden = false;
    answer.hidden = false;
    answer.textContent = "";
    status.className = "status";
    status.textContent = "Waiting…";
    const began = performance.now();
    try {
      const headers = {};
      if (keyField.value) headers.Authorization = `Bearer ${keyField.value.trim()}`;
      if (body) headers["Content-Type"] = "application/json";
      let target = path;
      for (const parameter of parameters) target = target.replace(`{${parameter.name}}`, encodeURI(parameter.input.value));
      const response = await fetch(target, { method: method.toUpperCase(), headers, body: body ? body.value : undefined, signal: controller.signal });
      status.className = response.ok ? "status" : "status bad";
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        text += decoder.decode(value, { stream: true });
        answer.textContent = text;
      }
      if ((response.headers.get("content-type") || "").includes("json")) {
        try { answer.textContent = JSON.stringify(JSON.parse(text), null, 2); } catch (_) { /* shown as it came */ }
      }
      status.textContent = `${response.status} in ${Math.round(performance.now() - began)} ms`;
    } catch (error) {
      status.className = "status bad";
      status.textContent = error.name === "AbortError" ? "Stopped" : `Failed: ${error.message}`;
    }
    send.disabled = false;
    stop.hidden = true;
  });
  return make("div", {}, make("h3", {}, "Try it"), ...parameters.map((parameter) => parameter.shown), body, make("div", { className: "row" }, send, stop, status), answer);
};

const show = (description) => {
  document.getElementById("version").textContent = description.info.version;
  document.getElementById("about").textContent = description.info.description;
  const groups = new Map();
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = (operation.tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push({ path, method, operation });
    }
  }
  const contents = document.getElementById("contents");
  const endpoints = document.getElementById("endpoints");
  for (const [tag, operations] of groups) {
    contents.append(make("h2", {}, tag));
    const section = make("section", {}, make("h2", {}, tag));
    for (const { path, method, operation } of operations) {
      const id = anchor(method, path);
      const link = make("a", { href: `#${id}` }, path);
      const schema = operation.requestBody?.content["application/json"]?.schema ?? null;
      const card = make("details", { id },
        make("summary", {}, make("span", { className: `method ${method}` }, method.toUpperCase()), make("code", {}, path), make("span", { className: "what" }, operation.summary || "")),
        make("div", { className: "inside" }, make("p", {}, operation.description || ""), schema ? fields(schema) : null, tryIt(method, path, operation, schema)));
      link.addEventListener("click", () => { card.open = true; });
      contents.append(link);
      section.append(card);
    }
    endpoints.append(section);
  }
  const wanted = document.getElementById(location.hash.slice(1));
  if (wanted) { wanted.open = true; wanted.scrollIntoView(); }
};

const about = document.getElementById("about");
let shown = false;
const load = async () => {
  const key = keyField.value.trim();
  try {
    const response = await fetch("/openapi.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (shown) return;
    if (response.ok) {
      show(await response.json());
      shown = true;
    } else {
      about.textContent = response.status === 401 ? "Enter an API key to load the description of this API." : `The description could not be loaded: status ${response.status}`;
    }
  } catch (error) {
    about.textContent = `The description could not be loaded: ${error.message}`;
  }
};
keyField.addEventListener("change", () => { if (!shown) load(); });
load();

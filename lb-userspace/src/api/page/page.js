"use strict";
// Everything that came from a user (names, reasons) goes into the page as text, never as markup.

const byId = (id) => document.getElementById(id);
const mayChange = document.body.dataset.right === "admin";
const SHOWN = 50;        // services drawn at once; the filter finds the others
const LINES = 8;         // backends a chart draws, the busiest
const KEPT = 300;        // seconds of history
const WIDTH = 1000;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "role") element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
function draw(tag, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
function say(element, text) { if (element.textContent !== text) element.textContent = text; }
function count(n) { return n.toLocaleString("en"); }
function scaled(n) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (n >= size) return (n / size).toFixed(1) + " " + unit;
  return String(Math.round(n));
}
function span(seconds) {
  if (seconds === null || seconds === undefined) return "no limit";
  const s = Math.round(seconds);
  if (seconds < 10) return (Math.round(seconds * 10) / 10) + " s";
  if (s < 120) return s + " s";
  if (s < 7200) return Math.floor(s / 60) + " min" + (s % 60 && s < 600 ? " " + (s % 60) + " s" : "");
  return Math.round(s / 360) / 10 + " h";
}
const TONE = { active: "good", draining: "busy", unhealthy_draining: "busy", drained: "rest", initial: "rest", unhealthy: "bad" };
const colour = (index) => `var(--c${index % 8})`;

// --- one service

class Service {
  constructor(name) {
    this.name = name;
    this.rows = new Map();
    this.history = new Map();
    this.title = make("h2", {}, name);
    this.vip = make("span", { className: "vip" });
    this.settings = make("span", { className: "soft" });
    this.chart = draw("svg", { class: "chart", role: "img", viewBox: `0 0 ${WIDTH} 150`, preserveAspectRatio: "none" });
    this.body = make("tbody");
    const heads = ["Backend", "State", "Flows", "New/s", "Bytes/s", "Weight", "Drain"].concat(mayChange ? [""] : []);
    const cells = heads.map((text, i) => make("th", { scope: "col", className: i > 1 && i < 6 ? "number" : "" }, text || make("span", { className: "skip" }, "Do")));
    const table = make("table", { "aria-label": `Backends of ${name}` }, make("thead", {}, make("tr", {}, ...cells)), this.body);
    this.curve = draw("svg", { class: "chart curve", role: "img", viewBox: `0 0 ${WIDTH} 170`, preserveAspectRatio: "none" });
    this.advice = make("p", { className: "small" });
    this.details = make("details", {}, make("summary", {}, "How long should a drain take?"), this.curve, this.advice);
    this.details.addEventListener("toggle", () => this.advise());
    this.card = make("section", { className: "card", "aria-label": `Service ${name}` },
      make("div", { className: "head" }, this.title, this.vip, this.settings), this.chart, table, this.details);
  }

  update(service, now) {
    say(this.vip, service.vip);
    const limit = service.drain_timeout_s === null ? "no drain deadline" : `drains take ${span(service.drain_timeout_s)} at most, then ${service.on_drain_timeout}`;
    const active = service.backends.filter((b) => b.state === "active").length;
    say(this.settings, `${service.forward} · ${active} of ${service.backends.length} active · ${limit}`);
    const names = new Set();
    service.backends.forEach((backend, index) => {
      names.add(backend.name);
      let row = this.rows.get(backend.name);
      if (!row) {
        row = new Row(service.name, backend.name, colour(index));
        this.rows.set(backend.name, row);
        this.body.append(row.element);
      }
      row.update(backend, now);
      const points = this.history.get(backend.name) || [];
      points.push([now, backend.active_flows]);
      while (points.length && points[0][0] < now - KEPT) points.shift();
      this.history.set(backend.name, points);
    });
    for (const [name, row] of this.rows) if (!names.has(name)) { row.element.remove(); this.rows.delete(name); this.history.delete(name); }
    this.plot(service, now);
  }

  plot(service, now) {
    const begin = Math.min(now - 60, ...[...this.history.values()].map((points) => points[0][0]));
    const drawn = service.backends.map((backend, index) => ({ backend, index }))
      .sort((a, b) => (b.backend.drain ? 1e12 : b.backend.active_flows) - (a.backend.drain ? 1e12 : a.backend.active_flows)).slice(0, LINES);
    const top = Math.max(4, ...drawn.flatMap(({ backend }) => this.history.get(backend.name).map((p) => p[1])));
    const x = (t) => 44 + (t - begin) / (now - begin) * (WIDTH - 50);
    const y = (n) => 128 - n / top * 116;
    const parts = [0, 0.5, 1].map((share) => draw("line", { class: "grid", x1: 44, x2: WIDTH, y1: y(top * share), y2: y(top * share) }));
    for (const { backend, index } of drawn.reverse()) {
      const points = this.history.get(backend.name).map(([t, n]) => `${x(t).toFixed(1)} ${y(n).toFixed(1)}`);
      const path = draw("path", { d: "M" + points.join("L"), class: backend.drain ? "draining" : "" });
      path.style.stroke = colour(index);
      parts.push(path);
    }
    this.chart.replaceChildren(...parts);
    labels(this.chart, [[0, 128, "0"], [0, 12, scaled(top)], [WIDTH, 146, "now"], [44, 146, `${span(now - begin)} ago`]]);
    this.chart.setAttribute("aria-label", "Live flows: " + service.backends.slice(0, 20).map((b) => `${b.name} ${b.active_flows}`).join(", "));
  }

  async advise() {
    if (!this.details.open) return;
    const advice = await ask("GET", `/v1/services/${encodeURIComponent(this.name)}/advice`);
    if (!advice) return;
    const share = (p) => advice.percentiles.find((q) => q.percent === p)?.at_most_s;
    const known = share(99) === null || share(99) === undefined ? "longer than was seen" : span(share(99));
    const wish = advice.recommended_s === null ? "nothing can be recommended yet" : `recommended: ${span(advice.recommended_s)}`;
    say(this.advice, `${count(advice.ended_flows)} flows seen to end. 99 % last at most: ${known}; ${wish}; now: ${span(advice.drain_timeout_s)}. ${advice.limits.join("; ")}.`);
    const points = [{ after_s: 0.1, share: 1 }, ...advice.curve];
    const most = Math.max(10, advice.drain_timeout_s || 0, advice.recommended_s || 0, ...points.map((p) => p.after_s)) * 1.2;
    const x = (s) => 44 + Math.log(Math.max(s, 0.1) / 0.1) / Math.log(most / 0.1) * (WIDTH - 50);
    const y = (share) => 140 - share * 126;
    const parts = [0, 0.5, 1].map((s) => draw("line", { class: "grid", x1: 44, x2: WIDTH, y1: y(s), y2: y(s) }));
    let d = `M${x(0.1)} ${y(1)}`, last = 1;
    for (const p of points) { d += `L${x(p.after_s).toFixed(1)} ${y(last).toFixed(1)}L${x(p.after_s).toFixed(1)} ${y(p.share).toFixed(1)}`; last = p.share; }
    const path = draw("path", { d });
    path.style.stroke = colour(0);
    parts.push(path);
    const marks = [];
    for (const [seconds, word] of [[advice.drain_timeout_s, "now"], [advice.recommended_s, "recommended"]]) {
      if (seconds) { parts.push(draw("line", { class: "mark", x1: x(seconds), x2: x(seconds), y1: 14, y2: 140 })); marks.push([x(seconds), 10, word]); }
    }
    for (const s of [0.1, 1, 10, 60, 600, 3600]) if (s < most) marks.push([x(s), 160, span(s)]);
    this.curve.replaceChildren(...parts);
    labels(this.curve, [[0, 140, "0 %"], [0, 20, "100 %"], ...marks]);
    this.curve.setAttribute("aria-label", `Share of flows that go on after so long. ${this.advice.textContent}`);
  }
}

// The drawings are stretched to the page's width; their words are not.
function labels(svg, texts) {
  const stretch = (svg.clientWidth || WIDTH) / WIDTH;
  for (const [x, y, text] of texts) {
    const anchor = x === 0 ? "start" : x > WIDTH - 60 ? "end" : x === 44 ? "start" : "middle";
    svg.append(draw("text", { transform: `translate(${x} ${y}) scale(${1 / stretch} 1)`, "text-anchor": anchor }, text));
  }
}

class Row {
  constructor(service, name, stroke) {
    this.path = `/v1/services/${encodeURIComponent(service)}/backends/${encodeURIComponent(name)}`;
    this.name = name;
    const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
    swatch.style.background = stroke;
    this.address = make("div", { className: "small" });
    this.state = make("span", { className: "state" });
    this.reason = make("div", { className: "small" });
    this.cells = ["Flows", "New/s", "Bytes/s", "Weight"].map((label) => make("td", { className: "number", "data-label": label }));
    this.fill = make("i");
    this.bar = make("div", { className: "bar", role: "progressbar", "aria-label": `Drain of ${name}`, "aria-valuemin": 0, "aria-valuemax": 100 }, this.fill);
    this.text = make("div", { className: "small" });
    this.button = make("button", { type: "button" });
    this.button.addEventListener("click", () => this.press());
    this.element = make("tr", {}, make("td", {}, make("div", { className: "name" }, swatch, name), this.address),
      make("td", {}, this.state, this.reason), ...this.cells, make("td", { className: "progress wide" }, this.bar, this.text));
    if (mayChange) this.element.append(make("td", { className: "wide" }, this.button));
  }

  update(backend, now) {
    say(this.address, backend.address);
    say(this.state, backend.state.replace("_", ", "));
    this.state.className = "state " + (TONE[backend.state] || "rest");
    say(this.reason, backend.state === "active" ? "" : backend.reason);
    const past = this.past, seconds = past ? Math.max(now - past.now, 0.2) : 1;
    const rate = (key) => past ? scaled(Math.max(0, backend[key] - past.backend[key]) / seconds) : "–";
    [count(backend.active_flows), rate("new_flows_total"), rate("bytes_total"), count(backend.weight)].forEach((text, i) => say(this.cells[i], text));
    this.past = { backend, now };
    const { drain, last_drain: last } = backend;
    this.bar.hidden = !drain;
    if (drain) {
      const done = drain.initial_flows ? Math.max(0, 100 - 100 * drain.remaining_flows / drain.initial_flows) : 100;
      this.fill.style.width = done + "%";
      this.bar.setAttribute("aria-valuenow", Math.round(done));
      const held = drain.hold ? "held for its hook; " : "";
      const left = drain.remaining_s === null ? "no deadline" : `${span(drain.remaining_s)} to the deadline`;
      say(this.text, `${held}${count(drain.remaining_flows)} of ${count(drain.initial_flows)} flows left, ${left}`);
    } else {
      say(this.text, last ? `last: ${last.outcome}, ${last.cut_flows ? count(last.cut_flows) + " cut" : "none cut"}` : "");
    }
    this.verb = ["draining", "drained"].includes(backend.state) ? "activate" : "drain";
    say(this.button, this.verb === "drain" ? "Drain" : "Activate");
    this.button.setAttribute("aria-label", `${this.button.textContent} ${this.name}`);
  }

  async press() {
    const question = this.verb === "drain" ? `Drain ${this.name}? It gets no new flow; its ${count(this.past.backend.active_flows)} live ones may finish.`
      : `Activate ${this.name}? A drain that runs is cancelled.`;
    const verb = this.verb;
    if (await confirmed(question)) { await ask("POST", `${this.path}/${verb}`, verb === "drain" ? {} : undefined); refresh(); }
  }
}

function confirmed(question) {
  const dialog = byId("ask");
  say(byId("question"), question);
  dialog.showModal();
  return new Promise((answer) => {
    byId("yes").onclick = () => { answer(true); dialog.close(); };
    byId("no").onclick = () => dialog.close();
    dialog.onclose = () => answer(false);
  });
}

// --- the daemon

let alertTimer;
function complain(text) {
  say(byId("alert"), text);
  clearTimeout(alertTimer);
  alertTimer = setTimeout(() => say(byId("alert"), ""), 8000);
}
async function ask(method, path, body) {
  try {
    const answer = await fetch(path, { method, headers: body ? { "content-type": "application/json" } : {}, body: body && JSON.stringify(body) });
    const json = await answer.json();
    if (answer.ok) return json;
    complain(json.error.message);
  } catch (error) {
    if (method !== "GET") complain(`The daemon did not answer: ${error.message}`);
  }
  return undefined;
}

const services = new Map();
let latest;
function connection(state, text) { byId("link").dataset.state = state; say(byId("link"), text); }

async function refresh() {
  const status = await ask("GET", "/v1/status");
  if (!status) return connection("lost", "the daemon does not answer");
  connection("live", mayChange ? "live" : "live, read-only");
  latest = status;
  show();
}

function show() {
  const now = performance.now() / 1000;
  const wanted = byId("filter").value.toLowerCase();
  const fitting = latest.services.filter((s) => !wanted || s.name.toLowerCase().includes(wanted) || s.backends.some((b) => b.name.toLowerCase().includes(wanted)));
  const shown = fitting.slice(0, SHOWN);
  const names = new Set(shown.map((s) => s.name));
  for (const [name, service] of services) if (!names.has(name)) { service.card.remove(); services.delete(name); }
  for (const service of shown) {
    if (!services.has(service.name)) {
      services.set(service.name, new Service(service.name));
      byId("list").append(services.get(service.name).card);
    }
    services.get(service.name).update(service, now);
  }
  const all = latest.services.length;
  say(byId("count"), shown.length < all ? `${shown.length} of ${count(all)} services` : all ? "" : "There is no service yet: ebb service add");
  const { flows, interfaces } = latest.datapath;
  const draining = latest.services.flatMap((s) => s.backends).filter((b) => b.drain).length;
  const facts = [["Live flows", count(flows.live)], ["Services", count(all)], ["Drains running", count(draining)],
    ["Table", `${(100 * (flows.live + flows.opening + flows.closing) / Math.max(1, flows.capacity)).toFixed(1)} % of ${scaled(flows.capacity)}`],
    ["Interfaces", interfaces.map((i) => `${i.name} (${i.mode})`).join(", ")]];
  if (flows.untracked) facts.push(["Untracked", count(flows.untracked)]);
  byId("facts").replaceChildren(...facts.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value))));
}

function happened(event) {
  const target = [event.service, event.backend].filter(Boolean).join("/");
  const state = event.from && event.state ? `${event.from} → ${event.state}. ` : "";
  const end = event.last_drain ? `${event.last_drain.outcome}, ${count(event.last_drain.cut_flows)} cut. ` : "";
  const at = new Date(event.at);
  const item = make("li", {}, make("time", { dateTime: event.at, title: event.at }, at.toLocaleTimeString([], { hour12: false })), make("span", {}, target || "–"),
    make("span", {}, `${event.kind.replaceAll("_", " ")}: ${state}${end}${event.reason || ""}`.replace(/: $/, "")));
  byId("events").prepend(item);
  while (byId("events").children.length > 20) byId("events").lastChild.remove();
}

byId("filter").addEventListener("input", () => latest && show());
document.addEventListener("keydown", (key) => {
  if (key.key === "/" && key.target.tagName !== "INPUT") { key.preventDefault(); byId("filter").focus(); }
});
const events = new EventSource("/v1/events?follow=true");
events.onmessage = (message) => { happened(JSON.parse(message.data)); };
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 1000);
const adviseAll = () => { for (const service of services.values()) service.advise(); };
setInterval(adviseAll, 15000);
addEventListener("resize", adviseAll);

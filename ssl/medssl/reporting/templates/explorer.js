"use strict";
// Everything on the page comes from this object; nothing is fetched.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const unpack = (text, kind) => new kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const n = data.n, patient = unpack(data.patient, Uint32Array);
const maps = data.maps.map((m) => ({...m, x: unpack(m.x, Float32Array), y: unpack(m.y, Float32Array), placed: unpack(m.placed, Float32Array)}));
const columns = data.columns.map((c) => c.numbers ? {...c, numbers: unpack(c.numbers, Float32Array)} : {...c, codes: unpack(c.codes, Uint32Array)});
const near = Object.fromEntries(Object.entries(data.neighbours).map(([name, found]) => [name, {k: found.k, rows: unpack(found.rows, Int32Array), distances: unpack(found.distances, Float32Array)}]));
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
// Columns with one value stand among the facts of a scan and colour nothing.
const colourable = columns.filter((c) => c.numbers || c.values.length > 1);
const state = {map: 0, colour: 0, chosen: -1, selected: null, hidden: new Set(), dim: 0, same: false, drag: "pan", drawn: 0, dark: matchMedia("(prefers-color-scheme: dark)").matches};
const size = n < 400 ? 9 : n < 4000 ? 6 : n < 15000 ? 4 : 3;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const make = (tag, words = "", kind = "") => { const made = document.createElement(tag); made.textContent = words; if (kind) made.className = kind; return made; };
const show = (v) => Number.isInteger(v) ? String(v) : String(Number(v.toPrecision(4)));

function value(column, i) {
  return column.numbers ? (Number.isNaN(column.numbers[i]) ? "" : show(column.numbers[i])) : column.values[column.codes[i]];
}

// ---- pictures -------------------------------------------------------------------------------------------------------------
const sheets = new Map();
function sheet(number) {
  if (!sheets.has(number)) {
    const image = new Image();
    image.src = "data:image/webp;base64," + data.pictures.sheets[number];
    sheets.set(number, image);
  }
  return sheets.get(number);
}
function picture(i, most, kind = "") {
  const {width, height, across} = data.pictures, per = across * across, image = sheet(Math.floor(i / per)), at = i % per;
  const canvas = make("canvas", "", "scan " + kind), scale = Math.max(1, Math.min(most / width, 4));
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "scan " + data.scan[i]);
  const draw = () => {
    const brush = canvas.getContext("2d");
    brush.imageSmoothingQuality = "high";
    brush.drawImage(image, (at % across) * width, Math.floor(at / across) * height, width, height, 0, 0, canvas.width, canvas.height);
    canvas.dataset.drawn = "true";
  };
  image.complete ? draw() : image.addEventListener("load", draw, {once: true});
  return canvas;
}

// ---- colours --------------------------------------------------------------------------------------------------------------
const palette = () => data.palette.map((c) => c === "#000000" && state.dark ? "#f2f2f2" : c);
const grey = () => state.dark ? "#5d6770" : data.grey;
function ends(column) {
  if (!column.ends) {
    const known = column.numbers.filter((v) => !Number.isNaN(v)).sort();
    const at = (q) => known[Math.round(q * (known.length - 1))];
    column.ends = [at(0.02), at(0.98)];
  }
  return column.ends;
}
function ramp(t) {
  const at = Math.max(0, Math.min(1, t)) * (CIVIDIS.length - 1);
  return CIVIDIS[Math.round(at)];
}
function colours() {
  const column = colourable[state.colour];
  if (!column) return new Array(n).fill(palette()[0]);
  if (column.numbers) {
    const [low, high] = ends(column);
    return Array.from(column.numbers, (v) => Number.isNaN(v) ? grey() : ramp((v - low) / (high - low || 1)));
  }
  const of = shades(column);
  return Array.from(column.codes, (c) => of[c]);
}
// The most frequent values have colours, in a fixed order of the values; the others and the unknown are grey.
function shades(column) {
  const known = column.values.filter((v) => v !== ""), most = palette().length;
  const shown = known.slice(0, known.length <= most ? most : most - 1).sort();
  return column.values.map((v) => shown.includes(v) ? palette()[shown.indexOf(v)] : grey());
}
function opacities() {
  const column = colourable[state.colour], placed = maps[state.map].placed, out = new Array(n), alpha = n > 15000 ? 0.6 : state.dark ? 0.95 : 0.8;
  for (let i = 0; i < n; i++) {
    const hidden = column && !column.numbers && state.hidden.has(column.codes[i]);
    out[i] = hidden ? 0 : placed[i] < state.dim ? 0.07 : state.selected && !state.selected.has(i) ? 0.15 : alpha;
  }
  return out;
}

// ---- the plot -------------------------------------------------------------------------------------------------------------
const plot = $("plot");
function layout() {
  const axis = {visible: false, zeroline: false, showgrid: false};
  return {
    paper_bgcolor: css("--page"), plot_bgcolor: css("--page"), margin: {l: 8, r: 8, t: 8, b: 8}, showlegend: false,
    dragmode: state.drag, hovermode: "closest", hoverdistance: 12, uirevision: String(state.map),
    // plotly's own selection would dim the others once more, until they cannot be seen, and outlive ours
    selections: [], selectionrevision: String(state.drawn++),
    xaxis: {...axis}, yaxis: {...axis, scaleanchor: "x"}, newselection: {line: {color: css("--ink")}},
  };
}
function traces() {
  const m = maps[state.map], ring = state.chosen < 0 ? [] : [state.chosen, ...neighbours(state.chosen).map(([i]) => i)];
  const pick = (values) => ring.map((i) => values[i]);
  return [
    {type: "scattergl", mode: "markers", x: m.x, y: m.y, hoverinfo: "none", marker: {size, color: colours(), opacity: opacities(), line: {width: 0}}},
    {type: "scattergl", mode: "markers", x: pick(m.x), y: pick(m.y), hoverinfo: "skip", marker: {size: ring.map((_, r) => r ? size + 7 : size + 12), symbol: "circle-open", color: css("--ink"), line: {width: 2}}},
  ];
}
function draw() {
  document.documentElement.dataset.theme = state.dark ? "dark" : "light";
  return Plotly.react(plot, traces(), layout(), {displayModeBar: false, scrollZoom: true, doubleClick: "autosize", responsive: true});
}
function faith() {
  const m = maps[state.map];
  $("faith").innerHTML = "";
  $("faith").append(m.name + ": trustworthiness ", make("b", m.trustworthiness.toFixed(3)), ", continuity ", make("b", m.continuity.toFixed(3)), ", ", make("b", (100 * m.kept).toFixed(1) + " %"), ` of the ${m.k} nearest neighbours kept`);
  if (state.dim > 0) $("faith").append(`; ${m.placed.filter((v) => v < state.dim).length.toLocaleString("en")} points dimmed`);
}
function legend() {
  const box = $("legend"), column = colourable[state.colour];
  box.replaceChildren();
  if (!column) return;
  if (column.numbers) {
    const [low, high] = ends(column), bar = make("div", "", "bar"), words = make("div", "", "ends");
    bar.style.background = `linear-gradient(90deg, ${CIVIDIS.join(",")})`;
    words.append(make("span", show(low)), make("span", column.name), make("span", show(high)));
    box.append(bar, words);
    const unknown = column.numbers.filter((v) => Number.isNaN(v)).length;
    if (unknown) box.append(make("p", `grey: unknown, ${unknown.toLocaleString("en")}`, "soft"));
    return;
  }
  const of = shades(column);
  column.values.forEach((v, code) => {
    if (code >= 24) return;
    const button = make("button"), dot = make("i");
    dot.style.background = of[code];
    button.append(dot, make("span", v === "" ? "unknown" : v, "words"), make("span", column.counts[code].toLocaleString("en"), "n"));
    button.title = "Show or hide; with Shift, show this one alone";
    button.setAttribute("aria-pressed", String(!state.hidden.has(code)));
    button.onclick = (event) => {
      if (event.shiftKey) state.hidden = new Set([...column.values.keys()].filter((c) => c !== code));
      else if (!state.hidden.delete(code)) state.hidden.add(code);
      legend();
      draw();
    };
    box.append(button);
  });
  if (column.values.length > 24) box.append(make("p", `and ${column.values.length - 24} more values, grey`, "soft"));
}

// ---- one scan -------------------------------------------------------------------------------------------------------------
function neighbours(i) {
  const {k, rows, distances} = state.same ? near.every : near.others, out = [];
  for (let j = i * k; j < (i + 1) * k; j++) if (rows[j] >= 0) out.push([rows[j], distances[j]]);
  return out;
}
function facts(i) {
  const list = make("dl");
  columns.forEach((c) => { const v = value(c, i); if (v !== "") list.append(make("dt", c.name), make("dd", v)); });
  return list;
}
function choose(i) {
  state.chosen = i;
  $("tip").hidden = true;
  const box = $("one"), wide = data.pictures && data.pictures.width > 1.5 * data.pictures.height;
  box.replaceChildren();
  if (data.pictures) box.append(picture(i, wide ? 306 : 192, "large"));
  const ids = make("dl");
  ids.append(make("dt", "scan"), make("dd", data.scan[i], "id"), make("dt", "patient"), make("dd", data.patients[patient[i]], "id"), make("dt", "placement"), make("dd", maps[state.map].placed[i].toFixed(3)));
  ids.lastChild.title = "1: its neighbours on this map are its neighbours in the features";
  box.append(ids, make("h2", state.same ? "Nearest scans" : "Nearest scans of other patients"));
  const asked = make("label"), check = make("input");
  check.type = "checkbox";
  check.id = "same";
  check.checked = state.same;
  check.onchange = () => { state.same = check.checked; choose(i); };
  asked.append(check, "also of the same patient");
  const list = make("ol", "", "near" + (wide ? " wide" : ""));
  for (const [j, distance] of neighbours(i)) {
    const item = make("li"), button = make("button"), column = colourable[state.colour];
    if (data.pictures) button.append(picture(j, wide ? 280 : 80));
    button.append(make("span", distance.toFixed(3) + (column ? " · " + (value(column, j) || "unknown") : "")));
    button.title = "cosine distance " + distance.toFixed(4) + ", scan " + data.scan[j];
    button.dataset.row = j;
    button.onclick = () => choose(j);
    item.append(button);
    list.append(item);
  }
  const coloured = colourable[state.colour];
  const below = make("p", "Below each: cosine distance" + (coloured ? " and " + coloured.name : ""), "soft");
  box.append(asked, below, list.children.length ? list : make("p", "There is none.", "soft"), make("h2", "What is known of it"), facts(i));
  draw();
  if (innerWidth <= 820) box.scrollIntoView({block: "nearest"});
}

// ---- selecting ------------------------------------------------------------------------------------------------------------
function select(rows) {
  state.selected = rows && rows.length ? new Set(rows) : null;
  $("selection").hidden = !state.selected;
  if (state.selected) $("selected").textContent = `${state.selected.size.toLocaleString("en")} selected`;
  draw();
}
function visible(i) {
  const column = colourable[state.colour];
  return !(column && !column.numbers && state.hidden.has(column.codes[i]));
}
function search(words) {
  const text = words.trim().toLowerCase(), at = text.indexOf(":");
  if (!text) return [];
  const named = at > 0 ? columns.filter((c) => c.name.toLowerCase() === text.slice(0, at).trim()) : [];
  const wanted = named.length ? text.slice(at + 1).trim() : text, out = [];
  const hits = (named.length ? named : columns).map((c) => c.numbers ? (i) => value(c, i) === wanted : ((found) => (i) => found[c.codes[i]])(c.values.map((v) => v !== "" && (named.length ? v.toLowerCase() === wanted : v.toLowerCase().includes(wanted)))));
  for (let i = 0; i < n; i++) {
    const id = !named.length && (data.scan[i].startsWith(wanted) || data.patients[patient[i]].startsWith(wanted));
    if (id || hits.some((hit) => hit(i))) out.push(i);
  }
  return out;
}
function csv() {
  return "scan,patient\n" + [...state.selected].sort((a, b) => a - b).map((i) => `${data.scan[i]},${data.patients[patient[i]]}\n`).join("");
}
function save() {
  if (!state.selected) return;
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
  link.download = `${data.title}-selected.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- controls -------------------------------------------------------------------------------------------------------------
function setMap(number) {
  state.map = (number + maps.length) % maps.length;
  $("map").value = state.map;
  faith();
  return draw();
}
function setColour(number) {
  state.colour = colourable.length ? (number + colourable.length) % colourable.length : 0;
  state.hidden = new Set();
  $("colour").value = state.colour;
  legend();
  if (state.chosen >= 0) choose(state.chosen); else draw();
}
function setDrag(mode) {
  state.drag = mode;
  for (const [id, name] of [["pan", "pan"], ["lasso", "lasso"], ["box", "select"]]) $(id).setAttribute("aria-pressed", String(name === mode));
  Plotly.relayout(plot, {dragmode: mode});
}
const wholeMap = () => Plotly.relayout(plot, {"xaxis.autorange": true, "yaxis.autorange": true});
const setTheme = () => { state.dark = !state.dark; document.documentElement.dataset.theme = state.dark ? "dark" : "light"; legend(); draw(); };
function clear() {
  $("search").value = "";
  state.hidden = new Set();
  legend();
  select(null);
}
function step(by) {
  const of = state.selected ? [...state.selected].sort((a, b) => a - b) : [...Array(n).keys()];
  choose(of[(of.indexOf(state.chosen) + by + of.length) % of.length]);
}
const keys = {
  m: () => setMap(state.map + 1), M: () => setMap(state.map - 1), c: () => setColour(state.colour + 1), C: () => setColour(state.colour - 1),
  p: () => setDrag("pan"), l: () => setDrag("lasso"), b: () => setDrag("select"), f: wholeMap, d: setTheme, e: save, n: () => step(1), N: () => step(-1),
  "/": () => $("search").focus(), "?": () => $("keys").showModal(), Escape: clear,
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (event.target.matches("input[type=search]") && event.key !== "Escape") return;
  if (/^[1-8]$/.test(event.key) && state.chosen >= 0) {
    const found = neighbours(state.chosen)[Number(event.key) - 1];
    if (found) choose(found[0]);
  } else if (keys[event.key]) {
    event.preventDefault();
    if (event.key === "Escape") event.target.blur();
    keys[event.key]();
  }
});
maps.forEach((m, i) => $("map").append(new Option(m.name, i)));
colourable.forEach((c, i) => $("colour").append(new Option(c.name, i)));
$("map").onchange = () => setMap(Number($("map").value));
$("colour").onchange = () => setColour(Number($("colour").value));
$("dim").oninput = () => { state.dim = Number($("dim").value); $("limit").textContent = state.dim ? state.dim.toFixed(2) : "off"; faith(); draw(); };
$("search").onkeydown = (event) => {
  if (event.key !== "Enter") return;
  const found = search($("search").value);
  select(found);
  if (!found.length && $("search").value.trim()) { $("selection").hidden = false; $("selected").textContent = "Nothing found"; }
};
for (const [id, mode] of [["pan", "pan"], ["lasso", "lasso"], ["box", "select"]]) $(id).onclick = () => setDrag(mode);
$("fit").onclick = wholeMap;
$("theme").onclick = setTheme;
$("help").onclick = () => $("keys").showModal();
$("export").onclick = save;
$("clear").onclick = clear;
$("count").textContent = `${n.toLocaleString("en")} scans`;
document.querySelectorAll(".k").forEach((e) => { e.textContent = maps[0].k; });
for (const m of maps) {
  const row = make("tr");
  row.append(make("td", m.name), make("td", m.trustworthiness.toFixed(3)), make("td", m.continuity.toFixed(3)), make("td", (100 * m.kept).toFixed(1) + " %"));
  $("maps").querySelector("tbody").append(row);
}
data.notes.forEach((words) => $("notes").append(make("p", words)));
legend();
faith();
listen();
function listen() {
  draw().then(() => {
    setDrag("pan");
    plot.on("plotly_hover", (event) => {
      const i = event.points[0].pointIndex;
      if (event.points[0].curveNumber || !visible(i)) return;
      const tip = $("tip"), at = event.event;
      tip.replaceChildren();
      if (data.pictures) tip.append(picture(i, data.pictures.width > 1.5 * data.pictures.height ? 300 : 128));
      const column = colourable[state.colour];
      if (column) tip.append(make("div", `${column.name}: ${value(column, i) || "unknown"}`));
      tip.append(make("div", data.scan[i], "id"));
      tip.dataset.row = i;
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = Math.max(4, Math.min(at.clientX + 14, innerWidth - box.width - 8)) + "px";
      tip.style.top = Math.max(4, Math.min(at.clientY + 14, innerHeight - box.height - 8)) + "px";
    });
    plot.on("plotly_unhover", () => { $("tip").hidden = true; });
    plot.on("plotly_click", (event) => { const p = event.points[0]; if (!p.curveNumber && visible(p.pointIndex)) choose(p.pointIndex); });
    plot.on("plotly_selected", (event) => {
      // that the page has removed plotly's selection is an event, too
      if (!event || !(event.range || event.lassoPoints)) return;
      const rows = event.points.filter((p) => !p.curveNumber && visible(p.pointIndex)).map((p) => p.pointIndex);
      select(rows);
    });
    document.documentElement.dataset.ready = "true";
  });
}

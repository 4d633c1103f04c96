"use strict";
/* The page of a trace. The data come from page.py, with every module's arrangement already made by layout.py; this script
   packs open and folded boxes into coordinates as layout.pack does, draws what is in view, and answers clicks and keys.

   D.boxes[i]   {name, kind, key, parent, children: [[is box, index], ...], arrangement}     box 0 is the whole program
   D.ops[i]     an operation; D.values[id] a tensor; D.texts the words of the page in its language */

const D = JSON.parse(document.getElementById("data").textContent);
const S = D.sizes, say = (key, values = {}) => D.texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const make = (tag, attributes = {}, ...inside) => {
  const svg = ["svg", "g", "rect", "path", "text", "circle", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...inside.filter(x => x !== null && x !== undefined));
  return node;
};
const element = id => document.getElementById(id);

/* ---- which boxes are open, and where everything is ---- */

const open = new Set([0]);
let chosen = null;                       // {box: i} or {op: i}
let places = new Map();                  // "b3" or "o17" -> {x, y, w, h}
const keyOf = ([isBox, index]) => (isBox ? "b" : "o") + index;

function openAtFirst(most) {             // outer before inner, until there is something to see and no more than `most`
  let visible = D.boxes[0].children.length;
  const queue = D.boxes[0].children.filter(c => c[0]).map(c => c[1]);
  while (queue.length) {
    const box = queue.shift(), more = D.boxes[box].children.length;
    if (visible + more > most && visible > 12) continue;
    open.add(box);
    visible += more;
    queue.push(...D.boxes[box].children.filter(c => c[0]).map(c => c[1]));
  }
}

function pack() {                        // layout.pack, in the same steps
  const sizes = [];
  const sizeOf = ([isBox, index]) => isBox ? sizes[index] : [S.width, D.ops[index].height];
  const extents = box => {
    const a = D.arrangements[box.arrangement], widths = Array(a.lanes).fill(0), heights = Array(a.layers).fill(0);
    box.children.forEach((child, k) => {
      const [layer, lane] = a.cells[k], [w, h] = sizeOf(child);
      widths[lane] = Math.max(widths[lane], w);
      heights[layer] = Math.max(heights[layer], h);
    });
    return [a, widths, heights];
  };
  const sum = list => list.reduce((total, x) => total + x, 0);
  for (let i = D.boxes.length - 1; i >= 0; i--) {
    if (!open.has(i)) { sizes[i] = [S.width, S.height]; continue; }
    const [a, widths, heights] = extents(D.boxes[i]);
    sizes[i] = [sum(widths) + S.laneGap * Math.max(0, widths.length - 1) + S.track * a.tracks + 2 * S.padding,
      S.header + sum(heights) + S.rowGap * (heights.length + 1)];
  }
  places = new Map([["b0", { x: 0, y: 0, w: sizes[0][0], h: sizes[0][1] }]]);
  const stack = [0];
  while (stack.length) {
    const index = stack.pop();
    if (!open.has(index)) continue;
    const box = D.boxes[index], corner = places.get("b" + index), [a, widths, heights] = extents(box);
    const lefts = [], tops = [];
    let left = S.padding + S.track * a.tracks, top = S.header + S.rowGap;
    for (const w of widths) { lefts.push(left); left += w + S.laneGap; }
    for (const h of heights) { tops.push(top); top += h + S.rowGap; }
    box.children.forEach((child, k) => {
      const [layer, lane] = a.cells[k], [w, h] = sizeOf(child);
      places.set(keyOf(child), { x: corner.x + lefts[lane] + (widths[lane] - w) / 2, y: corner.y + tops[layer], w, h });
      if (child[0]) stack.push(child[1]);
    });
  }
}

/* ---- drawing what is in view ---- */

const picture = element("graph"), stage = make("g");
let view = { x: 0, y: 0, zoom: 1 }, drawn = false;
picture.append(stage);

function draw() {
  drawn = false;
  stage.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.zoom})`);
  const { width, height } = picture.getBoundingClientRect();
  const seen = { x: -view.x / view.zoom, y: -view.y / view.zoom, w: width / view.zoom, h: height / view.zoom };
  const visible = p => p.x < seen.x + seen.w && p.x + p.w > seen.x && p.y < seen.y + seen.h && p.y + p.h > seen.y;
  const under = [], lines = [], over = [], stack = [0];
  while (stack.length) {
    const index = stack.pop(), box = D.boxes[index], p = places.get("b" + index);
    if (!visible(p)) continue;
    if (index) under.push(drawBox(index, box, p));
    lines.push(...drawEdges(index, box, p, seen));
    for (const child of box.children) {
      const place = places.get(keyOf(child));
      if (!visible(place)) continue;
      if (child[0] && open.has(child[1])) stack.push(child[1]);
      else over.push(drawNode(child, place));
    }
  }
  stage.replaceChildren(...under, ...lines, ...over);
  stage.classList.toggle("dim", chosen !== null && chosen.op !== undefined);
}
function redraw() { if (!drawn) { drawn = true; requestAnimationFrame(draw); } }

function drawBox(index, box, p) {
  const group = make("g", { class: "box" + (chosen && chosen.box === index ? " chosen" : ""), "data-box": index },
    make("rect", { x: p.x, y: p.y, width: p.w, height: p.h, rx: 8 }));
  if (view.zoom > 0.25) {
    const title = make("text", { class: "title", x: p.x + S.padding, y: p.y + 17, "data-fold": index }, "▾ " + cut(box.kind ? `${box.title}: ${box.kind}` : box.title, Math.floor(p.w / 7) - 3));
    group.append(title);
  }
  return group;
}

function drawNode([isBox, index], p) {
  const item = isBox ? D.boxes[index] : D.ops[index];
  const kinds = ["node", isBox ? "folded" : "", !isBox && item.verdict === "disagree" ? "disagree" : "",
    chosen && chosen[isBox ? "box" : "op"] === index ? "chosen" : ""].filter(Boolean).join(" ");
  const group = make("g", { class: kinds, [isBox ? "data-box" : "data-op"]: index },
    make("rect", { x: p.x, y: p.y, width: p.w, height: p.h, rx: isBox ? 8 : 4 }), make("title", {}, isBox ? box_words(index) : item.words));
  if (view.zoom < 0.3) return group;
  const label = make("text", { x: p.x + 10, y: p.y + 15 }, (isBox ? "▸ " : "") + cut(isBox && item.kind ? `${item.title}: ${item.kind}` : item.title, isBox ? 21 : 19));
  group.append(label, make("text", { class: "small", x: p.x + 10, y: p.y + 28 }, isBox ? box_count(index) : item.subtitle));
  if (!isBox && item.slope) group.append(make("text", { class: "small slope", x: p.x + p.w - 12, y: p.y + 28 }, item.slope));
  if (!isBox && item.mark) group.append(make("text", { x: p.x + p.w - 24, y: p.y + 16 }, item.mark));
  if (item.back) group.append(make("path", { class: "back", d: `M${p.x + p.w - 6} ${p.y + 5}V${p.y + p.h - 5}` }));
  if (!isBox && item.outputs.some(id => D.sums[id])) {
    group.append(make("circle", { class: "sum", cx: p.x + p.w / 2 + S.half, cy: p.y + p.h, r: 7, "data-op": index }),
      make("text", { x: p.x + p.w / 2 + S.half, y: p.y + p.h + 3.5 }, "Σ"));
  }
  return group;
}

function drawEdges(index, box, p, seen) {
  const a = D.arrangements[box.arrangement], found = [];
  const port = (child, below) => {       // the middle of the bottom or top of a child, or of the top or bottom of the box
    if (child < 0) return [p.x + p.w / 2, child === -1 ? p.y : p.y + p.h];
    const place = places.get(keyOf(box.children[child]));
    return [place.x + place.w / 2, below ? place.y + place.h : place.y];
  };
  a.edges.forEach(([from, to, track], k) => {
    const [x1, y1] = port(from, true), [x2, y2] = port(to, false);
    if (y2 < seen.y || y1 > seen.y + seen.h) return;
    const lit = chosen !== null && chosen.op !== undefined
      && [from, to].some(child => child >= 0 && !box.children[child][0] && box.children[child][1] === chosen.op);
    for (const gradient of [false, true]) {
      if (gradient && !box.gradients[k]) continue;
      const shift = gradient ? S.half : -S.half;
      const path = track < 0 ? direct(x1 + shift, y1, x2 + shift, y2, from, to)
        : around(x1 + shift, y1, x2 + shift, y2, p.x + S.padding / 2 + S.track * track + (gradient ? 4 : 0));
      found.push(make("path", { class: "edge" + (gradient ? " gradient" : "") + (lit ? " lit" : ""), d: path,
        [gradient ? "marker-start" : "marker-end"]: gradient ? "url(#up)" : "url(#down)" }));
    }
  });
  return found;
}
const bend = (x1, y1, x2, y2) => `${x1} ${y1}C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}`;
function direct(x1, y1, x2, y2, from, to) {  // straight where nothing is in the way, bent between the rows
  if (x1 === x2) return `M${x1} ${y1}V${y2}`;
  if (from === -1) return `M${bend(x1, y1, x2, Math.min(y2, y1 + S.header + S.rowGap - 6))}V${y2}`;
  if (to === -2) { const y = Math.max(y1, y2 - S.rowGap); return `M${x1} ${y1}V${y}M${bend(x1, y, x2, y2)}`; }
  return `M${bend(x1, y1, x2, y2)}`;
}
const around = (x1, y1, x2, y2, x) => `M${x1} ${y1}v4Q${x1} ${y1 + 10} ${(x1 + x) / 2} ${y1 + 10}T${x} ${y1 + 22}V${y2 - 22}`
  + `Q${x} ${y2 - 10} ${(x2 + x) / 2} ${y2 - 10}T${x2} ${y2 - 4}V${y2}`;

const cut = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;
const box_count = index => say(D.boxes[index].count === 1 ? "operation_one" : "operations", { n: D.boxes[index].count });
const box_words = index => D.boxes[index].words + " " + box_count(index);

/* ---- moving about ---- */

function zoomAt(x, y, factor) {
  const zoom = Math.min(3, Math.max(0.02, view.zoom * factor));
  view = { zoom, x: x - (x - view.x) * zoom / view.zoom, y: y - (y - view.y) * zoom / view.zoom };
  redraw();
}
function showWhole() {
  const { width } = picture.getBoundingClientRect(), p = places.get("b0");
  const zoom = Math.min(1, width / (p.w + 40));
  view = { zoom, x: (width - p.w * zoom) / 2, y: 8 };
  redraw();
}
function bringIntoView(key) {
  const p = places.get(key), { width, height } = picture.getBoundingClientRect();
  if (!p) return;
  if (view.zoom < 0.5) view.zoom = 0.8;
  const x = p.x * view.zoom + view.x, y = p.y * view.zoom + view.y;
  if (x < 20 || y < 20 || x + p.w * view.zoom > width - 20 || y + Math.min(p.h * view.zoom, height / 2) > height - 20) {
    view.x = width / 2 - (p.x + p.w / 2) * view.zoom;
    view.y = height / 2.5 - p.y * view.zoom - Math.min(p.h, 60) / 2;
  }
}
picture.addEventListener("wheel", event => {
  event.preventDefault();
  const { left, top } = picture.getBoundingClientRect();
  if (event.ctrlKey || event.metaKey) zoomAt(event.clientX - left, event.clientY - top, Math.exp(-event.deltaY / 200));
  else { view.x -= event.deltaX; view.y -= event.deltaY; redraw(); }
}, { passive: false });
let drag = null;
picture.addEventListener("pointerdown", event => { drag = { x: event.clientX, y: event.clientY, moved: false }; });
window.addEventListener("pointermove", event => {
  if (!drag) return;
  const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
  if (!drag.moved && Math.abs(dx) + Math.abs(dy) < 4) return;
  drag = { x: event.clientX, y: event.clientY, moved: true };
  picture.classList.add("moving");
  view.x += dx; view.y += dy; redraw();
});
window.addEventListener("pointerup", event => {
  const was = drag;
  drag = null;
  picture.classList.remove("moving");
  if (!was || was.moved) return;
  const target = event.target.closest ? event.target : null;
  const fold = target && target.closest("[data-fold]"), op = target && target.closest("[data-op]"), box = target && target.closest("[data-box]");
  if (fold) toggle(+fold.dataset.fold);
  else if (op) choose({ op: +op.dataset.op });
  else if (box && picture.contains(box)) open.has(+box.dataset.box) ? choose({ box: +box.dataset.box }) : toggle(+box.dataset.box);
});
element("closer").onclick = () => zoomAt(picture.clientWidth / 2, picture.clientHeight / 2, 1.3);
element("farther").onclick = () => zoomAt(picture.clientWidth / 2, picture.clientHeight / 2, 1 / 1.3);
element("whole").onclick = showWhole;
element("unfold").onclick = () => { D.boxes.forEach((_, i) => open.add(i)); changed(); };
element("fold").onclick = () => { open.clear(); open.add(0); changed(); showWhole(); };
window.addEventListener("resize", redraw);

/* The box that is clicked stays where it is on the screen. */
function toggle(index) {
  const before = places.get("b" + index);
  open.has(index) ? open.delete(index) : open.add(index);
  chosen = { box: index };
  pack();
  const after = places.get("b" + index);
  if (before && after) {
    view.x += (before.x + before.w / 2 - after.x - after.w / 2) * view.zoom;
    view.y += (before.y - after.y) * view.zoom;
  }
  changed();
}
function changed() { pack(); buildTree(); showDetails(); redraw(); }

function parentsOf(item) {
  const found = [];
  for (let box = item.op !== undefined ? D.ops[item.op].box : D.boxes[item.box].parent; box !== null; box = D.boxes[box].parent) found.push(box);
  return found;
}
function choose(item, focusTree = false) {
  chosen = item;
  const closed = parentsOf(item).filter(box => !open.has(box));
  closed.forEach(box => open.add(box));
  if (closed.length) { pack(); buildTree(); } else markChosen();
  bringIntoView(item.op !== undefined ? "o" + item.op : "b" + item.box);
  showDetails();
  redraw();
  if (focusTree) focusChosen();
}

/* ---- the tree: the same program for keyboards and screen readers ---- */

const tree = element("tree");
function buildTree() {
  const held = tree.contains(document.activeElement);
  const list = (index, level) => D.boxes[index].children.map(child => row(child, level));
  const row = ([isBox, index], level) => {
    const item = isBox ? D.boxes[index] : D.ops[index], isOpen = isBox && open.has(index);
    const line = make("li", { role: "treeitem", "aria-level": level, "aria-selected": false, tabindex: -1,
      "aria-expanded": isBox ? isOpen : undefined, "data-item": (isBox ? "b" : "o") + index, "aria-label": isBox ? box_words(index) : item.words },
      make("div", { class: "row", style: `padding-left:${level * 0.9}rem` }, make("span", { class: "twist", "aria-hidden": true },
        isBox ? (isOpen ? "▾" : "▸") : item.mark || "·"), make("span", {}, item.title), make("span", { class: "soft" }, isBox ? item.kind : item.subtitle)));
    if (isOpen) line.append(make("ul", { role: "group" }, ...list(index, level + 1)));
    return line;
  };
  tree.replaceChildren(...list(0, 1));
  markChosen();
  if (held) focusChosen();
}
function markChosen() {                  // exactly one line can be reached with Tab: the chosen one, or the first
  for (const line of tree.querySelectorAll("[tabindex='0']")) { line.tabIndex = -1; line.setAttribute("aria-selected", false); }
  const line = chosen !== null && tree.querySelector(`[data-item="${chosen.op !== undefined ? "o" + chosen.op : "b" + chosen.box}"]`);
  if (line) { line.tabIndex = 0; line.setAttribute("aria-selected", true); }
  else if (tree.firstChild) tree.firstChild.tabIndex = 0;
}
const itemOf = line => ({ [line.dataset.item[0] === "b" ? "box" : "op"]: +line.dataset.item.slice(1) });
function focusChosen() {
  const line = tree.querySelector("[aria-selected=true]") || tree.querySelector("[tabindex='0']");
  if (line) { line.focus({ preventScroll: true }); line.firstChild.scrollIntoView({ block: "nearest" }); }
}
tree.addEventListener("click", event => {
  const line = event.target.closest("[role=treeitem]");
  if (!line) return;
  const item = itemOf(line);
  if (item.box !== undefined && event.target.closest(".twist")) toggle(item.box);
  else choose(item, true);
});
tree.addEventListener("keydown", event => {
  const line = document.activeElement.closest("[role=treeitem]");
  if (!line || event.altKey || event.ctrlKey || event.metaKey) return;
  const item = itemOf(line), lines = [...tree.querySelectorAll("[role=treeitem]")], here = lines.indexOf(line);
  const to = target => { if (target) choose(itemOf(target), true); };
  const keys = {
    ArrowDown: () => to(lines[here + 1]), ArrowUp: () => to(lines[here - 1]), Home: () => to(lines[0]), End: () => to(lines[lines.length - 1]),
    ArrowRight: () => {
      if (item.box === undefined) return;
      if (open.has(item.box)) to(line.querySelector("[role=treeitem]")); else { toggle(item.box); focusChosen(); }
    },
    ArrowLeft: () => {
      if (item.box !== undefined && open.has(item.box)) { toggle(item.box); focusChosen(); } else to(line.parentElement.closest("[role=treeitem]"));
    },
    Enter: () => { if (item.box !== undefined) toggle(item.box); else choose(item); element("details").focus(); },
    " ": () => item.box !== undefined ? (toggle(item.box), focusChosen()) : choose(item, true),
    n: () => follow(item, "readers"), p: () => follow(item, "makers"),
    g: () => { choose(item); const first = element("details").querySelector(".value.grad .grid"); if (first) first.focus(); },
  };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
function follow(item, way) {             // along an edge: to who reads this value, or to who made its input
  const next = item.op !== undefined && D.ops[item.op][way][0];
  if (next !== undefined && next !== false) choose({ op: next }, true);
}
document.addEventListener("keydown", event => {
  if (event.key === "Escape") focusChosen();
});

/* ---- details of what is chosen ---- */

const details = element("details");
function showDetails() {
  if (chosen === null) details.replaceChildren(make("p", {}, say("choose")), ...D.notes.map(note => make("p", { class: "soft" }, note)));
  else if (chosen.box !== undefined) showBox(D.boxes[chosen.box], chosen.box);
  else showOperation(D.ops[chosen.op]);
}
function showBox(box, index) {
  const parts = [make("h2", {}, box.title), make("p", {}, box_words(index))];
  if (box.parameters.length) parts.push(make("h3", {}, say("parameters")));
  for (const [id, total] of box.parameters) {
    parts.push(showValue(id, "value", D.values[id].name));
    if (total !== null) parts.push(showValue(total, "grad", "dL/d" + D.values[id].name));
    parts.push(...showSum(id));
  }
  details.replaceChildren(...parts, told());
}
const told = () => make("div", { class: "told", id: "told", role: "status" }, say("hover"));

function showSum(id) {                   // a value that is read several times: its gradient is a sum
  const sum = D.sums[id];
  if (!sum) return [];
  return [make("h3", {}, say("sum", { name: D.values[id].name || "z" })), make("p", {}, say("sum_how", { n: sum.parts.length })),
    ...sum.parts.map(([op, gradient]) => gradient === null ? null : showValue(gradient, "grad", say("sum_part", { name: D.ops[op].title }))).filter(Boolean),
    ...(sum.total === null ? [] : [showValue(sum.total, "grad", say("sum_total"))])];
}

function showOperation(op) {
  const parts = [make("h2", {}, op.title), make("p", {}, op.words)];
  if (op.sentence) parts.push(make("p", {}, op.sentence));
  if (op.formula) parts.push(...op.formula.split(";").map(line => make("div", { class: "formula" }, line.trim())));
  parts.push(make("p", {}, make("span", { class: "verdict " + ({ agree: "agree", disagree: "disagree" }[op.verdict] || "other") },
    `${op.mark} ${say("verdict_" + op.verdict)}`), " ", op.remark));
  const links = (title, ids) => ids.length ? [make("p", { class: "links" }, title + " ", ...ids.map(id => {
    const button = make("button", { type: "button" }, D.ops[id].title);
    button.onclick = () => choose({ op: id }, true);
    return button;
  }))] : [];
  parts.push(...links(say("from"), op.makers), ...links(say("to"), op.readers));
  if (op.attributes) parts.push(make("p", { class: "soft" }, op.attributes));
  parts.push(make("h3", {}, say("inputs")));
  op.inputs.forEach((input, k) => parts.push(showValue(input.value, "input", input.name, { op, k, way: "input" })));
  parts.push(make("h3", {}, say("outputs")));
  op.outputs.forEach((id, k) => parts.push(showValue(id, "output", op.outputs.length > 1 ? "z" + k : "z", { op, k, way: "output" })));
  if (op.upstream.some(id => id !== null) || op.inputs.some(input => input.gradient !== null)) {
    parts.push(make("h3", {}, say("gradients")), make("p", { class: "soft" }, say("gradients_how")));
    op.upstream.forEach((id, k) => { if (id !== null) parts.push(showValue(id, "grad", op.outputs.length > 1 ? "dL/dz" + k : "dL/dz", { op, k, way: "upstream" })); });
    op.inputs.forEach((input, k) => { if (input.gradient !== null) parts.push(showValue(input.gradient, "grad", "dL/d" + input.name, { op, k, way: "downstream" })); });
  }
  for (const id of [...op.outputs, ...op.inputs.map(input => input.value).filter(id => D.values[id].outside)]) parts.push(...showSum(id));
  details.replaceChildren(...parts, told());
}

/* A tensor: name, shape, statistics, and as many of its numbers as are in the page, as cells. */
function showValue(id, kind, name, place) {
  const value = D.values[id];
  const box = make("div", { class: "value" + (kind === "grad" ? " grad" : "") }, make("span", { class: "name" }, name), " ",
    make("code", {}, `${value.dtype} ${value.text}`), value.name && value.name !== name ? make("span", { class: "soft" }, " " + value.name) : null,
    make("div", { class: "stats" }, value.stats));
  if (value.data && value.data.length) box.append(cells(value, name, place));
  else if (!value.data) box.append(make("div", { class: "stats" }, say("not_kept")));
  return box;
}
function cells(value, name, place) {
  const columns = value.columns, grid = make("div", { class: "grid" + (columns > 22 ? " narrow" : ""), tabindex: 0, role: "img",
    "aria-label": say("cells", { name, n: value.data.length }), style: `grid-template-columns:repeat(${columns},auto)` });
  const largest = value.data.reduce((most, x) => Number.isFinite(x) ? Math.max(most, Math.abs(x)) : most, 1e-300);
  value.data.forEach((x, k) => {
    const cell = make("i", { "data-k": k, style: `background:${color(x, largest)};color:${ink(x, largest)}` }, Number.isFinite(x) ? (x < 0 ? "−" : "") : "!");
    grid.append(cell);
  });
  const at = k => tell(grid, value, name, k, place);
  grid.addEventListener("mouseover", event => { if (event.target.dataset.k !== undefined) at(+event.target.dataset.k); });
  grid.addEventListener("focus", () => at(grid.cursor || 0));
  grid.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    at(Math.min(value.data.length - 1, Math.max(0, (grid.cursor || 0) + step)));
  });
  grid.value = value; grid.place = place;
  return grid;
}
function color(x, largest) {             // blue below zero, orange above; the sign is also written in the cell
  if (!Number.isFinite(x)) return "#d000d0";
  const t = Math.min(1, Math.abs(x) / largest), [r, g, b] = x < 0 ? [28, 88, 180] : [200, 90, 10];
  const mix = channel => Math.round(232 + (channel - 232) * Math.sqrt(t));
  return `rgb(${mix(r)} ${mix(g)} ${mix(b)})`;
}
const ink = (x, largest) => !Number.isFinite(x) || Math.abs(x) > largest / 3 ? "#fff" : "#222";

/* ---- hover a cell: what it is computed from ---- */

function indexOf(value, k) {             // the position of a shown cell in its tensor
  return place_of(value.flat ? value.flat[k] : k, value.shape);
}
const written = (name, index) => index.length ? `${name}[${index.join(", ")}]` : name;

function tell(grid, value, name, k, place) {
  grid.cursor = k;
  document.querySelectorAll(".grid i.from, .grid i.here").forEach(cell => cell.classList.remove("from", "here"));
  const told = element("told"), index = indexOf(value, k);
  grid.children[k].classList.add("here");
  if (!told) return;
  let text = `${written(name, index)} = ${value.data[k]}`;
  if (place && place.way === "output" && place.k === 0) text += readFrom(place, index);
  if (place && place.way === "downstream") text += gradientFrom(place, index);
  told.textContent = text;
}
/* reads[k] says for each dimension of input k: a dimension of the output (the same place), "*" (all places), "<=2" (up to
   the place along dimension 2), or is ["flat"]: the same place when both are counted row by row. See glass/reads.py. */
function fits(pattern, out, index, outShape, shape) {
  if (pattern[0] === "flat") return number(out, outShape) === number(index, shape);
  return pattern.every((p, d) => p === "*" || (typeof p === "number" ? out[p] === index[d] : index[d] <= out[+p.slice(2)]));
}
const number = (index, shape) => index.reduce((n, place, d) => n * shape[d] + place, 0);
const place_of = (n, shape) => { const index = []; for (let d = shape.length - 1; d >= 0; d--) { index[d] = n % shape[d]; n = Math.floor(n / shape[d]); } return index; };
function readFrom({ op }, out) {         // an element of the result: the elements of the inputs
  const outShape = D.values[op.outputs[0]].shape, said = [];
  op.reads.forEach((pattern, k) => {
    if (!pattern) return;
    const { name, value } = op.inputs[k], shape = D.values[value].shape;
    said.push(written(name, pattern[0] === "flat" ? place_of(number(out, outShape), shape)
      : pattern.map(p => p === "*" ? ":" : typeof p === "number" ? out[p] : `0..${out[+p.slice(2)]}`)));
    light("input", k, index => fits(pattern, out, index, outShape, shape));
  });
  return said.length ? "; " + say("computed_from", { what: said.join(", ") }) : "";
}
function gradientFrom({ op, k }, index) { // an element of an input's gradient: the elements of the upstream gradient
  const pattern = op.reads[k];
  if (!pattern) return "";
  const outShape = D.values[op.outputs[0]].shape, shape = D.values[op.inputs[k].value].shape;
  let out = outShape.map(() => ":");
  if (pattern[0] === "flat") out = place_of(number(index, shape), outShape);
  else pattern.forEach((p, d) => { if (typeof p === "number") out[p] = index[d]; else if (p !== "*") out[+p.slice(2)] = index[d] + ".."; });
  light("upstream", 0, where => fits(pattern, where, index, outShape, shape));
  return "; " + say("gradient_from", { what: written("dL/dz", out) });
}
function light(way, k, test) {
  document.querySelectorAll(".grid").forEach(grid => {
    if (!grid.place || grid.place.way !== way || grid.place.k !== k) return;
    [...grid.children].forEach((cell, c) => cell.classList.toggle("from", test(indexOf(grid.value, c))));
  });
}

/* ---- begin ---- */

for (const box of D.boxes) box.count = 0;
D.ops.forEach((op, i) => { for (const box of parentsOf({ op: i })) D.boxes[box].count++; });
openAtFirst(60);
pack();
buildTree();
showDetails();
showWhole();
window.lightwell = { D, pack: () => { pack(); return Object.fromEntries(places); }, open, choose, toggle, view: () => view, chosen: () => chosen };

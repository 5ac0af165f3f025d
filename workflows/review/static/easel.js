// One image: labels over the photograph, classes by clicks, a brush, and verdicts on the whole.
import { change, colour, fail, find, make, readBytes, show, swatch, tell } from "./common.js";
import * as shelf from "./shelf.js";

const IGNORE = 255, OPEN = 254;
let place = -1;          // in the list
let facts = null;        // what the server says of the image
let maps = null;         // proposals, labels, said
let legend = new Map();  // number -> {name, colour}
let tool = "click", chosen = "", extra = [];
let marked = 0;          // the proposal under the pointer
let stroke = null, unsaved = [];
let asked = 0, sent = 0;

const layer = () => find("layer"), marks = () => find("marks");

// --- opening ----------------------------------------------------------------------------------

export async function openImage(where, row) {
  place = where;
  unsaved = [];
  stroke = null;
  facts = null;
  maps = null;
  shelf.select(row);
  if (where >= 0) { shelf.reveal(where); }
  document.body.classList.add("easel-open");
  for (const id of ["easel", "tools"]) { find(id).hidden = false; }
  find("easel-none").hidden = true;
  find("canvas").classList.add("waiting");
  layer().width = marks().width = 1;
  find("photograph").removeAttribute("src");
  show(find("photograph"), `photograph/${row}`);
  await load(row);
}

export function closeImage() { document.body.classList.remove("easel-open"); }

async function load(row) {
  const turn = ++asked, before = sent;
  try {
    const bytes = await readBytes(`maps/${row}`);
    // what was changed meanwhile is not in it, and asks again when it is saved
    if (turn !== asked || before !== sent) { return; }
    const length = new DataView(bytes).getUint32(0, true);
    facts = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
    const [width, height] = facts.size, pixels = width * height, start = 4 + length;
    maps = {
      proposals: new Uint16Array(bytes, start, pixels),
      labels: new Uint8Array(bytes, start + 2 * pixels, pixels),
      said: new Uint8Array(bytes, start + 3 * pixels, pixels),
    };
  } catch (error) {
    fail(error);
    find("canvas").classList.remove("waiting");
    find("under").textContent = error.message;
    return;
  }
  legend = new Map(facts.legend.map((each) => [each.number, each]));
  if (layer().width !== facts.size[0] || layer().height !== facts.size[1]) {
    for (const canvas of [layer(), marks()]) { [canvas.width, canvas.height] = facts.size; }
  }
  find("canvas").classList.remove("waiting");
  find("canvas").style.aspectRatio = `${facts.size[0]} / ${facts.size[1]}`;
  find("canvas").style.setProperty("--ratio", facts.size[0] / facts.size[1]);
  find("image-name").textContent = facts.id;
  find("photograph").alt = facts.id;
  marked = 0;
  listClasses();
  drawLabels();
  drawMarks();
}

export async function reload() { if (facts) { await load(facts.image); } }

// --- drawing ----------------------------------------------------------------------------------

function effective(n) { return maps.said[n] !== OPEN ? maps.said[n] : maps.labels[n]; }

function drawLabels() {
  const [width, height] = facts.size, context = layer().getContext("2d");
  const picture = context.createImageData(width, height);
  const out = new Uint32Array(picture.data.buffer), colours = new Uint32Array(256);
  for (const [number, each] of legend) {
    const [red, green, blue] = each.colour;
    colours[number] = (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  }
  colours[IGNORE] = 0xff141414;
  const { said } = maps;
  for (let n = 0; n < out.length; n += 1) { out[n] = colours[effective(n)]; }
  // what a person has said has a white edge
  for (let y = 1; y < height - 1; y += 1) {
    for (let n = y * width + 1; n < (y + 1) * width - 1; n += 1) {
      if (said[n] !== OPEN && (said[n + 1] === OPEN || said[n - 1] === OPEN || said[n + width] === OPEN || said[n - width] === OPEN)) { out[n] = 0xffffffff; }
    }
  }
  context.putImageData(picture, 0, 0);
}

function drawMarks() {
  const [width, height] = facts.size, canvas = marks(), context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  if (marked && tool === "click") {
    const picture = context.createImageData(width, height), out = new Uint32Array(picture.data.buffer);
    const { proposals } = maps, thick = Math.max(1, Math.round(width / 500));
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const n = y * width + x;
        if (proposals[n] !== marked) { continue; }
        const inside = x >= thick && y >= thick && x < width - thick && y < height - thick
          && proposals[n - thick] === marked && proposals[n + thick] === marked
          && proposals[n - thick * width] === marked && proposals[n + thick * width] === marked;
        out[n] = inside ? 0x40ffffff : 0xffffffff;
      }
    }
    context.putImageData(picture, 0, 0);
  }
  for (const each of [...unsaved, ...(stroke ? [stroke] : [])]) { drawStroke(context, each); }
}

function drawStroke(context, { path, radius, name }) {
  const scale = facts.size[0] / facts.photograph[0];
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = 2 * radius * scale;
  context.strokeStyle = name === "" ? "rgb(255 255 255 / 70%)" : colour(colourOf(name));
  context.beginPath();
  path.forEach(([x, y], n) => (n ? context.lineTo(x * scale, y * scale) : context.moveTo(x * scale, y * scale)));
  if (path.length === 1) { context.lineTo(path[0][0] * scale, path[0][1] * scale); }
  context.stroke();
}

function colourOf(name) {
  for (const each of legend.values()) { if (each.name === name) { return each.colour; } }
  if (name === "ignore") { return [20, 20, 20]; }
  // one that the server does not know yet
  const hue = (0.87 + 0.618 * extra.indexOf(name)) % 1;
  return [0, 1 / 3, 2 / 3].map((part) => Math.round(255 * (0.55 + 0.45 * Math.cos(2 * Math.PI * (hue - part)))));
}

// --- classes ----------------------------------------------------------------------------------

let names = () => [];

function listClasses() {
  const known = new Map(facts.legend.filter((each) => each.named).map((each) => [each.name, each.colour]));
  for (const name of [...names(), ...extra]) { if (!known.has(name)) { known.set(name, colourOf(name)); } }
  const count = new Map();
  for (let n = 0; n < maps.labels.length; n += 7) { const k = effective(n); count.set(k, (count.get(k) || 0) + 1); }
  const weight = (name) => facts.legend.reduce((sum, each) => sum + (each.name === name ? count.get(each.number) || 0 : 0), 0);
  // those in the image first, as they are when it is opened
  if (listClasses.of !== facts.image || listClasses.size !== known.size) {
    listClasses.of = facts.image;
    listClasses.size = known.size;
    listClasses.order = Array.from(known.keys()).sort((a, b) => weight(b) - weight(a) || a.localeCompare(b));
  }
  const all = [...listClasses.order, "ignore"];
  if (!all.includes(chosen)) { chosen = all[0]; }
  find("classes").replaceChildren(...all.map((name, n) => make("li", {}, make("button", {
    type: "button", className: "class", ariaPressed: String(name === chosen), onclick: () => chooseClass(name),
  }, swatch(name === "ignore" ? [20, 20, 20] : known.get(name)), make("span", { className: "class-name" }, name), n < 9 ? make("kbd", {}, String(n + 1)) : null))));
}

function chooseClass(name) {
  chosen = name;
  if (tool === "erase") { chooseTool("paint"); }
  listClasses();
}

function chooseTool(name) {
  tool = name;
  document.querySelectorAll("[data-tool]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.tool === tool)));
  find("canvas").dataset.tool = tool;
  if (facts && maps) { drawMarks(); }
}

// --- changes ----------------------------------------------------------------------------------

async function send(path, body) {
  const image = facts.image;
  sent += 1;
  try {
    const made = await change(`${path}/${image}`, () => ({ seen: facts.revision, ...body }));
    if (facts && facts.image === image) { facts.revision = made.revision; }
    return true;
  } catch (error) {
    fail(error);
    return false;
  } finally { sent += 1; }
}

async function click([x, y]) {
  await send("click", { x, y, name: chosen });
  await reload();
}

async function paint(made) {
  const own = unsaved;
  own.push(made);
  await send("paint", { strokes: [made.path], radius: made.radius, name: made.name });
  made.done = true;
  // the list is another one where another image is open by now
  if (own !== unsaved || !own.every((each) => each.done)) { return; }
  await reload();
  if (own === unsaved && own.every((each) => each.done)) { unsaved = []; drawMarks(); }
}

async function judge(what, said) {
  for (const id of ["right", "ignore"]) { find(id).disabled = true; }
  const done = await send(what, {});
  for (const id of ["right", "ignore"]) { find(id).disabled = false; }
  await reload();
  if (done) { tell(said); }
}

export async function step(by) {
  const next = await shelf.need(place + by);
  if (next) { await openImage(place + by, next.image); }
}

// --- pointer and keys -------------------------------------------------------------------------

function pixelOf(event) {
  const box = marks().getBoundingClientRect();
  const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  return share.map((part, axis) => Math.min(facts.photograph[axis] - 1, Math.max(0, Math.floor(part * facts.photograph[axis]))));
}

function indexOf([x, y]) {
  const [width, height] = facts.size;
  return Math.floor(y * height / facts.photograph[1]) * width + Math.floor(x * width / facts.photograph[0]);
}

function radius() { return Number(find("radius").value) / 1000 * Math.max(...facts.photograph); }

function tellUnder(n) {
  const number = effective(n), each = legend.get(number);
  const name = number === IGNORE ? "left out" : each ? each.name : "";
  find("under").textContent = `${name}${maps.said[n] !== OPEN ? ", as you said" : ""}`;
}

function startPointer() {
  const canvas = marks();
  canvas.addEventListener("pointermove", (event) => {
    if (!maps) { return; }
    const pixel = pixelOf(event), n = indexOf(pixel);
    tellUnder(n);
    if (stroke) {
      const last = stroke.path[stroke.path.length - 1];
      if (Math.hypot(pixel[0] - last[0], pixel[1] - last[1]) >= Math.max(1, stroke.radius / 4)) {
        stroke.path.push(pixel);
        drawMarks();
      }
    } else if (tool === "click" && maps.proposals[n] !== marked) {
      marked = maps.proposals[n];
      drawMarks();
    } else if (tool !== "click") {
      drawMarks();
      const context = canvas.getContext("2d"), scale = facts.size[0] / facts.photograph[0];
      context.beginPath();
      context.arc(pixel[0] * scale, pixel[1] * scale, radius() * scale, 0, 2 * Math.PI);
      context.lineWidth = 2;
      context.strokeStyle = "white";
      context.stroke();
    }
  });
  canvas.addEventListener("pointerleave", () => { if (maps && !stroke) { marked = 0; drawMarks(); } });
  canvas.addEventListener("pointerdown", (event) => {
    if (!maps || event.button !== 0) { return; }
    const pixel = pixelOf(event);
    if (tool === "click") { click(pixel); return; }
    canvas.setPointerCapture(event.pointerId);
    stroke = { path: [pixel], radius: radius(), name: tool === "erase" ? "" : chosen };
    drawMarks();
  });
  canvas.addEventListener("pointerup", () => {
    if (stroke) { const made = stroke; stroke = null; paint(made); }
  });
  canvas.addEventListener("pointercancel", () => { stroke = null; if (maps) { drawMarks(); } });
}

function stepProposal(by) {
  const all = Array.from(new Set(maps.proposals)).filter((number) => number > 0).sort((a, b) => a - b);
  if (!all.length) { return; }
  chooseTool("click");
  marked = all[(all.indexOf(marked) + by + all.length) % all.length];
  tellUnder(maps.proposals.indexOf(marked));
  drawMarks();
}

function clickMarked() {
  const own = [];
  for (let n = 0; n < maps.proposals.length; n += 1) { if (maps.proposals[n] === marked) { own.push(n); } }
  const n = own[Math.floor(own.length / 2)], [width, height] = facts.size;
  const scale = [facts.photograph[0] / width, facts.photograph[1] / height];
  click([Math.floor((n % width + 0.5) * scale[0]), Math.floor((Math.floor(n / width) + 0.5) * scale[1])]);
}

const slide = (id, by) => { find(id).value = Number(find(id).value) + by; find(id).dispatchEvent(new Event("input")); };
const STEPS = { ArrowLeft: -1, a: -1, ArrowRight: 1, d: 1 };
const KEYS = {
  c: () => chooseTool("click"), b: () => chooseTool("paint"), e: () => chooseTool("erase"),
  r: () => find("right").click(), x: () => find("ignore").click(),
  "[": () => slide("radius", -5), "]": () => slide("radius", 5),
  "-": () => slide("opacity", -10), "+": () => slide("opacity", 10),
  ",": () => stepProposal(-1), ".": () => stepProposal(1),
  Enter: () => { if (marked) { clickMarked(); } },
  n: () => find("class-name").focus(),
  Escape: closeImage,
};

export function pressEasel(event) {
  if (event.key === "l") { find("canvas").classList.toggle("bare"); return true; }
  if (STEPS[event.key] && event.target.type !== "range") { step(STEPS[event.key]).catch(fail); return true; }
  if (!facts || !maps) { return false; }
  const onControl = event.target.matches("button, input, select");
  if (onControl && (event.key === "Enter" || event.key.startsWith("Arrow"))) { return false; }
  if (/^[1-9]$/.test(event.key)) {
    const button = find("classes").querySelectorAll(".class")[Number(event.key) - 1];
    if (button) { button.click(); }
    return true;
  }
  if (!KEYS[event.key]) { return false; }
  KEYS[event.key]();
  return true;
}

export function startEasel(known) {
  names = known;
  startPointer();
  document.querySelectorAll("[data-tool]").forEach((button) => button.addEventListener("click", () => chooseTool(button.dataset.tool)));
  find("radius").addEventListener("input", () => { find("radius-value").textContent = find("radius").value; });
  find("opacity").addEventListener("input", () => {
    find("opacity-value").textContent = `${find("opacity").value} %`;
    layer().style.opacity = Number(find("opacity").value) / 100;
  });
  layer().style.opacity = 0.55;
  find("before").addEventListener("click", () => step(-1));
  find("after").addEventListener("click", () => step(1));
  find("back").addEventListener("click", closeImage);
  find("right").addEventListener("click", () => judge("right", "Its labels are right as they are; those without a name stay open."));
  find("ignore").addEventListener("click", () => judge("ignore", "The whole image is left out."));
  find("class-new").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = find("class-name").value.trim();
    if (!name || !facts) { return; }
    if (name.toLowerCase() !== "ignore" && !extra.includes(name)) { extra.push(name); }
    find("class-name").value = "";
    find("class-name").blur();
    chooseClass(name.toLowerCase() === "ignore" ? "ignore" : name);
  });
  find("class-name").addEventListener("keydown", (event) => { if (event.key === "Escape") { find("class-name").blur(); event.stopPropagation(); } });
  chooseTool("click");
}

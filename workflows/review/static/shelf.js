// The list of images: only what is on the screen is there, however many there are.
import { fail, find, make, read, show } from "./common.js";

const BLOCK = 100, TALL = 128, NARROW = 118;
let total = 0, columns = 1, asked = 0, turn = 0;
let blocks = new Map();
let current = null;
let open = () => undefined;
const drawn = new Map();

function query(start, count) {
  const search = encodeURIComponent(find("images-search").value);
  const split = encodeURIComponent(find("images-split").value);
  return `images?start=${start}&count=${count}&search=${search}&split=${split}&said=${find("images-said").checked ? 1 : 0}&turn=${find("images-order").value ? turn : ""}`;
}

async function load(block) {
  if (blocks.has(block)) { return; }
  const turn = asked;
  blocks.set(block, []);
  try {
    const page = await read(query(block * BLOCK, BLOCK));
    if (turn !== asked) { return; }
    blocks.set(block, page.images);
    if (page.total !== total || block === 0) { total = page.total; count(); }
  } catch (error) { blocks.delete(block); fail(error); }
  draw();
}

function count() {
  find("images-count").textContent = `${total.toLocaleString("en")} image${total === 1 ? "" : "s"}`;
}

export async function refill(keep = false) {
  asked += 1;
  blocks = new Map();
  if (!keep) { find("shelf").scrollTop = 0; }
  drawn.forEach((item) => item.element.remove());
  drawn.clear();
  await load(0);
}

// what is said has changed: the marks of what is on the screen, and no more
export async function remark() {
  if (find("images-view").hidden) { return; }
  if (find("images-said").checked) { await refill(true); return; }
  const held = blocks;
  await Promise.all(Array.from(held.keys(), async (block) => {
    const page = await read(query(block * BLOCK, BLOCK));
    if (blocks === held) { held.set(block, page.images); }
  }));
  draw();
}

export function at(place) {
  const block = blocks.get(Math.floor(place / BLOCK));
  return block ? block[place % BLOCK] : undefined;
}

function draw() {
  const shelf = find("shelf"), space = shelf.firstElementChild;
  columns = Math.max(1, Math.floor(space.clientWidth / NARROW));
  space.style.height = `${Math.ceil(total / columns) * TALL}px`;
  const first = Math.max(0, Math.floor(shelf.scrollTop / TALL) - 2) * columns;
  const end = Math.min(total, (Math.ceil((shelf.scrollTop + shelf.clientHeight) / TALL) + 2) * columns);
  for (const [place, item] of drawn) {
    if (place < first || place >= end) { item.element.remove(); drawn.delete(place); }
  }
  for (let place = first; place < end; place += 1) {
    const facts = at(place);
    if (!facts) { load(Math.floor(place / BLOCK)); continue; }
    const item = drawn.get(place) || makeItem(place, facts);
    item.element.classList.toggle("said", facts.said);
    item.element.setAttribute("aria-selected", String(facts.image === current));
    item.element.style.transform = `translate(${(place % columns) * 100}%, ${Math.floor(place / columns) * TALL}px)`;
    item.element.style.width = `${100 / columns}%`;
  }
}

function makeItem(place, facts) {
  const image = make("img", { alt: "", decoding: "async" });
  const element = make("div", {
    className: "shelf-item", role: "option", id: `image-${facts.image}`, title: facts.id,
    onclick: () => open(place, facts),
  }, image, make("span", { className: "shelf-name" }, facts.id.split("/").pop()));
  find("shelf").firstElementChild.append(element);
  // those that are scrolled past are not asked for
  window.setTimeout(() => { if (element.isConnected) { show(image, `thumbnail/${facts.image}`); } }, 80);
  const item = { element };
  drawn.set(place, item);
  return item;
}

export function select(row) {
  current = row;
  draw();
  find("shelf").setAttribute("aria-activedescendant", `image-${row}`);
}

export function reveal(place) {
  const shelf = find("shelf"), top = Math.floor(place / columns) * TALL;
  if (top < shelf.scrollTop) { shelf.scrollTop = top; }
  if (top + TALL > shelf.scrollTop + shelf.clientHeight) { shelf.scrollTop = top + TALL - shelf.clientHeight; }
}

export async function need(place) {
  if (place < 0 || place >= total) { return undefined; }
  if (!at(place)) { blocks.delete(Math.floor(place / BLOCK)); await load(Math.floor(place / BLOCK)); }
  return at(place);
}

export function startShelf(splits, ordered, opened) {
  open = opened;
  find("images-split").append(make("option", { value: "" }, "all splits"), ...splits.map((split) => make("option", { value: split }, split)));
  find("images-split").hidden = splits.length < 2;
  let waiting = 0;
  find("images-search").addEventListener("input", () => {
    window.clearTimeout(waiting);
    waiting = window.setTimeout(() => refill(), 200);
  });
  find("images-split").addEventListener("change", () => refill());
  find("images-order").hidden = !ordered;
  find("images-order").addEventListener("change", () => { turn += 1; find("images-count").textContent = "…"; refill().catch(fail); });
  find("images-said").addEventListener("change", () => refill());
  let drawing = false;
  const later = () => {
    if (!drawing) { drawing = true; window.requestAnimationFrame(() => { drawing = false; draw(); }); }
  };
  find("shelf").addEventListener("scroll", later, { passive: true });
  new ResizeObserver(later).observe(find("shelf"));
}

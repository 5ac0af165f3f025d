// Clusters as cards: name, merge, split, ignore; with the mouse or with keys alone.
import { change, colour, complete, fail, find, isIgnored, make, percent, read, showLater, swatch, tell } from "./common.js";

let state = { clusters: [], names: [], images: [] };
const cards = new Map();
const chosenClusters = new Set();
const chosenCutouts = new Set();
let openImage = () => undefined;

export function names() { return state.names; }

let loading = null, again = false;

// one at a time, and once more where it was asked for meanwhile
export async function loadClusters() {
  again = true;
  loading = loading || (async () => {
    try {
      while (again) { again = false; await loadOnce(); }
    } finally { loading = null; }
  })();
  await loading;
}

async function loadOnce() {
  state = await read("clusters");
  for (const facts of state.clusters) {
    const card = cards.get(facts.cluster) || makeCard(facts.cluster);
    fillCard(card, facts);
  }
  arrange(false);
}

// --- one card ---------------------------------------------------------------------------------

function makeCard(cluster) {
  const input = make("input", {
    id: `name-${cluster}`, className: "name", autocomplete: "off", spellcheck: false, maxLength: 100,
    ariaLabel: `Name of cluster ${cluster}`, placeholder: `cluster ${cluster}`,
  });
  const element = make("li", { className: "panel card", tabIndex: -1, id: `card-${cluster}` });
  const card = {
    cluster, element, input,
    mark: swatch([128, 128, 128]),
    box: make("input", { type: "checkbox", ariaLabel: `Choose cluster ${cluster}`, onchange: () => choose(cluster, card.box.checked) }),
    same: make("button", { type: "button", className: "button same", onclick: () => nameSame(cluster) }),
    ignore: make("button", { type: "button", className: "button", onclick: () => toggleIgnored(cluster) }),
    figures: make("p", { className: "muted small card-figures" }),
    typical: make("ul", { className: "cutouts", ariaLabel: `Typical of cluster ${cluster}` }),
    doubtful: make("ul", { className: "cutouts", ariaLabel: `Doubtful in cluster ${cluster}` }),
    doubt: make("p", { className: "muted small card-doubt" }, "Doubtful:"),
    pictures: "",
    saving: 0,
  };
  element.append(
    make("div", { className: "card-head" }, make("label", { className: "card-choose" }, card.box, card.mark), make("span", { className: "naming" }, input), card.same, card.ignore),
    card.figures, card.typical, card.doubt, card.doubtful,
  );
  complete(input, names, (go) => saveName(card, go), () => { input.value = seen(cluster) || ""; element.focus(); });
  input.addEventListener("change", () => saveName(card, false));
  input.addEventListener("focus", () => input.select());
  element.addEventListener("focusin", () => { at = cluster; });
  cards.set(cluster, card);
  return card;
}

function fillCard(card, facts) {
  // what is on its way is newer than what the server has listed
  const name = card.saving ? card.facts.name : facts.name;
  card.facts = { ...facts, name };
  if (!card.saving && (document.activeElement !== card.input || card.input.value === (card.shown || ""))) { card.input.value = name || ""; }
  card.shown = name || "";
  card.element.classList.toggle("named", name !== null && !isIgnored(name));
  card.element.classList.toggle("ignored", isIgnored(name));
  card.element.style.setProperty("--colour", colour(facts.colour));
  card.mark.style.background = colour(facts.colour);
  card.ignore.textContent = isIgnored(name) ? "Use again" : "Ignore";
  const parts = [];
  if (facts.share !== undefined) { parts.push(`${percent(facts.share)} of the pixels`); }
  if (facts.proposals !== undefined) { parts.push(`${facts.proposals} proposal${facts.proposals === 1 ? "" : "s"} seen`); }
  if (facts.nearest) { parts.push(`nearest: ${call(facts.nearest[0])}`); }
  if (facts.rival) { parts.push(`in doubt with ${call(facts.rival[0])}: ${percent(facts.rival[1])}`); }
  card.figures.textContent = parts.join(" · ");
  const other = facts.nearest ? seenIn(facts.nearest[0]) : null;
  card.same.hidden = !other || isIgnored(other) || other === name;
  card.same.textContent = `Same as ${other}`;
  const pictures = JSON.stringify([facts.typical, facts.doubtful, facts.told]);
  if (card.pictures !== pictures) {
    card.pictures = pictures;
    card.typical.replaceChildren(...(facts.typical || []).map((place) => makeCutout(card, place)));
    card.doubtful.replaceChildren(...(facts.doubtful || []).map((place) => makeCutout(card, place)));
    card.doubt.hidden = !(facts.doubtful || []).length;
  }
}

function seenIn(cluster) { return state.clusters[cluster] ? state.clusters[cluster].name : null; }
function seen(cluster) { return cards.get(cluster).facts.name; }
function call(cluster) { return seenIn(cluster) || `cluster ${cluster}`; }

function makeCutout(card, place) {
  const told = (card.facts.told || {})[place];
  const [, id] = state.images[place];
  const image = make("img", { alt: "", decoding: "async", width: 128, height: 128 });
  showLater(image, `cutout/${place}`);
  const button = make("button", {
    type: "button", className: "cutout", title: `${id}${told ? `: ${told}` : ""}`,
    ariaPressed: String(chosenCutouts.has(place)), ariaLabel: `Cut-out of ${id}`,
    onclick: () => { toggleCutout(place, button); },
    ondblclick: () => openImage(state.images[place][0]),
  }, image, told ? make("span", { className: "cutout-told" }, told) : null);
  button.dataset.place = place;
  return make("li", {}, button);
}

// --- names ------------------------------------------------------------------------------------

async function setNames(changes) {
  try {
    await change("names", { changes });
    await loadClusters();
    return true;
  } catch (error) {
    fail(error);
    if (error.status === 409) { await loadClusters(); }
    return false;
  }
}

async function saveName(card, go) {
  const name = card.input.value.trim() || null;
  const before = card.facts.name;
  // before the field is left, whose change event would send it again
  card.facts = { ...card.facts, name };
  if (name === before) { card.input.value = before || ""; }
  if (go) { step(1, true); }
  if (name === before) { return; }
  card.saving += 1;
  card.element.classList.add("saving");
  const done = await setNames([{ cluster: card.cluster, seen: before, name }]);
  card.saving -= 1;
  card.element.classList.remove("saving");
  if (!done) {
    const now = state.clusters[card.cluster].name;
    card.facts = { ...card.facts, name: now === name ? before : now };
    card.input.value = name || "";
    card.shown = name || "";
  }
  card.element.classList.toggle("unsaved", !done);
}

function toggleIgnored(cluster) {
  const before = seen(cluster);
  setNames([{ cluster, seen: before, name: isIgnored(before) ? null : "ignore" }]);
}

function nameSame(cluster) {
  const { nearest } = cards.get(cluster).facts;
  const name = nearest ? seenIn(nearest[0]) : null;
  if (name) { setNames([{ cluster, seen: seen(cluster), name }]); }
}

// --- several at once --------------------------------------------------------------------------

function choose(cluster, wanted) {
  if (wanted) { chosenClusters.add(cluster); dropCutouts(); } else { chosenClusters.delete(cluster); }
  cards.get(cluster).box.checked = wanted;
  cards.get(cluster).element.classList.toggle("chosen", wanted);
  showChosen();
}

function toggleCutout(place, button) {
  if (chosenCutouts.has(place)) { chosenCutouts.delete(place); } else { chosenCutouts.add(place); }
  Array.from(chosenClusters).forEach((cluster) => choose(cluster, false));
  button.setAttribute("aria-pressed", String(chosenCutouts.has(place)));
  showChosen();
}

function dropCutouts() {
  chosenCutouts.clear();
  document.querySelectorAll(".cutout[aria-pressed=true]").forEach((each) => each.setAttribute("aria-pressed", "false"));
}

function dropAll() {
  Array.from(chosenClusters).forEach((cluster) => choose(cluster, false));
  dropCutouts();
  showChosen();
}

function showChosen() {
  const clusters = chosenClusters.size, cutouts = chosenCutouts.size;
  find("chosen").hidden = !clusters && !cutouts;
  const many = (number, unit) => `${number} ${unit}${number === 1 ? "" : "s"}`;
  find("chosen-what").textContent = clusters ? `${many(clusters, "cluster")} chosen` : `${many(cutouts, "cut-out")} chosen`;
  find("chosen-name").placeholder = clusters ? "One name for all: merge" : "Another class: split";
  find("chosen-look").hidden = cutouts !== 1;
}

async function nameChosen(name) {
  if (!name) { find("chosen-name").focus(); return; }
  if (chosenClusters.size) {
    const changes = Array.from(chosenClusters, (cluster) => ({ cluster, seen: seen(cluster), name }));
    if (!await setNames(changes)) { return; }
  } else {
    let made = 0;
    try {
      for (const place of Array.from(chosenCutouts)) {
        await change(`example/${place}`, { seen: toldOf(place), name });
        made += 1;
      }
      tell(`${made} cut-outs are ${name}; the next evaluate follows.`);
    } catch (error) { fail(error); }
    await loadClusters();
  }
  find("chosen-name").value = "";
  dropAll();
}

function toldOf(place) {
  for (const { told } of state.clusters) {
    if (told && told[place] !== undefined) { return told[place]; }
  }
  return null;
}

// --- order, filter, keys ----------------------------------------------------------------------

let at = null;
let shown = [];

const ORDERS = {
  share: (a, b) => (b.share || 0) - (a.share || 0) || a.cluster - b.cluster,
  number: (a, b) => a.cluster - b.cluster,
  name: (a, b) => (a.name || "\uffff").localeCompare(b.name || "\uffff") || a.cluster - b.cluster,
  doubt: (a, b) => (b.rival ? b.rival[1] : 0) - (a.rival ? a.rival[1] : 0) || a.cluster - b.cluster,
};
const FILTERS = {
  all: () => true,
  open: (facts) => facts.name === null,
  named: (facts) => facts.name !== null && !isIgnored(facts.name),
  ignored: (facts) => isIgnored(facts.name),
};

// what is named does not leave its place, or the list, before the next look
function arrange(anew) {
  const known = new Set(shown);
  const listed = state.clusters.filter(FILTERS[find("cards-filter").value]).map((facts) => facts.cluster);
  const settled = state.clusters.length > 0 && state.clusters[0].share !== undefined;
  if (anew || !shown.length || (settled && !arrange.settled) || listed.some((cluster) => !known.has(cluster))) {
    const order = ORDERS[find("cards-order").value];
    const facts = listed.map((cluster) => state.clusters[cluster]).sort(order);
    shown = facts.map((each) => each.cluster);
    const held = document.activeElement;
    find("cards").replaceChildren(...shown.map((cluster) => cards.get(cluster).element));
    if (held && held.isConnected) { held.focus({ preventScroll: true }); }
    arrange.settled = settled;
  }
  const named = state.clusters.filter(FILTERS.named).length;
  find("cards-count").textContent = `${named} of ${state.clusters.length} clusters have a name`;
  shown.forEach((cluster, n) => { cards.get(cluster).element.tabIndex = cluster === at || (at === null && n === 0) ? 0 : -1; });
}

function step(by, naming = false) {
  let place = shown.indexOf(at);
  do { place += by; } while (naming && shown[place] !== undefined && seen(shown[place]) !== null && place < shown.length);
  const next = shown[place];
  if (next === undefined) { return; }
  at = next;
  const { element, input } = cards.get(next);
  (naming ? input : element).focus();
  element.scrollIntoView({ block: "nearest" });
}

export function pressCluster(event) {
  const { key } = event;
  if (at === null || !shown.includes(at)) { at = shown.length ? shown[0] : null; }
  if (at === null) { return false; }
  const onCard = document.activeElement === cards.get(at).element;
  if (key === "j" || (onCard && key === "ArrowDown")) { step(onCard ? 1 : 0); }
  else if (key === "k" || (onCard && key === "ArrowUp")) { step(onCard ? -1 : 0); }
  else if (key === "Enter" && onCard) { cards.get(at).input.focus(); }
  else if (key === "i") { toggleIgnored(at); }
  else if (key === "s") { nameSame(at); }
  else if (key === "m") { choose(at, !chosenClusters.has(at)); }
  else if (key === "M" && !find("chosen").hidden) { find("chosen-name").focus(); }
  else if (key === "Escape" && !find("chosen").hidden) { dropAll(); }
  else { return false; }
  return true;
}

export function startClusters(open) {
  openImage = open;
  find("cards-filter").addEventListener("change", () => arrange(true));
  find("cards-order").addEventListener("change", () => arrange(true));
  complete(find("chosen-name"), names, () => nameChosen(find("chosen-name").value.trim()), dropAll);
  find("chosen-save").addEventListener("click", () => nameChosen(find("chosen-name").value.trim()));
  find("chosen-ignore").addEventListener("click", () => nameChosen("ignore"));
  find("chosen-drop").addEventListener("click", dropAll);
  find("chosen-look").addEventListener("click", () => {
    const [place] = chosenCutouts;
    dropAll();
    openImage(state.images[place][0]);
  });
}

export function hideChosen() { dropAll(); }

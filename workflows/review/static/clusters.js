// Clusters as cards: name, merge, split, ignore; with the mouse or with keys alone.
import { change, colour, complete, fail, find, isIgnored, make, percent, read, showLater, swatch, tell } from "./common.js";

let state = { clusters: [], names: [], images: [] };
// cards, and what is known, of clusters and of parts of them: "12", "12.0"
const cards = new Map();
let known = new Map();
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
  known = new Map(state.clusters.map((facts) => [facts.part, facts]));
  for (const facts of state.clusters) {
    const card = cards.get(facts.part) || makeCard(facts.part);
    fillCard(card, facts);
  }
  arrange(false);
}

// --- one card ---------------------------------------------------------------------------------

function makeCard(part) {
  const title = part.includes(".") ? `half ${part}` : `cluster ${part}`;
  const input = make("input", {
    id: `name-${part}`, className: "name", autocomplete: "off", spellcheck: false, maxLength: 100,
    ariaLabel: `Name of ${title}`, placeholder: title,
  });
  const element = make("li", { className: "panel card", tabIndex: -1, id: `card-${part}` });
  element.classList.toggle("half", part.includes("."));
  const card = {
    part, element, input,
    mark: swatch([128, 128, 128]),
    box: make("input", { type: "checkbox", ariaLabel: `Choose ${title}`, onchange: () => choose(part, card.box.checked) }),
    same: make("button", { type: "button", className: "button same", onclick: () => nameSame(part) }),
    split: make("button", { type: "button", className: "button", onclick: () => split(part) }, "Split"),
    ignore: make("button", { type: "button", className: "button", onclick: () => toggleIgnored(part) }),
    figures: make("p", { className: "muted small card-figures" }),
    typical: make("ul", { className: "cutouts", ariaLabel: `Typical of ${title}` }),
    doubtful: make("ul", { className: "cutouts", ariaLabel: `Doubtful in ${title}` }),
    doubt: make("p", { className: "muted small card-doubt" }, "Doubtful:"),
    pictures: "",
    saving: 0,
  };
  element.append(
    make("div", { className: "card-head" }, make("label", { className: "card-choose" }, card.box, card.mark), make("span", { className: "naming" }, input), card.same, card.split, card.ignore),
    card.figures, card.typical, card.doubt, card.doubtful,
  );
  complete(input, names, (go) => saveName(card, go), () => { input.value = seen(part) || ""; element.focus(); });
  input.addEventListener("change", () => saveName(card, false));
  input.addEventListener("focus", () => input.select());
  element.addEventListener("focusin", () => { at = part; });
  cards.set(part, card);
  return card;
}

function fillCard(card, facts) {
  // what is on its way is newer than what the server has listed
  const name = card.saving ? card.facts.name : facts.name;
  card.facts = { ...facts, name };
  if (!card.saving && (document.activeElement !== card.input || card.input.value === (card.shown || ""))) { card.input.value = name || ""; }
  card.shown = name || "";
  if (facts.known) { card.input.placeholder = `${facts.known}, as is known`; }
  card.element.classList.toggle("named", name !== null && !isIgnored(name));
  card.element.classList.toggle("ignored", isIgnored(name));
  card.element.style.setProperty("--colour", colour(facts.colour));
  card.mark.style.background = colour(facts.colour);
  card.split.hidden = !facts.splits;
  card.ignore.textContent = isIgnored(name) ? "Use again" : "Ignore";
  const parts = [];
  if (facts.share !== undefined) { parts.push(`${percent(facts.share)} of the pixels`); }
  if (facts.proposals !== undefined) { parts.push(`${facts.proposals} proposal${facts.proposals === 1 ? "" : "s"} seen`); }
  if (facts.nearest) { parts.push(`nearest: ${call(String(facts.nearest[0]))}`); }
  if (facts.rival) { parts.push(`in doubt with ${call(String(facts.rival[0]))}: ${percent(facts.rival[1])}`); }
  card.figures.textContent = parts.join(" · ");
  const other = facts.nearest ? seenIn(String(facts.nearest[0])) : null;
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

function seenIn(part) { return known.has(part) ? known.get(part).name : null; }
function seen(part) { return cards.get(part).facts.name; }
function call(part) { return seenIn(part) || `cluster ${part}`; }

// what is split has a name where both its halves have one
function isNamed(part) {
  if (!known.has(part)) { return false; }
  return known.get(part).name !== null || (isNamed(`${part}.0`) && isNamed(`${part}.1`));
}

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
  const done = await setNames([{ cluster: card.part, seen: before, name }]);
  card.saving -= 1;
  card.element.classList.remove("saving");
  if (!done) {
    const now = seenIn(card.part);
    card.facts = { ...card.facts, name: now === name ? before : now };
    card.input.value = name || "";
    card.shown = name || "";
  }
  card.element.classList.toggle("unsaved", !done);
}

function toggleIgnored(part) {
  const before = seen(part);
  setNames([{ cluster: part, seen: before, name: isIgnored(before) ? null : "ignore" }]);
}

function nameSame(part) {
  const { nearest } = cards.get(part).facts;
  const name = nearest ? seenIn(String(nearest[0])) : null;
  if (name) { setNames([{ cluster: part, seen: seen(part), name }]); }
}

async function split(part) {
  try {
    await change("split", { cluster: part });
    await loadClusters();
    cards.get(`${part}.0`).input.focus();
  } catch (error) { fail(error); }
}

// --- several at once --------------------------------------------------------------------------

function choose(part, wanted) {
  if (wanted) { chosenClusters.add(part); dropCutouts(); } else { chosenClusters.delete(part); }
  cards.get(part).box.checked = wanted;
  cards.get(part).element.classList.toggle("chosen", wanted);
  showChosen();
}

function toggleCutout(place, button) {
  if (chosenCutouts.has(place)) { chosenCutouts.delete(place); } else { chosenCutouts.add(place); }
  Array.from(chosenClusters).forEach((part) => choose(part, false));
  button.setAttribute("aria-pressed", String(chosenCutouts.has(place)));
  showChosen();
}

function dropCutouts() {
  chosenCutouts.clear();
  document.querySelectorAll(".cutout[aria-pressed=true]").forEach((each) => each.setAttribute("aria-pressed", "false"));
}

function dropAll() {
  Array.from(chosenClusters).forEach((part) => choose(part, false));
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
    const changes = Array.from(chosenClusters, (part) => ({ cluster: part, seen: seen(part), name }));
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
  const before = new Set(shown);
  const listed = state.clusters.filter(FILTERS[find("cards-filter").value]).map((facts) => facts.part);
  const settled = state.clusters.length > 0 && state.clusters[0].share !== undefined;
  if (anew || !shown.length || (settled && !arrange.settled) || listed.some((part) => !before.has(part))) {
    const order = ORDERS[find("cards-order").value];
    // halves stand behind what they are halves of
    const whole = (part) => known.get(part.split(".")[0]);
    shown = listed.sort((a, b) => order(whole(a), whole(b)) || a.localeCompare(b));
    const held = document.activeElement;
    find("cards").replaceChildren(...shown.map((part) => cards.get(part).element));
    if (held && held.isConnected) { held.focus({ preventScroll: true }); }
    arrange.settled = settled;
  }
  const all = state.clusters.filter((facts) => !facts.part.includes("."));
  const named = all.filter((facts) => isNamed(facts.part) && !isIgnored(facts.name)).length;
  find("cards-count").textContent = `${named} of ${all.length} clusters have a name`;
  shown.forEach((part, n) => { cards.get(part).element.tabIndex = part === at || (at === null && n === 0) ? 0 : -1; });
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
  else if (key === "p" && cards.get(at).facts.splits) { split(at); }
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

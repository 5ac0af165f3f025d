// The page as a whole: two tabs, undo, keys, and what other pages or programs have changed.
import { change, fail, find, make, read, tell } from "./common.js";
import { hideChosen, loadClusters, names, pressCluster, startClusters } from "./clusters.js";
import { openImage, pressEasel, reload, startEasel } from "./easel.js";
import { refill, remark, startShelf } from "./shelf.js";
import { showStanding } from "./standing.js";

const TABS = ["clusters", "images"];
const KEYS = [
  ["Clusters", [
    ["j, k", "next card, card before"], ["Enter", "type a name; Enter saves it and goes on"], ["Tab", "complete a name"],
    ["s", "same name as the nearest cluster"], ["i", "ignore"], ["p", "split into its halves"], ["m, then M", "choose cards; one name for all"],
  ]],
  ["Images", [
    ["← →", "image before, next image"], ["1 … 9", "choose a class"], ["n", "another class"], [", .", "step through the proposals"],
    ["Enter", "give the proposal the class"], ["c, b, e", "proposal, brush, eraser"], ["[ ]", "size of the brush"],
    ["− +", "opacity of the labels"], ["l", "labels on, off"], ["r", "this image is right"], ["x", "ignore this image"],
  ]],
  ["Everywhere", [["u", "undo"], ["g", "clusters, images"], ["?", "these keys"]]],
];
let run = null, undo = null, filled = false;

function showTab(name) {
  for (const each of TABS) {
    const on = each === name, tab = find(`tab-${each}`);
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    find(`${each}-view`).hidden = !on;
  }
  document.body.dataset.tab = name;
  hideChosen();
  if (name === "images" && !filled) { filled = true; refill().catch(fail); }
}

function onTab() { return document.body.dataset.tab; }

async function takeBack() {
  if (!undo) { return; }
  const { number, what } = undo;
  undo = null;
  find("undo").disabled = true;
  try {
    await change("undo", { number });
    tell(`Undone: ${what}`);
  } catch (error) { fail(error); }
}

function press(event) {
  if (event.defaultPrevented || event.altKey || event.metaKey || find("help").open) { return; }
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (event.ctrlKey) {
    if (event.key === "z" && !typing) { event.preventDefault(); takeBack(); }
    return;
  }
  if (typing) { return; }
  const common = { u: takeBack, g: () => showTab(onTab() === "images" ? "clusters" : "images"), "?": () => find("help").showModal() };
  const taken = common[event.key] ? (common[event.key](), true) : (onTab() === "clusters" ? pressCluster : pressEasel)(event);
  if (taken) { event.preventDefault(); }
}

async function openFrom(row) {
  showTab("images");
  await openImage(-1, row);
}

// --- what has changed -------------------------------------------------------------------------

let before = {};

async function follow(now) {
  undo = now.undo;
  find("undo").disabled = !undo;
  find("undo").title = undo ? undo.what : "";
  if (now.trouble && now.trouble !== before.trouble) { tell(now.trouble, "bad"); }
  // at first all does
  const differs = (name) => before[name] !== now[name];
  const work = [];
  if (differs("names") || differs("examples") || differs("said")) { work.push(loadClusters()); }
  if (differs("standing")) { work.push(showStanding(run)); }
  if (differs("names") || differs("said")) { work.push(reload()); }
  if (differs("said")) { work.push(remark()); }
  before = now;
  await Promise.all(work);
}

async function listen() {
  let seen = "", lost = false;
  for (;;) {
    try {
      const now = await read(`pulse?seen=${encodeURIComponent(seen)}`);
      seen = now.seen;
      if (lost) { lost = false; find("gone").hidden = true; }
      await follow(now);
    } catch (error) {
      if (error.status === 0) {
        lost = true;
        find("gone").textContent = "The server has ended. What this page says is saved is saved; run `primaps-pipe review` again and open the address that it prints.";
        find("gone").hidden = false;
      } else { fail(error); }
      await new Promise((done) => { window.setTimeout(done, 1500); });
    }
  }
}

async function start() {
  find("help-keys").append(...KEYS.map(([title, rows]) => make("div", {}, make("h3", {}, title),
    make("dl", { className: "facts" }, ...rows.map(([key, does]) => make("div", {}, make("dt", {}, make("kbd", {}, key)), make("dd", {}, does)))))));
  find("help-open").addEventListener("click", () => find("help").showModal());
  find("help-close").addEventListener("click", () => find("help").close());
  find("undo").addEventListener("click", takeBack);
  TABS.forEach((name) => find(`tab-${name}`).addEventListener("click", () => showTab(name)));
  document.querySelector(".tabs").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") { return; }
    showTab(onTab() === "images" ? "clusters" : "images");
    find(`tab-${onTab()}`).focus();
    event.preventDefault();
  });
  document.addEventListener("keydown", press);
  // beside the clusters it is in nobody's way; above them it is
  find("standing-box").open = window.matchMedia("(min-width: 70.01rem)").matches;
  showTab("clusters");
  try {
    run = await read("run");
  } catch (error) {
    find("gone").textContent = error.message;
    find("gone").hidden = false;
    return;
  }
  find("run").textContent = `${run.run} · ${run.fit} · ${run.clusters} clusters · ${run.images.toLocaleString("en")} images`;
  document.title = `Review of ${run.run}`;
  startClusters((row) => openFrom(row).catch(fail));
  startShelf(run.splits, run.has_proposals, (place, facts) => openImage(place, facts.image).catch(fail));
  startEasel(names);
  listen();
}

start().catch(fail);

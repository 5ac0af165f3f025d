// What all parts of the page use: elements, requests with the token, pictures, messages.

export function find(id) { return document.getElementById(id); }

// text is text: nothing here makes markup of it
export function make(tag, facts = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name.startsWith("on")) { element.addEventListener(name.slice(2), value); }
    else if (name in element && name !== "list") { element[name] = value; }
    else if (value !== false && value !== null) { element.setAttribute(name, value); }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function colour(rgb) { return `rgb(${rgb.join(" ")})`; }

export function swatch(rgb) {
  const box = make("span", { className: "swatch", ariaHidden: "true" });
  box.style.background = colour(rgb);
  return box;
}

export function percent(share) {
  const value = 100 * share;
  return `${value < 0.95 && value > 0 ? value.toFixed(1) : Math.round(value)} %`;
}

export function isIgnored(name) { return name !== null && name.toLowerCase() === "ignore"; }

// --- requests ---------------------------------------------------------------------------------

const KEY = "review-token";

function takeToken() {
  const given = window.location.hash.slice(1);
  if (/^[\w-]{20,}$/.test(given)) {
    window.sessionStorage.setItem(KEY, given);
    // out of the address bar, and of what is copied from it
    window.history.replaceState(null, "", window.location.pathname);
  }
  return window.sessionStorage.getItem(KEY) || "";
}

const token = takeToken();

export class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, { ...options, headers: { "X-Review-Token": token } });
  } catch (error) {
    if (error.name === "AbortError") { throw error; }
    throw new Refused("The server does not answer.", 0);
  }
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
    throw new Refused(error, answer.status);
  }
  return answer;
}

export async function read(path, options) { return (await ask(path, options)).json(); }

export async function readBytes(path, options) { return (await ask(path, options)).arrayBuffer(); }

let changes = Promise.resolve();
let pending = 0;

// one after another: each carries what the one before it has left
export function change(path, body) {
  pending += 1;
  showPending();
  const made = changes.then(async () => {
    const content = typeof body === "function" ? body() : body;
    const answer = await ask(path, { method: "POST", body: JSON.stringify(content) });
    return answer.json();
  });
  changes = made.catch(() => undefined).then(() => { pending -= 1; showPending(); });
  // what changes nothing is not saved either
  return made.then((answer) => { if (answer.change !== undefined) { saved(); } return answer; });
}

let last = "";

function saved() {
  last = `Saved at ${new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false })}`;
  showPending();
}

function showPending() { find("saved").textContent = pending ? "Saving …" : last; }

window.addEventListener("beforeunload", (event) => { if (pending) { event.preventDefault(); } });

// --- pictures ---------------------------------------------------------------------------------

const MOST_KEPT = 5000;
const addresses = new Map();

async function address(path) {
  if (addresses.has(path)) {
    const kept = addresses.get(path);
    addresses.delete(path);
    addresses.set(path, kept);
    return kept;
  }
  const made = ask(path).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob));
  addresses.set(path, made);
  made.catch(() => addresses.delete(path));
  if (addresses.size > MOST_KEPT) {
    const [oldest, old] = addresses.entries().next().value;
    addresses.delete(oldest);
    old.then((url) => URL.revokeObjectURL(url), () => undefined);
  }
  return made;
}

export async function show(image, path) {
  image.dataset.path = path;
  try {
    const source = await address(path);
    // it may show another one by now
    if (image.dataset.path === path) { image.src = source; }
  } catch (error) {
    image.alt = error.message;
  }
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      watcher.unobserve(entry.target);
      show(entry.target, entry.target.dataset.later);
    }
  }
}, { rootMargin: "400px" });

// a picture that is asked for once it comes near the screen
export function showLater(image, path) {
  image.dataset.later = path;
  watcher.observe(image);
}

// --- messages ---------------------------------------------------------------------------------

export function tell(text, kind = "") {
  const toast = make("div", { className: `toast ${kind}` }, make("span", {}, text));
  const close = make("button", { type: "button", className: "button", ariaLabel: "Close", onclick: () => toast.remove() }, "×");
  toast.append(close);
  find("toasts").append(toast);
  window.setTimeout(() => toast.remove(), kind === "bad" ? 12000 : 5000);
}

export function fail(error) {
  if (error.name !== "AbortError") { tell(error.message, "bad"); }
}

// --- names ------------------------------------------------------------------------------------

// Completion of a name: Tab takes the first that fits, the arrows choose, Enter saves what is there.
export function complete(input, names, save, leave) {
  let at = -1, fitting = [], list = null;

  function close() {
    if (list) { list.remove(); list = null; }
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    at = -1;
  }

  function mark(to) {
    at = to;
    Array.from(list.children).forEach((item, n) => item.setAttribute("aria-selected", String(n === at)));
    if (at >= 0) {
      input.value = fitting[at];
      input.setAttribute("aria-activedescendant", list.children[at].id);
      list.children[at].scrollIntoView({ block: "nearest" });
    }
  }

  function open() {
    close();
    const text = input.value.trim().toLowerCase();
    const all = names();
    const starts = all.filter((name) => name.toLowerCase().startsWith(text));
    const holds = all.filter((name) => !starts.includes(name) && name.toLowerCase().includes(text));
    fitting = [...starts, ...holds].filter((name) => name !== input.value).slice(0, 8);
    if (!fitting.length) { return; }
    list = make("ul", { className: "completion", role: "listbox", id: `${input.id}-list` });
    list.append(...fitting.map((name, n) => make("li", {
      id: `${input.id}-${n}`,
      role: "option",
      onmousedown: (event) => { event.preventDefault(); input.value = name; close(); save(); },
    }, name)));
    input.setAttribute("aria-expanded", "true");
    input.after(list);
  }

  input.setAttribute("role", "combobox");
  input.setAttribute("aria-autocomplete", "list");
  input.setAttribute("aria-expanded", "false");
  input.addEventListener("input", open);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) { return; }
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (!list) { open(); }
      if (list) {
        const step = event.key === "ArrowDown" ? 1 : -1;
        mark((at + step + fitting.length) % fitting.length);
      }
      event.preventDefault();
    } else if (event.key === "Tab" && list && at < 0 && input.value.trim() && !event.shiftKey) {
      input.value = fitting[0];
      close();
      event.preventDefault();
    } else if (event.key === "Enter") {
      event.preventDefault();
      close();
      save(true);
    } else if (event.key === "Escape") {
      if (list) { close(); } else { leave(); }
      event.stopPropagation();
    }
  });
}

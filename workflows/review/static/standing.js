// The panel: what the named set gives now, measured on a sample of the images.
import { find, make, percent, read, swatch } from "./common.js";

export async function showStanding(run) {
  const now = await read("standing");
  if (!now) { return; }
  const box = find("standing");
  const facts = [["Named", percent(now.named_share), "of all pixels"]];
  if (now.ignored_share > 0) { facts.push(["Ignored", percent(now.ignored_share), "of all pixels"]); }
  if (now.miou !== null) {
    facts.push(["mIoU", `${now.miou.toFixed(1)} %`, ""], ["Accuracy", `${now.accuracy.toFixed(1)} %`, ""]);
  }
  const named = now.classes.filter((each) => each.named);
  const scored = named.some((each) => each.iou !== null);
  const rows = named.sort((a, b) => b.share - a.share).map((each) => make("tr", {},
    make("th", { scope: "row" }, swatch(each.colour), each.name),
    make("td", { className: "number" }, percent(each.share)),
    make("td", { className: "number" }, String(each.images)),
    scored ? make("td", { className: "number" }, each.iou === null ? "–" : each.iou.toFixed(0)) : null));
  const parts = [
    make("dl", { className: "standing-facts" }, ...facts.map(([name, value, detail]) => make("div", {},
      make("dt", {}, name), make("dd", {}, make("span", { className: "value" }, value), detail ? ` ${detail}` : "")))),
  ];
  if (rows.length) {
    parts.push(make("table", {},
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Class"),
        make("th", { scope: "col", className: "number" }, "Share"),
        make("th", { scope: "col", className: "number" }, "Images"),
        scored ? make("th", { scope: "col", className: "number" }, "IoU") : null)),
      make("tbody", {}, ...rows)));
  } else {
    parts.push(make("p", { className: "muted small" }, "Name a cluster, and the class appears here."));
  }
  const nearest = now.joined && !now.classes.some((each) => !each.named) ? " go to the nearest class" : "";
  const left = now.unnamed ? `${now.unnamed} clusters without a name${nearest}. ` : "";
  const lacking = now.unfound.length ? ` No cluster is named ${now.unfound.join(", ")}.` : "";
  const of = now.windows < now.all_windows ? `${now.windows} of ${now.all_windows} windows` : `all ${now.windows} windows`;
  parts.push(
    make("p", { className: "muted small" }, `${left}Measured on ${of}, without the CRF, at the patches of the features.${lacking}`),
    make("p", { className: "small standing-next" }, "Then make the labels:"),
    make("div", { className: "command" }, make("code", {}, run.command),
      make("button", { type: "button", className: "button", onclick: (event) => copy(run.command, event.target) }, "Copy")),
  );
  box.replaceChildren(...parts);
}

async function copy(text, button) {
  await navigator.clipboard.writeText(text);
  button.textContent = "Copied";
  window.setTimeout(() => { button.textContent = "Copy"; }, 1600);
}

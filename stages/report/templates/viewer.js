// The page of one image, at the address #image/SPLIT/NAME: made from the gallery's entry.
(function () {
  "use strict";
  var viewer = document.getElementById("viewer");
  var gallery = document.getElementById("gallery-items");
  if (!viewer || !gallery) { return; }

  function get(name) { return document.getElementById("viewer-" + name); }
  var stack = get("stack"), opacity = get("opacity"), layers = get("layers");
  var photo = new Image(), cover = new Image();
  var title = document.title, current = null, chosen = "";
  stack.append(photo, cover);

  function decode(text) {
    try { return decodeURIComponent(text); } catch (error) { return text; }
  }

  // an address that somebody typed may be encoded in another way than ours
  var pages = new Map(Array.prototype.map.call(gallery.children, function (item) {
    return [decode(item.id), item];
  }));

  function find() {
    var name = window.location.hash.slice(1);
    return name.indexOf("image/") === 0 ? pages.get(decode(name)) || null : null;
  }

  function link(item) { return item ? item.querySelector("h3 a").hash : null; }

  // what passes the gallery's filters, in its order; a page from outside of them is among all
  function list() {
    return report.order.indexOf(current) >= 0 ? report.order : Array.prototype.slice.call(gallery.children);
  }

  function step(by) {
    var all = list();
    return all[all.indexOf(current) + by] || null;
  }

  function setStep(anchor, item) {
    if (item) { anchor.setAttribute("href", link(item)); } else { anchor.removeAttribute("href"); }
    anchor.setAttribute("aria-disabled", String(!item));
  }

  function pick(item, key) { return item.querySelector('figure[data-key="' + key + '"] img'); }

  function choose(key) {
    chosen = key;
    var source = pick(current, key);
    cover.hidden = !source;
    if (source) {
      cover.src = source.src;
      cover.alt = source.alt;
    } else {
      cover.removeAttribute("src");
    }
    Array.prototype.forEach.call(layers.children, function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.key === key));
    });
  }

  function fade() {
    stack.style.setProperty("--opacity", opacity.value / 100);
    get("opacity-value").textContent = opacity.value + " %";
  }

  function makeLayers(item) {
    var figures = Array.prototype.filter.call(item.querySelectorAll("figure"), function (figure) {
      return figure.dataset.key !== "image";
    });
    layers.replaceChildren.apply(layers, figures.map(function (figure, index) {
      var button = document.createElement("button");
      button.type = "button";
      button.className = "button";
      button.dataset.key = figure.dataset.key;
      button.textContent = figure.querySelector("figcaption").textContent;
      button.title = "key " + (index + 1);
      button.addEventListener("click", function () { choose(button.dataset.key); });
      return button;
    }));
    var keys = figures.map(function (figure) { return figure.dataset.key; });
    var usual = ["label_crf", "label"].concat(keys);
    choose([chosen].concat(usual).find(function (key) { return keys.indexOf(key) >= 0; }) || "");
  }

  function show(item) {
    current = item;
    var all = list(), name = item.querySelector("h3").textContent;
    document.title = name + " – " + title;
    get("name").textContent = name;
    get("note").replaceChildren(item.querySelector(".item-note").cloneNode(true));
    get("place").textContent = all.indexOf(item) + 1 + " of " + all.length;
    setStep(get("previous"), step(-1));
    setStep(get("next"), step(1));
    var first = pick(item, "image") || item.querySelector("figure img");
    photo.src = first.src;
    photo.alt = first.alt;
    makeLayers(item);
    var numbers = item.querySelector(".numbers-body");
    get("numbers").hidden = !numbers;
    get("numbers").replaceChildren.apply(get("numbers"), numbers ? [numbers.cloneNode(true)] : []);
    get("pictures").replaceChildren.apply(get("pictures"), Array.prototype.map.call(
      item.querySelectorAll("figure"), function (figure) { return figure.cloneNode(true); }));
    report.point(item);
    document.body.classList.add("viewing");
    viewer.hidden = false;
    window.scrollTo({ top: 0, behavior: "instant" });
    get("name").focus({ preventScroll: true });
  }

  function close() {
    var last = current;
    current = null;
    viewer.hidden = true;
    document.body.classList.remove("viewing");
    document.title = title;
    var target = document.getElementById(window.location.hash.slice(1));
    if (target && target.id !== "gallery") { target.scrollIntoView(); return; }
    if (last && !last.hidden) {
      last.scrollIntoView({ block: "center", behavior: "instant" });
      last.querySelector("h3 a").focus({ preventScroll: true });
    }
  }

  function route() {
    var item = find();
    if (item) { show(item); } else if (current) { close(); }
  }

  document.addEventListener("keydown", function (event) {
    if (!current || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) { return; }
    var typing = event.target.closest && event.target.closest("input, select, textarea");
    if (event.key === "Escape") {
      window.location.hash = "#gallery";
    } else if (typing) {
      return;
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      var next = step(event.key === "ArrowLeft" ? -1 : 1);
      if (next) { window.location.hash = link(next); }
    } else if (/^[1-9]$/.test(event.key) && layers.children[event.key - 1]) {
      layers.children[event.key - 1].click();
    } else {
      return;
    }
    event.preventDefault();
  });
  get("pictures").addEventListener("click", function (event) {
    var figure = event.target.closest("figure");
    if (!figure || figure.dataset.key === "image") { return; }
    choose(figure.dataset.key);
    viewer.scrollIntoView();
  });
  opacity.addEventListener("input", fade);
  window.addEventListener("hashchange", route);
  fade();
  route();
})();

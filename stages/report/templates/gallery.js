// The gallery: filters, order and view. Without a script all images stand side by side.
var report = { order: [], refresh: null };
(function () {
  "use strict";
  var gallery = document.getElementById("gallery-items");
  var panel = document.getElementById("gallery-controls");
  if (!gallery || !panel) { return; }
  document.documentElement.classList.add("js");
  var items = Array.prototype.slice.call(gallery.children);

  function get(name) { return document.getElementById("gallery-" + name); }
  var split = get("split"), role = get("role"), cluster = get("class"), order = get("order");
  var least = get("least"), most = get("most"), layer = get("layer"), opacity = get("opacity");
  var rows = document.getElementById("view-rows"), overlay = document.getElementById("view-overlay");
  var filters = [split, role, cluster, least, most].filter(Boolean);

  // item -> cluster -> share of its pixels
  var shares = new Map(items.map(function (item) {
    var parts = {};
    (item.dataset.parts || "").split(" ").filter(Boolean).forEach(function (part) {
      var pair = part.split(":");
      parts[pair[0]] = Number(pair[1]);
    });
    return [item, parts];
  }));

  function choose(control) { return control ? control.value : ""; }

  function limit(control, otherwise) {
    var value = control && control.value.trim() !== "" ? Number(control.value) : otherwise;
    return Number.isFinite(value) ? value : otherwise;
  }

  function isShown(item) {
    if (choose(split) && item.dataset.split !== split.value) { return false; }
    if (choose(role) && item.dataset.role !== role.value) { return false; }
    if (choose(cluster) && !(cluster.value in shares.get(item))) { return false; }
    var low = limit(least, 0), high = limit(most, 100);
    if (low <= 0 && high >= 100) { return true; }
    // what has no score is in no range of scores
    var score = item.dataset.score === undefined ? NaN : Number(item.dataset.score);
    return score >= low && score <= high;
  }

  function compareScores(sign) {
    return function (a, b) {
      var x = a.dataset.score, y = b.dataset.score;
      if (x === undefined || y === undefined) { return (x === undefined) - (y === undefined); }
      return sign * (x - y);
    };
  }

  function compareShares(a, b) {
    return (shares.get(b)[cluster.value] || 0) - (shares.get(a)[cluster.value] || 0);
  }

  function compareNames(a, b) {
    return a.querySelector("h3").textContent.localeCompare(b.querySelector("h3").textContent, "en", { numeric: true });
  }

  function sort() {
    var compare = {
      worst: compareScores(1), best: compareScores(-1), name: compareNames,
      "class": choose(cluster) ? compareShares : null,
    }[order.value];
    return compare ? items.slice().sort(compare) : items;
  }

  function arrange() {
    var sorted = sort();
    report.order = sorted.filter(function (item) {
      item.hidden = !isShown(item);
      return !item.hidden;
    });
    var fragment = document.createDocumentFragment();
    sorted.forEach(function (item) { fragment.appendChild(item); });
    gallery.appendChild(fragment);
    get("count").textContent = report.order.length + " of " + items.length + " images";
    get("none").hidden = report.order.length > 0;
    get("reset").hidden = !filters.some(function (control) { return control.value !== control.dataset.usual; });
  }

  function look() {
    var over = overlay && overlay.getAttribute("aria-pressed") === "true";
    gallery.dataset.view = over ? "overlay" : "rows";
    panel.classList.toggle("overlay", Boolean(over));
    if (layer) {
      gallery.dataset.layer = layer.value;
      gallery.style.setProperty("--opacity", opacity.value / 100);
      get("opacity-value").textContent = opacity.value + " %";
    }
  }

  filters.forEach(function (control) {
    control.dataset.usual = control.value;
    control.addEventListener(control.tagName === "SELECT" ? "change" : "input", arrange);
  });
  order.addEventListener("change", arrange);
  get("reset").addEventListener("click", function () {
    filters.forEach(function (control) { control.value = control.dataset.usual; });
    arrange();
    filters[0].focus();
  });
  if (layer) {
    // the labels as they are written are what most people want to see over the photograph
    ["label_crf", "label"].some(function (key) {
      layer.value = key;
      return layer.value === key;
    });
    if (!layer.value) { layer.selectedIndex = 0; }
    layer.addEventListener("change", look);
    opacity.addEventListener("input", look);
    [rows, overlay].forEach(function (button) {
      button.addEventListener("click", function () {
        rows.setAttribute("aria-pressed", String(button === rows));
        overlay.setAttribute("aria-pressed", String(button === overlay));
        look();
      });
    });
  }
  gallery.addEventListener("click", function (event) {
    var picture = event.target.closest(".pictures img");
    if (picture) { window.location.hash = picture.closest("li").querySelector("h3 a").hash; }
  });
  document.querySelectorAll(".cluster .show").forEach(function (button) {
    var known = cluster && Array.prototype.some.call(cluster.options, function (option) {
      return option.value === button.dataset.cluster;
    });
    button.hidden = !known;
    button.addEventListener("click", function () {
      filters.forEach(function (control) { control.value = control.dataset.usual; });
      cluster.value = button.dataset.cluster;
      order.value = "class";
      arrange();
      document.getElementById("gallery").scrollIntoView();
      cluster.focus({ preventScroll: true });
    });
  });
  panel.hidden = false;
  look();
  arrange();
})();

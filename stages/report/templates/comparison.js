// The gallery of a comparison: filter by split, order, size, and labels over the photograph.
(function () {
  "use strict";
  var gallery = document.getElementById("gallery-items");
  if (!gallery) { return; }
  var items = Array.prototype.slice.call(gallery.children);
  var split = document.getElementById("gallery-split");
  var order = document.getElementById("gallery-order");
  var size = document.getElementById("gallery-size");
  var opacity = document.getElementById("gallery-opacity");
  var shown = document.getElementById("gallery-opacity-value");
  var count = document.getElementById("gallery-count");

  // the photograph is in the page once, and lies below every map of its row
  items.forEach(function (item) {
    var photograph = item.querySelector('[data-key="image"] img');
    if (photograph) { item.style.setProperty("--photograph", 'url("' + photograph.src + '")'); }
  });

  function compare(a, b) {
    if (order.value === "name") {
      return a.dataset.name < b.dataset.name ? -1 : a.dataset.name > b.dataset.name ? 1 : 0;
    }
    return b.dataset.difference - a.dataset.difference;
  }

  function arrange() {
    var visible = 0;
    items.slice().sort(compare).forEach(function (item) {
      item.hidden = Boolean(split && split.value) && item.dataset.split !== split.value;
      visible += item.hidden ? 0 : 1;
      gallery.appendChild(item);
    });
    gallery.classList.toggle("large", size.value === "large");
    count.textContent = visible + " of " + items.length + " images";
  }

  function fade() {
    gallery.style.setProperty("--opacity", opacity.value / 100);
    shown.textContent = opacity.value + " %";
  }

  [split, order, size].forEach(function (select) {
    if (select) { select.addEventListener("change", arrange); }
  });
  opacity.addEventListener("input", fade);
  document.getElementById("gallery-controls").hidden = false;
  arrange();
  fade();
})();

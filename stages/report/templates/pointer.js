// What is under the pointer on the page of an image: the colours of its label maps, read back.
report.point = (function () {
  "use strict";
  var line = document.getElementById("viewer-pointer");
  var stack = document.getElementById("viewer-stack");
  if (!line || !stack) { return function () {}; }
  var maps = [], names = new Map(), current = null, last = null;

  function learn(elements, name) {
    elements.forEach(function (element) {
      if (!names.has(element.dataset.colour)) { names.set(element.dataset.colour, name(element)); }
    });
  }

  function read(figure) {
    var image = figure.querySelector("img"), canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    if (!canvas.width || !canvas.height) { return null; }
    var context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return { caption: figure.querySelector("figcaption").textContent, context: context, canvas: canvas };
  }

  function look(map, x, y) {
    var column = Math.min(map.canvas.width - 1, Math.floor(x * map.canvas.width));
    var row = Math.min(map.canvas.height - 1, Math.floor(y * map.canvas.height));
    var rgb = map.context.getImageData(Math.max(0, column), Math.max(0, row), 1, 1).data;
    var colour = "#" + [rgb[0], rgb[1], rgb[2]].map(function (value) {
      return value.toString(16).padStart(2, "0");
    }).join("");
    return map.caption + ": " + (names.get(colour) || "none");
  }

  function point(event) {
    last = event;
    if (!maps.length) { return; }
    var box = stack.getBoundingClientRect();
    var x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    line.textContent = maps.map(function (map) { return look(map, x, y); }).join(" · ");
  }

  ["pointermove", "pointerdown"].forEach(function (kind) { stack.addEventListener(kind, point); });

  // called with the gallery's entry of the image that is shown
  return function (item) {
    names = new Map();
    learn(item.querySelectorAll("tr[data-colour]"), function (row) { return row.querySelector("th").textContent.trim(); });
    learn(document.querySelectorAll(".cluster[data-colour]"), function (card) { return card.querySelector("h3").textContent.trim(); });
    var wanted = ["label", "label_crf", "truth"].map(function (key) {
      return item.querySelector('figure[data-key="' + key + '"]');
    }).filter(Boolean);
    maps = [];
    last = null;
    line.hidden = wanted.length === 0;
    line.textContent = "Point at the picture to read its classes.";
    current = item;
    // the picture may not have been on the screen yet, and so not be decoded
    Promise.all(wanted.map(function (figure) {
      return figure.querySelector("img").decode().then(function () { return read(figure); }, function () { return null; });
    })).then(function (found) {
      if (current !== item) { return; }
      maps = found.filter(Boolean);
      if (last) { point(last); }
    });
  };
})();

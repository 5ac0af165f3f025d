// The clusters in another order: what is worst, what is largest.
(function () {
  "use strict";
  var list = document.getElementById("clusters"), order = document.getElementById("clusters-order");
  if (!list || !order || list.children.length < 2) { return; }
  var cards = Array.prototype.slice.call(list.children);

  function read(card, key) {
    // a cluster without a class has no score, and stands behind all that have one
    return card.dataset[key] === undefined ? Infinity : Number(card.dataset[key]);
  }

  function compare(key, sign) {
    return function (a, b) {
      var x = read(a, key), y = read(b, key);
      return x === y ? 0 : sign * (x < y ? -1 : 1);
    };
  }

  order.addEventListener("change", function () {
    var by = { iou: compare("iou", 1), share: compare("share", -1), number: compare("number", 1) }[order.value];
    list.append.apply(list, by ? cards.slice().sort(by) : cards);
  });
  document.getElementById("clusters-controls").hidden = false;
})();

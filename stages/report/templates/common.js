// What every page does: buttons that copy, and the link to the section that is on the screen.
(function () {
  "use strict";

  function select(element) {
    var range = document.createRange();
    range.selectNodeContents(element);
    var selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  function say(button, text) {
    var usual = button.dataset.label || button.textContent;
    button.dataset.label = usual;
    button.textContent = text;
    window.setTimeout(function () { button.textContent = usual; }, 1600);
  }

  document.querySelectorAll(".copyable").forEach(function (box) {
    var button = box.querySelector(".copy"), source = box.querySelector("pre");
    button.hidden = false;
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", function () {
      // a page from disk may be denied the clipboard: then the text is at least selected
      function fall() {
        select(source);
        say(button, document.execCommand("copy") ? "Copied" : "Selected");
      }
      if (!navigator.clipboard) { fall(); return; }
      navigator.clipboard.writeText(source.textContent.trimEnd()).then(function () { say(button, "Copied"); }, fall);
    });
  });

  var links = Array.prototype.slice.call(document.querySelectorAll('nav[aria-label="Sections"] a'));
  var places = links.map(function (link) { return document.getElementById(link.hash.slice(1)); });
  var waiting = false;

  function mark() {
    waiting = false;
    var current = 0;
    places.forEach(function (place, index) {
      if (place && place.getBoundingClientRect().top < 120) { current = index; }
    });
    links.forEach(function (link, index) {
      if (index !== current) { link.removeAttribute("aria-current"); return; }
      if (link.hasAttribute("aria-current")) { return; }
      link.setAttribute("aria-current", "true");
      // on a narrow screen the links scroll sideways
      var list = link.closest("ul");
      list.scrollLeft = link.offsetLeft - list.offsetLeft - (list.clientWidth - link.offsetWidth) / 2;
    });
  }

  if (links.length) {
    window.addEventListener("scroll", function () {
      if (!waiting) { waiting = true; window.requestAnimationFrame(mark); }
    }, { passive: true });
    mark();
  }
})();

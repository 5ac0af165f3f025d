// Names for the clusters, as a file to download: for those who have no server.
(function () {
  "use strict";
  var box = document.getElementById("naming");
  if (!box) { return; }
  var fields = Array.prototype.slice.call(box.querySelectorAll("input"));
  var button = document.getElementById("naming-save"), count = document.getElementById("naming-count");
  fields.sort(function (a, b) { return a.dataset.cluster - b.dataset.cluster; });

  function write() {
    // a text of JSON is one of YAML, whatever is in it
    return fields.filter(function (field) { return field.value.trim(); }).map(function (field) {
      var note = field.dataset.note ? "  # " + field.dataset.note : "";
      return field.dataset.cluster + ": " + JSON.stringify(field.value.trim()) + note + "\n";
    });
  }

  function tell() { count.textContent = write().length + " of " + fields.length + " clusters have a name"; }

  button.addEventListener("click", function () {
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(write(), { type: "application/yaml" }));
    link.download = button.dataset.file;
    link.click();
    window.setTimeout(function () { URL.revokeObjectURL(link.href); }, 60000);
  });
  box.addEventListener("input", tell);
  box.hidden = false;
  tell();
})();

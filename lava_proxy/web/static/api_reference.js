// The search box of the API reference: hides what does not have all of its words, and opens what an address names.
(() => {
  const box = document.getElementById("ref-search");
  const count = document.getElementById("ref-count");
  const entries = [...document.querySelectorAll("[data-search]")];
  const groups = [...document.querySelectorAll("[data-group]")];

  const search = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const entry of entries) entry.hidden = !words.every((word) => entry.dataset.search.includes(word));
    for (const group of groups) group.hidden = !group.querySelector("article:not([hidden])");
    const shown = document.querySelectorAll("article[data-search]:not([hidden])").length;
    count.textContent = words.length ? `${shown} ${shown === 1 ? "operation" : "operations"}` : "";
  };

  box.addEventListener("input", search);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, textarea")) {
      event.preventDefault();
      box.focus();
    }
  });
  search();
})();

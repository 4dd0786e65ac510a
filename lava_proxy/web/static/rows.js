// Editors whose rows can be removed, fields that matter only for one choice, and a secret that was just made.
(() => {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-remove-row]");
    if (!button) return;
    const row = button.closest("[data-row]");
    const next = (row.nextElementSibling || row.previousElementSibling)?.querySelector("input:not([type=hidden])");
    const editor = row.closest("form");
    row.remove();
    (next || editor.querySelector("[hx-swap=beforeend]"))?.focus();
    document.body.dispatchEvent(new CustomEvent("lava:rows"));
  });

  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.detail.requestConfig?.triggeringEvent?.type !== "click") return;
    const rows = event.detail.target.querySelectorAll?.("[data-row]");
    rows?.[rows.length - 1]?.querySelector("input:not([type=hidden])")?.focus();
  });

  const show = (form) => {
    for (const part of form.querySelectorAll("[data-shown-when]")) {
      const [name, value] = part.dataset.shownWhen.split("=");
      part.hidden = form.elements[name]?.value !== value;
    }
  };
  for (const form of document.forms) show(form);
  document.addEventListener("change", (event) => { if (event.target.form) show(event.target.form); });

  document.querySelector("[data-focus], .is-invalid")?.focus();
})();

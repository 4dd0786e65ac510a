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
      const [name, values] = part.dataset.shownWhen.split("=");
      const choice = form.elements[name] || document.getElementsByName(name)[0];
      part.hidden = !values.split("|").includes(choice?.value);
    }
  };
  for (const form of document.forms) show(form);
  document.addEventListener("change", () => { for (const form of document.forms) show(form); });

  document.querySelector("[data-focus], .is-invalid")?.focus();
})();

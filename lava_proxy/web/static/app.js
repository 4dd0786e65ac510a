// What every page can do: light and dark, the menu on a phone, copying, times in the reader's zone, asking before what cannot be undone.
(() => {
  const root = document.documentElement;

  const showTimes = (part) => {
    const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
    for (const time of part.querySelectorAll("time[datetime]")) {
      if (time.title) continue;
      time.title = time.dateTime;
      time.textContent = format.format(new Date(time.dateTime));
    }
  };

  const copy = async (button) => {
    const source = button.dataset.copy || document.getElementById(button.dataset.copyFrom).textContent;
    try {
      await navigator.clipboard.writeText(source);
    } catch {
      const field = document.createElement("textarea");
      field.value = source;
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    const said = button.getAttribute("aria-label");
    button.setAttribute("aria-label", "Copied");
    button.classList.add("is-copied");
    setTimeout(() => {
      button.classList.remove("is-copied");
      if (said === null) button.removeAttribute("aria-label");
      else button.setAttribute("aria-label", said);
    }, 1500);
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button, a");
    if (!button) return;
    if ("themeToggle" in button.dataset) {
      const theme = root.dataset.bsTheme === "dark" ? "light" : "dark";
      root.dataset.theme = root.dataset.bsTheme = theme;
      document.cookie = `lava_theme=${theme}; path=/; max-age=31536000; samesite=lax`;
      document.dispatchEvent(new CustomEvent("lava:theme"));
    } else if ("menuToggle" in button.dataset) {
      const open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      document.getElementById(button.getAttribute("aria-controls")).classList.toggle("is-open", open);
    } else if ("copy" in button.dataset || "copyFrom" in button.dataset) {
      copy(button);
    }
  });

  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.confirm || event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });

  document.addEventListener("htmx:load", (event) => showTimes(event.detail.elt));
  showTimes(document);
})();

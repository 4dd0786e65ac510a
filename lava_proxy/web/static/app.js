// What every page can do: light and dark, the menu on a phone, copying, times in the reader's zone, asking before what cannot be undone.
(() => {
  const root = document.documentElement;

  const showTimes = (part) => {
    const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
    const thisYear = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit", second: "2-digit" });
    const year = new Date().getFullYear();
    for (const time of part.querySelectorAll("time[datetime]")) {
      if (time.title) continue;
      time.title = time.dateTime;
      const at = new Date(time.dateTime);
      time.textContent = (at.getFullYear() === year ? thisYear : format).format(at);
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
    } else if ("segment" in button.dataset) {
      for (const one of button.parentElement.children) one.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
    } else if ("menuToggle" in button.dataset) {
      const open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      document.getElementById(button.getAttribute("aria-controls")).classList.toggle("is-open", open);
    } else if ("copy" in button.dataset || "copyFrom" in button.dataset) {
      copy(button);
    }
  });

  // What cannot be undone is asked about first, before htmx or the browser sends the form.
  const asked = new WeakSet();
  const ask = (question, label) => new Promise((resolve) => {
    const dialog = document.createElement("dialog");
    dialog.className = "ask";
    dialog.setAttribute("aria-labelledby", "ask-question");
    const text = document.createElement("p");
    text.id = "ask-question";
    text.textContent = question;
    const form = document.createElement("form");
    form.method = "dialog";
    for (const [value, said, look] of [["no", "Cancel", "btn"], ["yes", label, "btn btn-danger"]]) {
      const button = document.createElement("button");
      button.value = value;
      button.className = look;
      button.textContent = said;
      form.append(button);
    }
    dialog.append(text, form);
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    const submitter = event.submitter;
    const question = submitter?.dataset.confirm || form.dataset.confirm;
    if (!question || form.method === "dialog" || asked.delete(form)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const label = submitter?.dataset.confirmLabel || form.dataset.confirmLabel || "Yes, do it";
    if (!(await ask(question, label))) { submitter?.focus(); return; }
    asked.add(form);
    form.requestSubmit(submitter);
  }, true);

  // A part that could not be loaded says so; one that is asked for again and again is not while nobody looks.
  const tell = (text) => {
    const notices = document.getElementById("notices");
    if (!notices) return;
    const notice = document.createElement("div");
    notice.className = "alert alert-danger";
    notice.textContent = text;
    notices.replaceChildren(notice);
  };
  document.addEventListener("htmx:responseError", (event) => {
    const said = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html").querySelector("h1");
    tell(said?.textContent || "This could not be done; load the page again.");
  });
  document.addEventListener("htmx:sendError", () => tell("The server cannot be reached."));
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful && event.detail.requestConfig.verb === "get") document.querySelector("#notices > .alert-danger")?.remove();
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    if ("poll" in event.detail.elt.dataset && document.hidden) event.preventDefault();
  });

  // Choices that are a form of their own take effect at once.
  document.addEventListener("change", (event) => {
    if ("submit" in event.target.dataset) event.target.form.requestSubmit();
  });

  document.addEventListener("htmx:load", (event) => showTimes(event.detail.elt));
  showTimes(document);
})();

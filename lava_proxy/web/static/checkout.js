// Posts a step's form and shows the step that comes back. What the state is, the server alone knows: any step can be shown anew.
(() => {
  const body = document.body;
  const main = document.getElementById("step");
  const busy = document.getElementById("busy");
  const { actions, session, origin } = body.dataset;
  const framed = body.dataset.framed === "1" && window.parent !== window;
  const key = `checkout:${session}`;
  let under = false; // a step is under way: a second click waits for it
  let told = false;
  let timer = 0;
  let elements = null;

  // A visit outlives a closed tab on the same device; storage may be denied in a frame, then it lives as long as the page.
  const kept = () => { try { return localStorage.getItem(key); } catch { return null; } };
  const keep = (value) => { try { localStorage.setItem(key, value); } catch { /* the page's own visit does */ } };
  const returning = kept();
  const visit = returning || body.dataset.visit;
  if (!returning) keep(visit);

  const headers = { "X-Lava-Visit": visit, "X-Lava-Framed": framed ? "1" : "0" };
  const post = (action, form) => fetch(actions + action, { method: "POST", headers, body: new URLSearchParams(form || []), credentials: "omit" });

  const tell = (type) => {
    if (!framed || told) return;
    told = true;
    const connectionId = main.firstElementChild?.dataset.connection;
    const message = { type, checkoutSessionId: session };
    window.parent.postMessage(type === "lava_checkout_success" ? { ...message, connectionId } : message, origin);
  };

  const problem = (text) => {
    const told_problem = document.createElement("p");
    told_problem.className = "problem";
    told_problem.setAttribute("role", "alert");
    told_problem.textContent = text;
    main.querySelector(".problem[data-own]")?.remove();
    told_problem.dataset.own = "";
    main.querySelector("h1")?.before(told_problem);
  };

  const shown = (step, wasError) => {
    clearTimeout(timer);
    const target = step.querySelector("[aria-invalid]") || (wasError ? step.querySelector(".problem") : null) || step.querySelector("h1");
    if (target) {
      if (target.classList.contains("problem")) target.tabIndex = -1;
      target.focus();
    }
    if (step.dataset.poll) timer = setTimeout(poll, Number(step.dataset.poll));
    if (step.dataset.outcome === "success") timer = setTimeout(() => tell("lava_checkout_success"), 1400);
    document.querySelector(".close")?.classList.toggle("hidden", Boolean(step.dataset.outcome) || ["processing", "authenticate"].includes(step.dataset.step));
    prepare(step);
  };

  const send = async (action, form, button) => {
    if (under) return;
    under = true;
    main.setAttribute("aria-busy", "true");
    busy.textContent = "One moment";
    if (button) button.disabled = true;
    try {
      const answer = await post(action, form);
      const text = await answer.text();
      if (isStep(answer, text)) {
        main.innerHTML = text;
        const step = main.querySelector(".step");
        shown(step, !answer.ok);
        if (action === "cancel" && step.dataset.step === "cancelled") tell("lava_checkout_cancel");
      } else {
        let message = "This did not work. Try again in a moment.";
        try { message = JSON.parse(text).error.message; } catch { /* no sentence in it */ }
        problem(message);
      }
    } catch {
      problem("There is no connection. Check your network and try again: nothing is charged twice.");
    } finally {
      under = false;
      main.removeAttribute("aria-busy");
      busy.textContent = "";
      if (button) button.disabled = false;
    }
  };

  const isStep = (answer, text) => (answer.headers.get("content-type") || "").startsWith("text/html") && text.includes("data-step=");

  // A payment goes on without this page: by its processor's notice, by a bank's own app. While nothing is new nothing is shown
  // anew, so that focus and a bank's frame stay; one answer that does not come is no reason to stop asking.
  const poll = async () => {
    const before = main.firstElementChild;
    if (!under) {
      try {
        const answer = await post("refresh");
        const text = await answer.text();
        if (main.firstElementChild !== before) return; // another step has come meanwhile
        if (!under && isStep(answer, text) && !text.includes(`data-step="${before.dataset.step}"`)) {
          main.innerHTML = text;
          shown(main.querySelector(".step"), !answer.ok);
          return;
        }
      } catch { /* the network is away: the next time */ }
    }
    timer = setTimeout(poll, Number(before.dataset.poll));
  };

  // The processor's own form, where there is one: the number never comes to this page.
  const prepare = (step) => {
    const place = step.querySelector("#card-element");
    elements = null;
    if (!place || typeof Stripe === "undefined") return;
    const stripe = Stripe(body.dataset.cardKey);
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const card = stripe.elements().create("card", { style: { base: { fontSize: "16px", color: dark ? "#f2f4f7" : "#14171c" } } });
    card.mount(place);
    elements = { stripe, card };
  };

  const cardProblem = (text) => {
    const place = document.getElementById("card-problem");
    place.textContent = text;
    place.classList.toggle("hidden", !text);
  };

  const saveCard = async (button) => {
    if (under || !elements) return elements || cardProblem("The card form could not be loaded. Check your network and load the page again.");
    under = true;
    button.disabled = true;
    cardProblem("");
    try {
      const begun = await (await post("card-begin")).json();
      const done = await elements.stripe.confirmCardSetup(begun.client_secret, { payment_method: { card: elements.card } });
      under = false;
      if (done.error) return cardProblem(done.error.message);
      await send("card", [["setup_ref", begun.setup_ref]], button);
    } catch {
      cardProblem("The card could not be stored. Try again.");
    } finally {
      under = false;
      button.disabled = false;
    }
  };

  const authenticate = async (button) => {
    if (typeof Stripe === "undefined") return;
    button.disabled = true;
    await Stripe(body.dataset.cardKey).handleNextAction({ clientSecret: main.querySelector(".step").dataset.clientSecret });
    button.disabled = false;
    await send("refresh");
  };

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-step-form]");
    if (!form) return;
    event.preventDefault();
    const button = event.submitter || form.querySelector("button");
    if ("cardForm" in form.dataset) saveCard(button);
    else send(form.getAttribute("action"), new FormData(form), button);
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if ("amount" in button.dataset) {
      const field = document.getElementById("amount");
      field.value = button.dataset.amount;
      for (const one of main.querySelectorAll("[data-amount]")) one.setAttribute("aria-pressed", String(one === button));
    } else if ("close" in button.dataset) {
      tell(main.querySelector(".step").dataset.outcome === "success" ? "lava_checkout_success" : "lava_checkout_cancel");
    } else if ("print" in button.dataset) window.print();
    else if ("authenticate" in button.dataset) authenticate(button);
  });

  // The test bank answers inside its frame; each page it shows may be the last.
  document.addEventListener("load", (event) => {
    if (!event.target.matches?.("iframe[data-bank]")) return;
    let path = "";
    try { path = event.target.contentWindow.location.pathname; } catch { /* the bank's own */ }
    if (path.endsWith("/returned")) send("refresh");
  }, true);

  // Back from elsewhere, perhaps to a page that the browser kept: what it shows may be old.
  addEventListener("pageshow", (event) => { if (event.persisted) send("state"); });
  if (returning) send("state");
  else shown(main.querySelector(".step"), false);
})();

// Tells what a page that holds the checkout in a frame is told: by messages from the frame, of our own origin and this session.
(() => {
  const outcome = document.getElementById("trial-outcome");
  const frame = document.querySelector("iframe.checkout-trial");
  if (!outcome || !frame) return;
  const said = {
    lava_checkout_success: ["alert-success", "Success: your page would be told of the customer "],
    lava_checkout_cancel: ["alert-warning", "Cancelled: your page would close the frame."],
  };
  addEventListener("message", (event) => {
    if (event.source !== frame.contentWindow || event.origin !== location.origin) return;
    const { type, checkoutSessionId, connectionId } = event.data || {};
    if (!Object.hasOwn(said, type) || checkoutSessionId !== outcome.dataset.session) return;
    const [look, text] = said[type];
    outcome.className = `alert ${look}`;
    outcome.textContent = text;
    if (type === "lava_checkout_success" && /^con_\w+$/.test(connectionId || "")) {
      const link = document.createElement("a");
      link.href = `/dashboard/customers/${connectionId}`;
      link.textContent = connectionId;
      outcome.append(link);
    }
  });
})();

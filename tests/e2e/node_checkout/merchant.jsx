// A merchant's page: the stock browser library opens the checkout and says how it ended.
import React from "react";
import { createRoot } from "react-dom/client";
import { useLavaCheckout } from "@lavapayments/checkout";

window.ended = [];

function Shop() {
  const { open } = useLavaCheckout({
    onSuccess: (facts) => window.ended.push({ how: "success", ...facts }),
    onCancel: (facts) => window.ended.push({ how: "cancel", ...facts }),
    onError: (facts) => window.ended.push({ how: "error", ...facts }),
  });
  return <button onClick={() => open(new URLSearchParams(location.search).get("token"))}>Subscribe</button>;
}

createRoot(document.getElementById("shop")).render(<Shop />);

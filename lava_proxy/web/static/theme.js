// Runs before the first paint: the visitor's choice of light or dark, else the device's.
(() => {
  const root = document.documentElement;
  const device = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const chosen = root.dataset.theme;
    root.dataset.bsTheme = chosen === "auto" ? (device.matches ? "dark" : "light") : chosen;
  };
  apply();
  device.addEventListener("change", apply);
})();

// The preview of a merchant's colours and logo, as they are chosen.
(() => {
  const place = document.getElementById("branding-preview");
  const file = document.getElementById("f-logo");
  const remove = document.querySelector("input[name=remove_logo]");
  if (!place) return;
  let chosen = "";

  const show = () => {
    const logo = chosen || (remove?.checked ? "" : place.dataset.keptLogo);
    for (const one of place.querySelectorAll(".brand-preview")) {
      for (const name of ["accent", "onAccent", "link"]) one.style.setProperty(`--${name}`, one.dataset[name]);
      const mark = one.querySelector(".brand-preview-logo");
      mark.classList.toggle("has-picture", Boolean(logo));
      mark.querySelector("img")?.remove();
      if (!logo) continue;
      const picture = document.createElement("img");
      picture.src = logo;
      picture.alt = "";
      mark.append(picture);
    }
  };

  file.addEventListener("change", () => {
    chosen = "";
    const [picked] = file.files;
    if (!picked || !["image/png", "image/webp"].includes(picked.type)) return show();
    const reader = new FileReader();
    reader.onload = () => { chosen = reader.result; show(); };
    reader.readAsDataURL(picked);
  });
  remove?.addEventListener("change", show);
  document.addEventListener("htmx:afterSettle", (event) => { if (event.detail.target === place) show(); });
  show();
})();

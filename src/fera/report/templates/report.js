// A slider over the samples; without scripts they stand in a row.
for (const reel of document.querySelectorAll("[data-reel]")) {
  const figures = [...reel.querySelectorAll("figure")];
  if (figures.length < 2) continue;
  const slider = document.createElement("input");
  slider.type = "range";
  slider.min = "0";
  slider.max = String(figures.length - 1);
  slider.value = slider.max;
  slider.setAttribute("aria-label", "which step");
  const show = () => {
    figures.forEach((figure, index) => { figure.hidden = index !== Number(slider.value); });
    slider.setAttribute("aria-valuetext", figures[Number(slider.value)].querySelector("figcaption").textContent);
  };
  slider.addEventListener("input", show);
  reel.classList.add("one");
  reel.before(slider);
  show();
}

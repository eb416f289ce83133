// The page to draw on: a form that is a command, and pictures as they form.
"use strict";

const draw = document.getElementById("draw");
const uses = document.getElementById("uses");
const SVG = "http://www.w3.org/2000/svg";
const EXPERT_COLOURS = 8;

function made(tag, attributes = {}, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  one.append(...children);
  return one;
}

// An adapter of the form.
class Use {
  constructor(settings = {}) {
    this.element = document.getElementById("use").content.cloneNode(true).firstElementChild;
    this.part = (name) => this.element.querySelector(`[data-of='${name}']`);
    this.sliders = [];
    uses.append(this.element);
    Use.all.push(this);
    this.part("path").value = settings.path ?? "";
    this.part("weights").value = (settings.weights ?? [1]).join(":");
    this.syncSlider();
    this.part("weights").addEventListener("input", () => this.syncSlider());
    this.part("weight-slider").addEventListener("input", (event) => {
      this.part("weights").value = event.target.value;
    });
    this.part("path").addEventListener("change", () => this.look());
    this.part("gate").addEventListener("change", () => this.showExperts(this.count, {}));
    this.part("remove").addEventListener("click", () => {
      Use.all = Use.all.filter((one) => one !== this);
      this.element.remove();
      changed();
    });
    if (this.part("path").value) this.look(settings);
  }

  syncSlider() {
    const value = Number(this.part("weights").value);
    this.part("weight-slider").disabled = Number.isNaN(value);
    if (!Number.isNaN(value)) this.part("weight-slider").value = value;
  }

  // How many experts it has, and which base it names.
  async look(settings = {}) {
    const path = this.part("path").value.trim();
    this.showExperts(0, {});
    if (!path) return;
    const answer = await fetch(`/draw/adapter?path=${encodeURIComponent(path)}`).catch(() => null);
    if (!answer || !answer.ok || path !== this.part("path").value.trim()) return;
    const told = await answer.json();
    if (!document.getElementById("base").value) document.getElementById("base").placeholder = told.base || "emoji";
    const isFixed = Array.isArray(settings.gate);
    this.part("gate").value = isFixed ? "fixed" : settings.gate ?? "routed";
    this.showExperts(told.experts, isFixed ? { values: settings.gate } : { values: settings.experts });
    changed();
  }

  showExperts(count, { values }) {
    this.count = count;
    const place = this.element.querySelector(".experts");
    this.element.querySelector(".gate-of").hidden = !count;
    place.hidden = !count;
    place.replaceChildren();
    this.sliders = [];
    const isFixed = this.part("gate").value === "fixed";
    for (let number = 1; number <= count; number++) {
      const slider = made("input", { type: "range", min: "0", max: isFixed ? "1" : "2", step: "0.05",
        "aria-label": isFixed ? `weight of expert ${number} in the gate` : `factor of expert ${number}` });
      slider.value = values?.[number - 1] ?? (isFixed ? 0.5 : 1);
      const says = made("output", {}, Number(slider.value).toFixed(2));
      slider.addEventListener("input", () => { says.textContent = Number(slider.value).toFixed(2); });
      const set = (factor) => {
        this.sliders.forEach((one, index) => { one.value = factor(index === number - 1, Number(one.value)); one.dispatchEvent(new Event("input", { bubbles: true })); });
      };
      const solo = made("button", { type: "button", "aria-label": `expert ${number} alone` }, "Solo");
      const mute = made("button", { type: "button", "aria-label": `mute expert ${number}` }, "Mute");
      solo.addEventListener("click", () => set((isIt) => (isIt ? 1 : 0)));
      mute.addEventListener("click", () => set((isIt, value) => (isIt ? 0 : value)));
      this.sliders.push(slider);
      place.append(made("div", { class: `expert ${style(number)}` },
        made("span", { class: "gate" }, `expert ${number}`), slider, says, solo, mute));
    }
    if (count) {
      const all = made("button", { type: "button" }, "All as they are");
      all.addEventListener("click", () => { this.sliders.forEach((one) => { one.value = isFixed ? 0.5 : 1; one.dispatchEvent(new Event("input", { bubbles: true })); }); });
      place.append(all);
    }
  }

  settings() {
    const numbers = this.sliders.map((one) => Number(one.value));
    const isFixed = this.part("gate").value === "fixed" && this.count > 0;
    return {
      path: this.part("path").value, weights: this.part("weights").value,
      gate: isFixed ? numbers : this.count ? this.part("gate").value : "routed",
      experts: isFixed ? [] : numbers,
    };
  }
}
Use.all = [];

const style = (number) => `expert-${((number - 1) % EXPERT_COLOURS) + 1}`;

function filled() {
  const values = Object.fromEntries(new FormData(draw));
  values.adapters = Use.all.map((one) => one.settings()).filter((one) => one.path.trim());
  values.compare_base = document.getElementById("compare_base").checked;
  return values;
}

function problem(text) {
  const place = document.getElementById("problem");
  place.textContent = text;
  place.hidden = !text;
}

let asked = 0, timer;
function changed() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    const number = ++asked;
    try {
      const told = await ask("draw-preview", filled());
      if (number !== asked) return;
      document.getElementById("command").textContent = told.command;
      problem("");
    } catch (error) {
      if (number === asked && draw.prompts.value.trim()) problem(error.message);
    }
  }, 250);
}

draw.addEventListener("input", changed);
document.getElementById("add-adapter").addEventListener("click", () => {
  const use = new Use();
  use.part("path").focus();
});
draw.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const told = await ask("draw", filled());
    problem("");
    history.replaceState(null, "", `/draw?name=${encodeURIComponent(told.name)}`);
    showDrawing(told.name);
  } catch (error) {
    problem(error.message);
  }
});

// What is being drawn.
let shown = 0;
async function showDrawing(name, isReopened = false) {
  const number = ++shown;
  const place = document.getElementById("pictures");
  document.getElementById("shown").hidden = false;
  place.replaceChildren();
  const figures = new Map();
  let told;
  for (;;) {
    try {
      const answer = await fetch(`/draw/live?name=${encodeURIComponent(name)}`);
      if (number !== shown) return;
      if (!answer.ok) {
        const text = document.createRange().createContextualFragment(await answer.text()).textContent.trim();
        document.getElementById("shown-state").textContent = text;
        return;
      }
      told = await answer.json();
    } catch {
      tell("the page's server does not answer: start fera web again; what draws goes on meanwhile", true);
      await new Promise((done) => setTimeout(done, 2000));
      continue;
    }
    if (number !== shown) return;
    state(told);
    for (const picture of told.pictures) {
      if (!figures.has(picture.number)) {
        figures.set(picture.number, new Picture(picture.number));
        place.append(figures.get(picture.number).element);
      }
      figures.get(picture.number).update(picture);
    }
    if (!told.is_open) break;
    await new Promise((done) => setTimeout(done, 400));
  }
  // Opened again, the form has what the drawing was made with, unless something was typed meanwhile.
  const first = told.pictures.map((one) => one.rows.adapted ?? one.rows.base).find((row) => row?.final);
  if (isReopened && first && !draw.prompts.value && await useSettingsOf(first.final)) {
    draw.prompts.value = told.pictures.map((one) => one.prompt).filter(Boolean).join("\n");
    changed();
  }
  const recent = await fetch("/draw/list").catch(() => null);
  if (recent && recent.ok) document.getElementById("recent").innerHTML = await recent.text();
}

function state(told) {
  const place = document.getElementById("shown-state");
  const last = told.said.split("\n").filter(Boolean).pop() ?? "";
  const words = { queued: "waiting for its turn", running: "drawing", stopping: "stopping", done: "done", stopped: "stopped" };
  const text = told.state === "failed" ? last : `${words[told.state] ?? told.state}${told.is_open && last ? `: ${last}` : ""}`;
  if (place.dataset.text === text + told.job) return;
  place.dataset.text = text + told.job;
  place.className = told.state === "failed" ? "notice bad" : "quiet";
  place.replaceChildren(text);
  if (told.job) {
    const stop = made("button", { type: "button" }, "Stop");
    stop.addEventListener("click", () => ask("cancel", { job: told.job }).catch((error) => tell(error.message, true)));
    place.append(" ", stop);
  }
  if (told.command) document.getElementById("command").textContent = told.command;
}

// One picture: the base's and the adapted one, a slider over the steps, and the gate under it.
class Picture {
  constructor(number) {
    this.number = number;
    this.element = made("figure", { class: "panel" });
    this.pair = made("div", { class: "pair" });
    this.slider = made("input", { type: "range", min: "1", max: "1", value: "1", "aria-label": `step of picture ${number + 1}` });
    this.gates = made("div", { class: "gates" });
    this.caption = made("figcaption");
    this.again = made("button", { type: "button", class: "small", hidden: "" }, "Use its settings");
    this.again.addEventListener("click", () => {
      useSettingsOf((this.picture.rows.adapted ?? this.picture.rows.base).final).then(() => draw.prompts.focus());
    });
    this.element.append(this.pair, this.slider, this.gates, this.caption, this.again);
    this.slider.addEventListener("input", () => this.render());
    this.images = {};
  }

  update(picture) {
    const before = JSON.stringify(this.picture ?? null);
    if (JSON.stringify(picture) === before) return;
    const wasLast = this.slider.value === this.slider.max;
    this.picture = picture;
    this.count = Math.max(1, ...Object.values(picture.rows).map((row) => row.steps.length));
    this.slider.max = String(this.count);
    if (wasLast) this.slider.value = this.slider.max;
    this.slider.hidden = this.count < 2;
    this.again.hidden = !(picture.rows.adapted ?? picture.rows.base)?.final;
    this.render();
  }

  render() {
    const at = Number(this.slider.value);
    for (const name of ["base", "adapted"]) {
      const row = this.picture.rows[name];
      if (!row) continue;
      if (!this.images[name]) {
        const image = made("img", { alt: "" });
        const figure = made("div", {}, image, made("span", { class: name }, name));
        this.images[name] = { image, figure };
        this.pair[name === "base" ? "prepend" : "append"](figure);
      }
      const { image, figure } = this.images[name];
      const step = row.steps[Math.min(at, row.steps.length) - 1];
      const isLast = at >= this.count;
      const path = isLast && row.final ? row.final : step?.preview || row.final;
      const source = path ? `/picture?path=${encodeURIComponent(path)}&v=${row.version ?? ""}` : "";
      if (source && image.getAttribute("src") !== source) image.setAttribute("src", source);
      image.alt = `${name}: ${this.picture.prompt}, ${isLast && row.final ? "finished" : `step ${step?.step ?? 0}`}`;
      if (row.clip && !figure.querySelector("video")) {
        figure.prepend(made("video", { src: `/clip?path=${encodeURIComponent(row.clip)}&v=${row.version ?? ""}`, controls: "", loop: "", muted: "", playsinline: "",
          "aria-label": `${name}: ${this.picture.prompt}` }));
      }
      const clip = figure.querySelector("video");
      if (clip) {  // where it has none, its steps are gone back over without pictures
        clip.hidden = !isLast && step?.preview;
        image.hidden = !clip.hidden;
        if (clip.hidden) clip.pause();
      }
      if (row.sound && !figure.querySelector("audio")) {
        image.after(made("audio", { src: `/sound?path=${encodeURIComponent(row.sound)}&v=${row.version ?? ""}`, controls: "", preload: "metadata",
          "aria-label": `${name}: ${this.picture.prompt}` }));
      }
    }
    const step = (this.picture.rows.adapted ?? this.picture.rows.base).steps[at - 1];
    this.slider.setAttribute("aria-valuetext", `step ${step?.step ?? at}`);
    this.caption.replaceChildren(made("b", {}, this.picture.prompt), step
      ? ` step ${step.step} of ${step.steps}${step.timestep === null || step.timestep === undefined ? "" : `, timestep ${Math.round(step.timestep)}`}` : "");
    this.renderGates(at);
  }

  // Stacked bars, a step each; the step that is shown is marked.
  renderGates(at) {
    const steps = this.picture.rows.adapted?.steps ?? [];
    const names = [...new Set(steps.flatMap((one) => Object.keys(one.gates ?? {})))];
    this.gates.replaceChildren();
    for (const name of names) {
      const total = steps[0]?.steps ?? steps.length;
      const height = 60, width = 8;
      const svg = document.createElementNS(SVG, "svg");
      const now = steps[at - 1]?.gates?.[name] ?? [];
      const bands = steps[at - 1]?.bands?.[name] ?? [];
      const words = now.map((value, index) => `expert ${index + 1} ${value.toFixed(2)}`).join(", ");
      for (const [key, value] of Object.entries({ viewBox: `0 0 ${total * width} ${height}`, role: "img", class: "bars", preserveAspectRatio: "none",
        "aria-label": `gate of ${name} at each step; at the one shown: ${words || "none"}` })) svg.setAttribute(key, value);
      steps.forEach((one, index) => {
        const gate = one.gates?.[name] ?? [];
        const most = Math.max(1, gate.reduce((sum, value) => sum + Math.abs(value), 0));
        let top = height;
        gate.forEach((value, expert) => {
          const part = (Math.abs(value) / most) * height;
          top -= part;
          const bar = document.createElementNS(SVG, "rect");
          for (const [key, number] of Object.entries({ x: index * width + 0.5, y: top, width: width - 1, height: part })) bar.setAttribute(key, number);
          bar.setAttribute("class", `bar ${style(expert + 1)}${index === at - 1 ? " now" : ""}`);
          const says = document.createElementNS(SVG, "title");
          says.textContent = `step ${one.step}, expert ${expert + 1}: ${value.toFixed(2)}`;
          bar.append(says);
          svg.append(bar);
        });
      });
      const legend = made("ul", { class: "legend" }, ...now.map((value, index) =>
        made("li", { class: style(index + 1) }, made("span", { class: "key" }), `expert ${index + 1} `, made("b", {}, value.toFixed(2)))));
      const seen = bands.length ? made("p", { class: "quiet" }, `energy by band, low to high: ${bands.map((one) => one.toFixed(2)).join(" ")}`) : "";
      this.gates.append(names.length > 1 ? made("p", { class: "quiet" }, name) : "", svg, legend, seen);
    }
  }
}

function restore(settings) {
  draw.reset();
  for (const one of [...Use.all]) one.element.remove();
  Use.all = [];
  const fields = { prompts: settings.prompt, sources: settings.source, masks: settings.mask, ...settings };
  for (const [name, value] of Object.entries(fields)) {
    const field = draw.elements[name];
    if (field && field.value !== undefined && value !== null && typeof value !== "object") field.value = value;
  }
  for (const one of settings.adapters ?? []) new Use(one);
  changed();
}

// Fill the form with what a picture was drawn with.
async function useSettings(file, name) {
  const settings = await settingsOf(file).catch(() => null);
  if (!settings || typeof settings !== "object") {
    tell(`${name} holds no settings of fera's: take a PNG that fera generate or this page drew`, true);
    return false;
  }
  restore(settings);
  tell(`settings of ${name}`, false);
  return true;
}

async function useSettingsOf(path) {
  const answer = await fetch(`/picture?path=${encodeURIComponent(path)}`).catch(() => null);
  if (!answer || !answer.ok) {
    tell(`${path} cannot be read any more`, true);
    return false;
  }
  return useSettings(await answer.blob(), path.split("/").pop());
}

addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) useSettings(file, file.name);
});
document.getElementById("settings-of").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) useSettings(file, file.name);
  event.target.value = "";  // the same one again is a change too
});

if (draw.dataset.run) new Use({ path: draw.dataset.run });
else if (document.querySelector("#adapters option")) new Use();
if (draw.dataset.shown) showDrawing(draw.dataset.shown, true);
changed();

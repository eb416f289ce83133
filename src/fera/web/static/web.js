// Without this script the pages can be read; it moves them, and sends what buttons ask.
"use strict";

const EVERY = 2000;

function tell(text, isBad) {
  const place = document.getElementById("told");
  place.textContent = text;
  place.className = isBad ? "notice bad" : "notice good";
  place.hidden = false;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => { place.hidden = true; }, isBad ? 15000 : 5000);
}

async function ask(what, body) {
  let answer;
  try {
    answer = await fetch(`/do/${what}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("the page's server does not answer: start fera web again; runs go on meanwhile");
  }
  const told = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(told.error);
  return told;
}

// Parts that follow what happens. One that did not change is left alone, so nothing is lost under a pointer or a finger.
function follow(part) {
  let last = part.dataset.reel === undefined ? null : undefined;
  part.refresh = async () => {
    try {
      const answer = await fetch(part.dataset.live);
      const text = await answer.text();
      if (last === undefined || last === null) last = last ?? "";
      if (text === last) return;
      const chosen = [...part.querySelectorAll("input:checked")].map((box) => box.value);
      const open = [...part.querySelectorAll("details[open]")].map((one) => one.dataset.key);
      const focused = part.contains(document.activeElement) ? document.activeElement : null;
      const key = focused && (focused.dataset.do || focused.value || focused.getAttribute("href"));
      part.innerHTML = text;
      last = text;
      for (const box of part.querySelectorAll("input[type=checkbox]")) box.checked = chosen.includes(box.value);
      for (const one of part.querySelectorAll("details")) one.open = open.includes(one.dataset.key);
      if (key) [...part.querySelectorAll("button, input, a")].find(
        (one) => (one.dataset.do || one.value || one.getAttribute("href")) === key)?.focus();
      if (part.dataset.reel !== undefined) reel(part);
      part.dataset.lost = "";
    } catch {
      if (!part.dataset.lost) tell("the page's server does not answer: start fera web again; runs go on meanwhile", true);
      part.dataset.lost = "yes";
    }
  };
  setInterval(() => { if (!document.hidden) part.refresh(); }, Number(part.dataset.every ?? EVERY));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) part.refresh(); });
}

// A slider over the samples. It stays at the newest unless it was moved.
function reel(part) {
  const figures = [...part.querySelectorAll("figure")];
  let slider = part.previousElementSibling;
  if (!slider || slider.type !== "range") {
    slider = document.createElement("input");
    slider.type = "range";
    slider.min = "0";
    slider.max = "0";
    slider.setAttribute("aria-label", "step of the samples");
    part.before(slider);
    slider.addEventListener("input", () => show(part, slider));
  }
  const wasNewest = slider.value === slider.max;
  slider.max = String(Math.max(0, figures.length - 1));
  if (wasNewest) slider.value = slider.max;
  slider.hidden = figures.length < 2;
  show(part, slider);
}

function show(part, slider) {
  const figures = [...part.querySelectorAll("figure")];
  figures.forEach((figure, index) => {
    figure.hidden = index !== Number(slider.value);
    const image = figure.querySelector("img");
    if (Math.abs(index - Number(slider.value)) < 2 && image.dataset.src) {
      image.src = image.dataset.src;
      image.removeAttribute("data-src");
    }
  });
  const now = figures[Number(slider.value)];
  if (now) slider.setAttribute("aria-valuetext", now.querySelector("figcaption").textContent);
}

for (const part of document.querySelectorAll("[data-live]")) {
  if (part.dataset.reel !== undefined) reel(part);
  follow(part);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.copy !== undefined || button.dataset.copyFrom !== undefined) {
    const text = button.dataset.copy ?? document.getElementById(button.dataset.copyFrom).textContent;
    try {
      await navigator.clipboard.writeText(text);
      tell("copied", false);
    } catch {
      tell("the browser does not let this page copy; mark the text and copy it", true);
    }
    return;
  }
  if (button.dataset.do === undefined) return;
  const part = button.closest("[data-run]");
  button.disabled = true;
  try {
    const told = await ask(button.dataset.do, { run: part.dataset.run });
    tell(told.command ? `started: ${told.command}` : told.state, false);
    await part.refresh();
  } catch (error) {
    tell(error.message, true);
  } finally {
    button.disabled = false;
  }
});

const form = document.getElementById("train");
if (form) {
  const problem = document.getElementById("problem");
  const values = () => ({ values: Object.fromEntries(new FormData(form)) });
  const said = (text) => { problem.textContent = text; problem.hidden = !text; };
  let timer, asked = 0;
  const preview = async (isQuiet) => {
    const number = ++asked;
    try {
      const told = await ask("preview", values());
      if (number !== asked) return;
      document.getElementById("toml").textContent = told.toml;
      document.getElementById("command").textContent = told.command;
      said("");
      if (document.getElementById("estimating").checked) estimate(told.toml);
    } catch (error) {
      if (number === asked && !isQuiet) said(error.message);
    }
  };
  // What the run will take: asked for once the form rests, of what it is then.
  let estimated = "", waiting;
  const estimate = (toml) => {
    // Where a run goes and what it draws along the way costs next to nothing.
    const counts = toml.split("\n").filter((line) => !/^(output_dir|prompts|seed) =/.test(line)).join("\n");
    if (counts === estimated) return;
    estimated = counts;
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const words = document.getElementById("estimate-said"), facts = document.getElementById("estimate");
      words.textContent = "estimating…";
      try {
        const { job } = await ask("estimate", values());
        for (;;) {
          const told = await (await fetch(`/train/estimate?job=${job}`)).json();
          if (counts !== estimated) return;
          if (!told.is_open) {
            facts.replaceChildren(...told.facts.map(([name, value]) => {
              const one = document.createElement("div"), key = document.createElement("dt"), said = document.createElement("dd");
              key.textContent = name;
              said.append(Object.assign(document.createElement("b"), { textContent: value }));
              one.append(key, said);
              return one;
            }));
            facts.hidden = !told.facts.length;
            words.textContent = told.problems.join(" · ");
            words.className = told.problems.length ? "notice bad" : "quiet";
            return;
          }
          await new Promise((done) => setTimeout(done, 700));
        }
      } catch (error) {
        words.textContent = error.message;
      }
    }, 1200);
  };
  document.getElementById("estimating").addEventListener("change", () => { estimated = ""; preview(true); });
  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => preview(false), 300); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const told = await ask("train", values());
      location.href = `/run?name=${encodeURIComponent(told.run)}`;
    } catch (error) {
      said(error.message);
    }
  });
  document.getElementById("check").addEventListener("click", async (event) => {
    const place = document.getElementById("checked");
    event.target.disabled = true;
    try {
      const { job } = await ask("check", values());
      said("");
      place.hidden = false;
      for (;;) {
        const told = await (await fetch(`/job?id=${job}`)).json();
        place.textContent = `$ ${told.command}\n${told.output || "…"}`;
        if (!told.is_open) break;
        await new Promise((done) => setTimeout(done, 500));
      }
    } catch (error) {
      said(error.message);
    } finally {
      event.target.disabled = false;
    }
  });
  preview(true);
}

// Forms that put a command in the queue, and the commands that were put there.
async function followJob(item) {
  for (;;) {
    let told;
    try {
      told = await (await fetch(`/job?id=${item.dataset.id}`)).json();
    } catch {
      tell("the page's server does not answer: start fera web again; what was started goes on", true);
      return;
    }
    item.querySelector("p.quiet").textContent = told.state;
    item.querySelector("pre").textContent = told.output;
    if (!told.is_open) return;
    await new Promise((done) => setTimeout(done, 500));
  }
}

for (const one of document.querySelectorAll("form[data-job]")) {
  one.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (one.dataset.sure && !confirm(one.dataset.sure)) return;
    const values = Object.fromEntries(new FormData(one));
    for (const box of one.querySelectorAll("input[type=checkbox]")) values[box.name] = box.checked;
    const problem = document.getElementById("problem");
    try {
      const told = await ask(one.dataset.job, values);
      problem.hidden = true;
      document.getElementById("nothing")?.remove();
      const item = document.createElement("li");
      item.className = "panel";
      item.dataset.id = told.job;
      const command = document.createElement("p"), code = document.createElement("code"), copy = document.createElement("button");
      command.className = "command";
      code.textContent = copy.dataset.copy = told.command;
      copy.type = "button";
      copy.textContent = "Copy";
      command.append(code, " ", copy);
      const state = document.createElement("p");
      state.className = "quiet";
      state.setAttribute("role", "status");
      item.append(command, state, document.createElement("pre"));
      document.getElementById("jobs").prepend(item);
      followJob(item);
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  });
}
for (const item of document.querySelectorAll("#jobs [data-open]")) followJob(item);

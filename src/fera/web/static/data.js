// The page about data: files that are dropped, captions that are edited, a check of each picture.
"use strict";

const data = document.getElementById("data");
const place = document.getElementById("rows");
const by = (id) => document.getElementById(id);

by("make").addEventListener("click", async () => {
  try {
    const told = await ask("data-folder", { folder: by("folder").value });
    location.href = `/data?folder=${encodeURIComponent(told.folder)}`;
  } catch (error) {
    tell(error.message, true);
  }
});

const search = () => Object.fromEntries(new FormData(by("search")));
const version = () => Number(place.querySelector("[data-version]").dataset.version);

async function reload(page = 1) {
  const query = new URLSearchParams({ folder: data.dataset.folder, page: String(page), ...search() });
  try {
    const answer = await fetch(`/data/rows?${query}`);
    const text = await answer.text();
    // What is being typed is kept: it becomes an edit once its field is left.
    const typed = document.activeElement?.matches("[data-name] textarea") ? document.activeElement : null;
    const kept = typed && { name: typed.closest("[data-name]").dataset.name, value: typed.value, at: typed.selectionStart };
    place.innerHTML = text;
    const card = kept && [...place.querySelectorAll("[data-name]")].find((one) => one.dataset.name === kept.name);
    if (card) {
      const field = card.querySelector("textarea");
      field.focus();
      field.value = kept.value;
      field.setSelectionRange(kept.at, kept.at);
    }
  } catch {
    tell("the page's server does not answer: start fera web again; edits are kept", true);
  }
}
const page = () => Number(place.querySelector("[data-page]")?.dataset.page ?? 0) + 1;

// Edits go one after the other: each is made on what the one before left.
let line = Promise.resolve();
function doing(what, more = {}, { isQuiet = false } = {}) {
  line = line.then(async () => {
    try {
      const told = await ask(`data-${what}`, { folder: data.dataset.folder, version: version(), ...more });
      if (told.said) tell(told.said, false);
      if (told.version !== undefined && isQuiet) showState(told);
      else if (told.version !== undefined) await reload(page());
      return told;
    } catch (error) {
      tell(error.message, true);
      return null;
    }
  });
  return line;
}

function showState(told) {
  place.querySelector("[data-version]").dataset.version = String(told.version);
  place.querySelector("#unsaved").textContent = told.unsaved ? `${told.unsaved} not saved` : "";
  place.querySelector("[data-data='undo']").disabled = !told.can_undo;
  for (const name of ["discard", "save"]) place.querySelector(`[data-data='${name}']`).disabled = !told.unsaved;
}

if (data) {
  by("search").addEventListener("submit", (event) => { event.preventDefault(); reload(); });
  by("search").addEventListener("change", () => reload());
  // On leaving a field, not on "change": what was typed before a list came anew counts too.
  place.addEventListener("focusout", (event) => {
    const card = event.target.closest("[data-name]");
    if (!card || !event.target.matches("textarea") || event.target.value === event.target.defaultValue) return;
    event.target.defaultValue = event.target.value;
    doing("edit", { name: card.dataset.name, caption: event.target.value }, { isQuiet: true });
  });
  place.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.data) doing(button.dataset.data);
    if (button.dataset.page) reload(Number(button.dataset.page)).then(() => place.scrollIntoView());
  });
  // Ctrl+S saves, as in an editor.
  addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "s") {
      event.preventDefault();
      document.activeElement?.blur();
      doing("save");
    }
  });
  by("replace").addEventListener("click", () => doing("replace", { find: by("find").value, replacement: by("replacement").value, search: search().search }));
  by("trigger").addEventListener("click", () => doing("trigger", { word: by("word").value, search: search().search }));
  by("white").addEventListener("click", () => doing("white-masks"));
  by("check").addEventListener("click", () => job("check", { resolution: by("resolution").value, seconds: by("seconds").value }, false));
  by("caption")?.addEventListener("click", () => job("caption", {
    model: by("model").value, prefix: by("prefix").value, question: by("question").disabled ? "" : by("question").value,
  }, true));
  const asks = () => { by("question").disabled = by("model").selectedOptions[0].dataset.asked === undefined; };
  by("model")?.addEventListener("change", asks);
  if (by("model")) asks();

  by("files").addEventListener("change", (event) => send([...event.target.files]));
  addEventListener("dragover", (event) => { event.preventDefault(); by("drop").classList.add("over"); });
  addEventListener("dragleave", () => by("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    by("drop").classList.remove("over");
    inside(event.dataTransfer).then(send);
  });
}

// Files of what was dropped; of a folder those in it, at any depth, but none that is hidden.
async function inside(dropped) {
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...dropped.files];
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      if (!entry.name.startsWith(".")) files.push(await new Promise((done, fail) => entry.file(done, fail)));
      return;
    }
    const reader = entry.createReader();
    for (let some; (some = await new Promise((done, fail) => reader.readEntries(done, fail))).length;) {
      for (const one of some) await walk(one);
    }
  };
  try {
    for (const entry of entries) await walk(entry);
  } catch (error) {
    tell(`a folder could not be read: ${error.message}; drop its files instead`, true);
  }
  return files;
}

// A command of fera, followed until it ends.
async function job(what, more, isTold) {
  const told = await doing(what, more);
  if (!told) return;
  const code = by("data-command").querySelector("code");
  code.id = "data-command-text";
  code.textContent = told.command;
  by("data-command").hidden = false;
  for (;;) {
    const now = await (await fetch(`/job?id=${told.job}`)).json();
    by("data-said").hidden = !isTold && now.state !== "running";
    by("data-said").textContent = isTold || now.state === "failed" && !now.output.includes("{") ? now.output || "…" : "looking at pictures…";
    if (!now.is_open) break;
    await new Promise((done) => setTimeout(done, 500));
  }
  if (!isTold) by("data-said").hidden = true;
  await reload(page());
}

// Two at a time: the server looks at each before it takes it.
async function send(files) {
  const list = by("sent");
  list.replaceChildren();
  const waiting = [...files];
  let taken = 0;
  const refused = [];
  const count = document.createElement("li");
  list.append(count);
  const one = async () => {
    for (let file; (file = waiting.shift());) {
      try {
        const query = new URLSearchParams({ folder: data.dataset.folder, name: file.name });
        const answer = await fetch(`/data/upload?${query}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
        const told = await answer.json().catch(() => ({ error: answer.status === 413 ? `${file.name} is larger than 64 MiB; scale it down, or copy it into the folder yourself` : `the server answered ${answer.status}` }));
        if (!answer.ok) throw new Error(told.error);
        taken++;
      } catch (error) {
        refused.push(error instanceof TypeError ? `${file.name}: the connection broke; drop it again` : error.message);
      }
      count.textContent = `${taken} of ${files.length} taken`;
    }
  };
  await Promise.all([one(), one()]);
  for (const text of refused) {
    const item = document.createElement("li");
    item.className = "notice bad";
    item.textContent = text;
    list.append(item);
  }
  await reload();
}

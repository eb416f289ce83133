// Painting a mask: white counts in training, black does not.
"use strict";

const dialog = document.getElementById("mask");
if (dialog) {
  const canvas = document.getElementById("mask-canvas");
  const picture = document.getElementById("mask-picture");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const brush = document.getElementById("brush"), colour = document.getElementById("colour");
  const MOST = 1024;
  let name = "", steps = [], cursor = { x: 0, y: 0 }, last = null;

  const keep = () => { steps.push(pen.getImageData(0, 0, canvas.width, canvas.height)); steps = steps.slice(-10); };
  const fill = (tone) => { pen.fillStyle = tone; pen.fillRect(0, 0, canvas.width, canvas.height); };
  const dot = (x, y) => {
    pen.strokeStyle = pen.fillStyle = colour.value;
    pen.lineCap = "round";
    pen.lineWidth = Number(brush.value) * canvas.width / 512;
    pen.beginPath();
    pen.moveTo(last?.x ?? x, last?.y ?? y);
    pen.lineTo(x, y + 0.01);
    pen.stroke();
    last = { x, y };
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };

  document.getElementById("rows").addEventListener("click", async (event) => {
    const button = event.target.closest("[data-mask]");
    if (!button) return;
    name = button.dataset.mask;
    document.getElementById("mask-title").textContent = `Mask of ${name}`;
    const path = button.closest("[data-name]").querySelector("img").dataset.path;
    picture.src = `/data/view?path=${encodeURIComponent(path)}`;
    try {
      await picture.decode();
    } catch {
      tell(`${name} cannot be shown: check the folder`, true);
      return;
    }
    const scale = Math.min(1, MOST / Math.max(picture.naturalWidth, picture.naturalHeight));
    canvas.width = Math.max(1, Math.round(picture.naturalWidth * scale));
    canvas.height = Math.max(1, Math.round(picture.naturalHeight * scale));
    steps = [];
    fill("white");
    const answer = await fetch(`/data/mask?${new URLSearchParams({ folder: data.dataset.folder, name })}`);
    if (answer.ok) pen.drawImage(await createImageBitmap(await answer.blob()), 0, 0, canvas.width, canvas.height);
    cursor = { x: canvas.width / 2, y: canvas.height / 2 };
    dialog.showModal();
  });

  canvas.addEventListener("pointerdown", (event) => { keep(); last = null; canvas.setPointerCapture(event.pointerId); dot(...at(event)); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) dot(...at(event)); });
  canvas.addEventListener("pointerup", () => { last = null; });
  canvas.addEventListener("keydown", (event) => {
    const far = canvas.width / 32;
    const moves = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
    if (moves[event.key]) {
      cursor = { x: Math.min(canvas.width, Math.max(0, cursor.x + moves[event.key][0])), y: Math.min(canvas.height, Math.max(0, cursor.y + moves[event.key][1])) };
      if (event.shiftKey) dot(cursor.x, cursor.y);
    } else if (event.key === " ") { keep(); last = null; dot(cursor.x, cursor.y); } else return;
    event.preventDefault();
  });
  document.getElementById("mask-white").addEventListener("click", () => { keep(); fill("white"); });
  document.getElementById("mask-black").addEventListener("click", () => { keep(); fill("black"); });
  document.getElementById("mask-invert").addEventListener("click", () => {
    keep();
    pen.globalCompositeOperation = "difference";
    fill("white");
    pen.globalCompositeOperation = "source-over";
  });
  document.getElementById("mask-undo").addEventListener("click", () => { if (steps.length) pen.putImageData(steps.pop(), 0, 0); });
  document.getElementById("mask-close").addEventListener("click", () => dialog.close());
  document.getElementById("mask-save").addEventListener("click", async () => {
    const body = await new Promise((done) => canvas.toBlob(done, "image/png"));
    try {
      const query = new URLSearchParams({ folder: data.dataset.folder, name });
      const answer = await fetch(`/data/mask?${query}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error);
      tell(told.said, false);
      dialog.close();
    } catch (error) {
      tell(error.message, true);
    }
  });
}

// What a PNG of fera's says of how it was drawn.
"use strict";

// Settings from a picture's own file: the text chunk "settings" of a PNG.
async function settingsOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const view = new DataView(bytes.buffer);
  if (bytes.length < 8 || view.getUint32(0) !== 0x89504e47) return null;
  const texts = {};
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "tEXt" || kind === "iTXt") {
      const end = data.indexOf(0);
      const key = new TextDecoder("latin1").decode(data.subarray(0, end));
      if (kind === "tEXt") texts[key] = new TextDecoder("latin1").decode(data.subarray(end + 1));
      else if (data[end + 1] === 0) { // not compressed: language and translated key come before the text
        const language = data.indexOf(0, end + 3);
        texts[key] = new TextDecoder().decode(data.subarray(data.indexOf(0, language + 1) + 1));
      }
    }
    if (kind === "IEND") break;
    at += 12 + length;
  }
  try {
    return texts.settings ? JSON.parse(texts.settings) : null;
  } catch {
    return null;
  }
}

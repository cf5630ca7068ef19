// A sentence becomes a drawing, which one can search with.

import { follow } from "./api.js";
import { $, blobOf, busy } from "./dom.js";
import { findSimilar } from "./find.js";
import { opens, remember } from "./history.js";
import { look } from "./look.js";
import { show as showTab } from "./tabs.js";

let drawn; // {text, seed, picture}
let making; // the one at work, which a newer one stops

async function draw(text, seed) {
  making?.abort();
  const mine = (making = new AbortController());
  const bar = $("draw-progress");
  bar.value = 0;
  bar.hidden = false;
  $("draw-empty").hidden = true;
  $("drawing").hidden = true;
  $("drawing-actions").hidden = true;
  await busy($("draw-form").querySelector("[type=submit]"), async () => {
    try {
      const progress = (share) => (bar.value = share);
      const made = await follow("/v1/draw", { text, seed }, { progress }, mine.signal);
      show(made);
      remember("draw", text, made, made.picture);
    } catch (problem) {
      if (mine === making) $("draw-empty").hidden = false;
      throw problem;
    } finally {
      if (mine === making) bar.hidden = true;
    }
  });
}

function show(drawing) {
  drawn = drawing;
  $("draw-empty").hidden = true;
  $("drawing").src = drawing.picture;
  $("drawing").alt = `A drawing: ${drawing.text}`;
  $("drawing").hidden = false;
  $("save-drawing").href = drawing.picture;
  $("drawing-actions").hidden = false;
  $("draw-again").hidden = false;
}

$("draw-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("sentence").value.trim();
  if (text) draw(text, 0);
});
$("sentence").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("draw-form").requestSubmit();
  }
});
$("draw-again").addEventListener("click", () => draw(drawn.text, drawn.seed + 1));
$("find-drawing").addEventListener("click", () => findSimilar(blobOf(drawn.picture)));
$("look-drawing").addEventListener("click", () => look(blobOf(drawn.picture)));
opens("draw", (drawing) => {
  showTab("draw");
  $("sentence").value = drawing.text;
  show(drawing);
});

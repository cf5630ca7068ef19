// A picture: what it shows, in both languages, and questions about it.

import { send } from "./api.js";
import { $, blobOf, busy, el, sendable, small, toast, usable } from "./dom.js";
import { opens, remember } from "./history.js";
import { show as showTab } from "./tabs.js";

let photo; // the blob, and nothing before one is chosen
let sent; // the same, small enough to be sent
let turn = 0; // of the picture: answers to an earlier one are not shown

/** Take a picture, and say what it shows. */
export async function look(blob, { keep = true } = {}) {
  if (!usable(blob)) return;
  const mine = ++turn;
  const fit = await busy(null, () => sendable(blob));
  if (!fit || mine !== turn) return;
  photo = blob;
  sent = fit;
  const preview = $("photo-preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(blob);
  preview.hidden = false;
  $("drop").querySelector(".drop-empty").hidden = true;
  $("photo-actions").hidden = false;
  $("talk").replaceChildren();
  showTab("look");
  await busy(null, async () => {
    const captions = await Promise.all(["en", "zh"].map((lang) => caption(lang, mine)));
    if (!keep || mine !== turn) return;
    const picture = await small(blob);
    if (picture) remember("look", captions.join(" · "), { picture }, picture);
  });
}

async function caption(lang, mine) {
  const place = $(`caption-${lang}`);
  place.className = "empty waiting";
  place.textContent = "";
  try {
    const { text } = await send("/v1/caption", { image: sent, lang });
    if (mine === turn) {
      place.className = "";
      place.textContent = text;
    }
    return text;
  } catch (problem) {
    if (mine === turn) {
      place.className = "empty";
      place.textContent = "–";
    }
    throw problem;
  }
}

async function ask(question) {
  if (!photo) return toast("choose a picture first");
  const answer = el("li", { className: "answered waiting" });
  $("talk").append(el("li", { className: "asked" }, question), answer);
  $("talk").scrollTop = $("talk").scrollHeight;
  await busy($("ask-form").querySelector("button"), async () => {
    try {
      answer.textContent = (await send("/v1/ask", { image: sent, question })).text;
    } catch (problem) {
      answer.textContent = "–";
      throw problem;
    } finally {
      answer.classList.remove("waiting");
      $("talk").scrollTop = $("talk").scrollHeight;
    }
  });
}

export const currentPhoto = () => photo;

const drop = $("drop");
const choose = () => $("photo").click();
$("photo").addEventListener("change", (event) => {
  if (event.target.files[0]) look(event.target.files[0]);
  event.target.value = "";
});
$("change-photo").addEventListener("click", choose);
drop.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    choose();
  }
});
// Anywhere on the page: who misses the frame does not want the browser to leave it.
addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files[0]) look(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) look(file);
});
$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  $("question").value = "";
  if (question) ask(question);
});
for (const chip of $("questions").children) chip.addEventListener("click", () => ask(chip.textContent));
opens("look", ({ picture }) => look(blobOf(picture), { keep: false }));

// A poem for a title, or a text gone on with, shown while it is written.

import { follow } from "./api.js";
import { $, busy } from "./dom.js";
import { opens, remember } from "./history.js";
import { show as showTab } from "./tabs.js";

const form = $("write-form");
const place = $("written");

/** One sentence a line, as verse is printed. */
const lines = (text) => text.replace(/。(?!$)/g, "。\n");

async function write() {
  const poem = form.what.value === "poem";
  const seed = Math.floor(Math.random() * 2 ** 31);
  const request = poem
    ? { title: $("title").value.trim() || $("title").placeholder, form: $("form").value || null, author: $("author").value.trim() || null, seed }
    : { text: $("beginning").value.trim() || $("beginning").placeholder, seed };
  let text = "";
  place.textContent = "";
  place.setAttribute("aria-busy", "true");
  await busy(form.querySelector("[type=submit]"), async () => {
    try {
      const told = (added, anew) => {
        text = anew ? added : text + added;
        place.textContent = lines(text);
      };
      const written = await follow(poem ? "/v1/write" : "/v1/continue", request, { text: told });
      show(written);
      remember("write", poem ? `《${request.title}》 ${written.text}` : written.text, written);
    } finally {
      place.setAttribute("aria-busy", "false");
    }
  });
}

function show(written) {
  place.textContent = lines(written.text);
  $("written-by").textContent = `Written by ${written.by}.`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
for (const choice of form.what) {
  choice.addEventListener("change", () => {
    $("poem-fields").hidden = form.what.value !== "poem";
    $("continue-fields").hidden = form.what.value === "poem";
  });
}
opens("write", (written) => {
  showTab("write");
  show(written);
});

// The page: its parts, its state of readiness, its keys.

import { askKey, get } from "./api.js";
import { $, items, openDialog } from "./dom.js";
import { findSimilar, offer } from "./find.js";
import { openHistory } from "./history.js";
import { currentPhoto } from "./look.js";
import { PARTS, show } from "./tabs.js";
import "./draw.js";
import "./write.js";

/** Show how far the service is, until it is ready. */
async function watch() {
  const place = $("status");
  const words = place.querySelector(".words");
  for (;;) {
    try {
      const about = await get("/v1/about");
      if (about.ready) {
        place.dataset.state = "ready";
        words.textContent = about.catalogue ? items(about.catalogue.items) : "ready";
        if (about.catalogue) offer(about.catalogue);
        return;
      }
      place.dataset.state = about.problem ? "problem" : "starting";
      words.textContent = about.problem ?? about.doing + (about.total ? ` ${about.done}/${about.total}` : "");
      if (about.problem) return;
    } catch (problem) {
      place.dataset.state = "problem";
      words.textContent = problem.status === 401 ? "needs its key" : problem.message;
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=radio]), textarea, select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const part = PARTS[Number(event.key) - 1];
  if (part) show(part);
  else if (event.key === "/" && PARTS.includes("find")) {
    event.preventDefault();
    show("find");
    $("words").focus();
  } else if (event.key === "h") openHistory();
  else if (event.key === "t") toggleTheme();
  else if (event.key === "?") openDialog($("keys"));
});
// A click beside a dialog closes it.
for (const dialog of document.querySelectorAll("dialog:not(#key)")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
$("toggle-theme").addEventListener("click", toggleTheme);
$("open-key").addEventListener("click", () => askKey());
$("open-keys").addEventListener("click", () => openDialog($("keys")));
$("find-photo").addEventListener("click", () => currentPhoto() && findSimilar(currentPhoto()));
watch();

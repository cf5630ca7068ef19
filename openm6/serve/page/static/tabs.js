// The parts of the page that the service has, in the address too, so that back and reload work.

import { $ } from "./dom.js";

export const PARTS = [...document.querySelectorAll(".tabs button")].map((tab) => tab.getAttribute("aria-controls"));

const scrolled = {}; // how far down each part was left
let shown;

export function show(name) {
  if (shown && shown !== name) scrolled[shown] = scrollY;
  for (const part of PARTS) {
    const tab = $(`tab-${part}`);
    tab.setAttribute("aria-selected", part === name);
    tab.tabIndex = part === name ? 0 : -1;
    $(part).hidden = part !== name;
  }
  if (shown !== name) scrollTo(0, scrolled[name] ?? 0);
  shown = name;
  const address = `#/${name}`; // the id of no element, or the browser would scroll to it
  if (!location.hash) history.replaceState(null, "", address);
  else if (location.hash !== address) history.pushState(null, "", address);
}

for (const part of PARTS) $(`tab-${part}`).addEventListener("click", () => show(part));
document.querySelector(".tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const at = PARTS.indexOf(event.target.id.replace("tab-", ""));
  const next = PARTS[(at + step + PARTS.length) % PARTS.length];
  show(next);
  $(`tab-${next}`).focus();
});
// The address says which part is open: an anchor would change it.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
const fromAddress = () => show(PARTS.find((part) => `#/${part}` === location.hash) ?? PARTS[0]);
addEventListener("popstate", fromAddress);
fromAddress();

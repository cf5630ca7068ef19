// What was done, kept in this browser: a list of {kind, title, picture, data}; each part of the page opens its own kind.

import { $, el, icon, openDialog } from "./dom.js";
import { PARTS } from "./tabs.js";

const KEPT = 40;
const openers = {};
let entries = [];
try {
  entries = JSON.parse(localStorage.getItem("history") ?? "[]");
} catch {
  // what another version kept
}

/** Where an entry of a kind belongs: another service of this address may not have it. */
const part = (kind) => (kind === "item" ? "find" : kind);

/** Say how an entry of a kind is opened again. */
export function opens(kind, open) {
  openers[kind] = open;
}

export function remember(kind, title, data, picture) {
  entries = [{ kind, title, data, picture, at: Date.now() }, ...entries].slice(0, KEPT);
  save();
  if ($("history").open) render();
}

function save() {
  while (entries.length) {
    try {
      localStorage.setItem("history", JSON.stringify(entries));
      return;
    } catch {
      entries.pop(); // the browser's room is full
    }
  }
  localStorage.removeItem("history");
}

function render() {
  $("history-note").textContent = entries.length ? "Kept in this browser alone." : "Nothing yet.";
  $("history-list").replaceChildren(
    ...entries.filter(({ kind }) => PARTS.includes(part(kind))).map((entry) => {
      const time = new Date(entry.at).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
      const words = el("span", {}, el("span", {}, entry.title), el("span", { className: "quiet" }, time));
      const mark = entry.picture ? el("img", { src: entry.picture, alt: "" }) : icon(part(entry.kind));
      const button = el("button", { type: "button" }, mark, words);
      button.addEventListener("click", () => {
        $("history").close();
        openers[entry.kind]?.(entry.data, entry);
      });
      return el("li", {}, button);
    }),
  );
}

export function openHistory() {
  render();
  openDialog($("history"));
}

$("open-history").addEventListener("click", openHistory);
$("clear-history").addEventListener("click", () => {
  entries = [];
  save();
  render();
});

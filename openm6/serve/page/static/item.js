// One item of the catalogue: its attributes, what is like it, and what a host would say of it.

import { follow, get, show as showPicture } from "./api.js";
import { $, busy, el, number, openDialog } from "./dom.js";
import { opens, remember } from "./history.js";

const dialog = $("item");
let chosen;
let writing; // the script at work
let searchWith; // what searches for what is like a picture

/** Name the function that gets an item's picture when its like is wanted. */
export function onSimilar(search) {
  searchWith = search;
}

export function openItem(item) {
  chosen = item;
  $("item-name").textContent = item.name;
  $("item-picture").hidden = !item.picture;
  $("item-similar").hidden = !item.picture;
  if (item.picture) showPicture($("item-picture"), item.picture).catch(() => {});
  $("item-attributes").tBodies[0].replaceChildren(
    ...facts(item).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))),
  );
  if ($("script")) $("script").textContent = "";
  openDialog(dialog);
}

/** Attributes to show; what a column says in Chinese stands beside it. */
function facts({ name, attributes }) {
  const told = Object.entries(attributes).filter(
    ([column, value]) => value !== null && column !== "image" && value !== name && !(column.endsWith("_zh") && column.slice(0, -3) in attributes && column !== "name_zh"),
  );
  return told.map(([column, value]) => {
    const chinese = attributes[`${column}_zh`];
    return [column === "name_zh" ? "中文" : column, chinese ? `${value} · ${chinese}` : shown(column, value)];
  });
}

/** A price with its currency, where the service knows it. */
export const price = (value) => (typeof value === "number" ? $("find").dataset.currency + number(value, { price: true }) : String(value));

function shown(column, value) {
  if (column === "price") return price(value);
  return typeof value === "number" ? number(value) : String(value);
}

async function writeScript(lang, button) {
  const place = $("script");
  writing?.abort();
  const mine = (writing = new AbortController());
  place.textContent = "";
  place.lang = lang;
  place.setAttribute("aria-busy", "true");
  await busy(button, async () => {
    try {
      const request = { item: chosen.id, lang, seed: Math.floor(Math.random() * 2 ** 31) };
      const text = (added, anew) => (place.textContent = anew ? added : place.textContent + added);
      const script = await follow("/v1/script", request, { text }, mine.signal);
      place.textContent = script.text;
      $("script-by").textContent = `Written by ${script.by}.`;
      remember("item", `${chosen.name}: ${script.text}`, { id: chosen.id, script });
    } finally {
      if (mine === writing) place.setAttribute("aria-busy", "false");
    }
  });
}

for (const button of dialog.querySelectorAll("[data-lang]")) {
  button.addEventListener("click", () => writeScript(button.dataset.lang, button));
}
dialog.addEventListener("close", () => writing?.abort());
$("item-similar").addEventListener("click", async () => {
  const { picture } = chosen;
  dialog.close();
  await busy(null, async () => {
    const image = new Image();
    const loaded = new Promise((done, failed) => Object.assign(image, { onload: done, onerror: () => failed(new Error("the picture cannot be read")) }));
    await showPicture(image, picture);
    await loaded;
    const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    canvas.getContext("2d").drawImage(image, 0, 0);
    await searchWith(await new Promise((done) => canvas.toBlob(done)));
  });
});
opens("item", ({ id, script }) =>
  busy(null, async () => {
    openItem(await get(`/v1/item?id=${encodeURIComponent(id)}`));
    if ($("script")) $("script").textContent = script.text;
  }),
);

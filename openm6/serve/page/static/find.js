// The catalogue: looked through page by page, filtered, or searched by words, a picture, or both.

import { send, show as showPicture } from "./api.js";
import { $, blobOf, busy, el, items, number, sendable, small, usable } from "./dom.js";
import { opens, remember } from "./history.js";
import { onSimilar, openItem, price } from "./item.js";
import { show as showTab } from "./tabs.js";

const PAGE = 24; // items of a page
const ORDERED = {
  similarity: (count) => `${items(count)}, the most similar first`,
  words: (count) => `${items(count)} with these words`,
};
let picture; // to search with
let search; // the one at work, which a newer one stops
let next; // what asks for the page after the last one
let total; // items of the catalogue
let turn = 0; // of the picture: one that took long to read does not come after a later one

/** Search with a picture (or none), and with the words and filters in the form; with filters alone, look through. */
export async function find(blob = picture, { keep = true } = {}) {
  if (blob && !usable(blob)) return;
  const mine = ++turn;
  const image = blob ? await busy(null, () => sendable(blob)) : undefined;
  if (mine !== turn || (blob && !image)) return;
  setPicture(blob);
  showTab("find");
  const words = $("words").value.trim();
  if (words || blob) $("suggestions").hidden = true;
  const asked = { words, where: $("where").value, filters: chosen() };
  const found = await ask({ image, text: words, where: filter() }, keep ? {} : { button: null });
  if (!found || !keep || !(words || blob)) return;
  const shown = blob ? await small(blob) : undefined;
  // What cannot be shown cannot be kept.
  if (shown || !blob) remember("find", words || "with a picture", asked, shown);
}

/** Ask for the first page of what is wanted, or with `after` for a further one; `button` waits meanwhile. */
async function ask(wanted, { after, button = $("find-form").querySelector("[type=submit]") } = {}) {
  search?.abort();
  search = new AbortController();
  const { signal } = search;
  $("found").textContent = "Searching …";
  $("more").hidden = true;
  return busy(button, async () => {
    try {
      const found = await send("/v1/search", { ...wanted, n: PAGE, after }, signal);
      $("found").textContent = said(found);
      const cards = found.hits.map((hit) => card(hit, found.order));
      if (after) $("results").append(...cards);
      else $("results").replaceChildren(...cards);
      next = found.next && (() => ask(wanted, { after: found.next, button: $("more") }));
      $("more").hidden = !next;
      return found;
    } catch (problem) {
      if (!signal.aborted) $("found").textContent = "";
      throw problem;
    }
  });
}

function said({ hits, order, count }) {
  if (order === "id") {
    if (count === 0) return "Nothing passes these filters.";
    return count < total ? `${number(count)} of ${items(total)}` : items(count);
  }
  if (hits.length) return (ORDERED[order] ?? ORDERED.similarity)(hits.length);
  return filter() ? "Nothing passes these filters." : "Nothing has these words.";
}

/** Search for what is like a picture, whatever the words were. */
export function findSimilar(blob) {
  $("words").value = "";
  return find(blob);
}
onSimilar(findSimilar);

function setPicture(blob) {
  picture = blob;
  const place = $("query-picture");
  place.hidden = !blob;
  const image = place.querySelector("img");
  URL.revokeObjectURL(image.src);
  if (blob) image.src = URL.createObjectURL(blob);
}

function card(hit, order) {
  const { attributes } = hit;
  const image = el("img", { alt: "", loading: "lazy" });
  if (hit.picture) showPicture(image, hit.picture).catch(() => {});
  const facts = el("span", { className: "facts" });
  if (attributes.price !== undefined && attributes.price !== null) facts.append(el("span", {}, price(attributes.price)));
  if (order === "similarity") facts.append(el("span", { title: "similarity" }, hit.similarity.toFixed(2)));
  const button = el("button", { type: "button", className: "hit" }, hit.picture ? image : "", el("strong", {}, hit.name));
  if (attributes.name_zh) button.append(el("span", { className: "quiet", lang: "zh" }, attributes.name_zh));
  button.append(facts);
  button.addEventListener("click", () => openItem(hit));
  return el("li", {}, button);
}

const controls = () => [...$("filters").querySelectorAll("[data-column]")];
/** What the controls say, by column. */
const chosen = () => Object.fromEntries(controls().filter(({ value }) => value).map(({ dataset, value }) => [dataset.column, value]));

/** The filters of the form as one expression. */
function filter() {
  const parts = [];
  for (const field of controls()) {
    if (!field.value) continue;
    const column = `"${field.dataset.column}"`;
    parts.push(field.type === "number" ? `${column} <= ${Number(field.value)}` : `${column} = ${quoted(field.value)}`);
  }
  const where = $("where").value.trim();
  return [...parts, ...(where ? [`(${where})`] : [])].join(" and ");
}

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

/** An example of a filter, in the catalogue's own columns. */
function example(facets) {
  const column = (name) => (/^\w+$/.test(name) ? name : `"${name}"`);
  const choice = facets.find((facet) => facet.choices.length);
  const range = facets.find((facet) => facet.kind === "number" && facet.most !== null);
  const text = facets.find((facet) => facet.kind === "text" && !facet.choices.length);
  const parts = [
    ...(choice ? [`${column(choice.column)} = ${quoted(choice.choices[0])}`] : []),
    ...(range ? [`${column(range.column)} < ${range.most}`] : []),
    ...(!choice && text ? [`${column(text.column)} like '%word%'`] : []),
  ];
  return parts.join(" and ");
}

/** Fit the form to the catalogue, and show its first items: a control for every column that has choices or a range. */
export function offer({ items: count, facets, reads_words: reads }) {
  total = count;
  const names = new Set(facets.map((facet) => facet.column));
  // A column in Chinese beside the same in English says nothing more.
  const told = facets.filter(({ column }) => !(column.endsWith("_zh") && names.has(column.slice(0, -3))));
  const fields = told
    .map((facet) => {
      const id = `filter-${facet.column}`;
      const title = facet.column.charAt(0).toUpperCase() + facet.column.slice(1);
      let control;
      if (facet.choices.length) {
        control = el("select", { id }, el("option", { value: "" }, "any"));
        control.append(...facet.choices.map((choice) => el("option", { value: choice }, choice)));
      } else if (facet.kind === "number") {
        control = el("input", { id, type: "number", step: "any" });
        // Of a large catalogue the range is not known.
        if (facet.least !== null) Object.assign(control, { min: facet.least, placeholder: `up to ${number(facet.most)}` });
      } else {
        return null;
      }
      control.dataset.column = facet.column;
      // Without a button that waits: this may come just before the click on it.
      control.addEventListener("change", () => find(picture, { keep: false }));
      const words = facet.choices.length ? title : `${title}, at most`;
      return el("div", { className: "field" }, el("label", { htmlFor: id }, words), control);
    });
  $("filters").replaceChildren(...fields.filter(Boolean));
  $("where").placeholder = example(told);
  if (!reads) {
    // The encoder knows pictures alone: words are looked for in names and attributes.
    $("words").placeholder = "words of a name — or a picture, or both";
    $("suggestions").hidden = true;
  }
  if (!search) ask({ where: filter() }, { button: null });
}

$("find-form").addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
$("where").addEventListener("change", () => find(picture, { keep: false }));
$("find-file").addEventListener("change", (event) => {
  if (event.target.files[0]) find(event.target.files[0]);
  event.target.value = "";
});
$("query-picture").querySelector("button").addEventListener("click", () => {
  find(null, { keep: false });
  $("words").focus();
});
$("more").addEventListener("click", () => next?.());
for (const chip of $("suggestions").children) {
  chip.addEventListener("click", () => {
    $("words").value = chip.textContent;
    find(null);
  });
}
opens("find", ({ words, where, filters = {} }, { picture: image }) => {
  $("words").value = words;
  $("where").value = where;
  for (const field of controls()) field.value = filters[field.dataset.column] ?? "";
  find(image ? blobOf(image) : null, { keep: false });
});

// Searching the catalogue: by words, a picture, or both, with filters.

import { send, show as showPicture } from "./api.js";
import { $, blobOf, busy, el, items, small, toast, usable } from "./dom.js";
import { opens, remember } from "./history.js";
import { openItem } from "./item.js";
import { show as showTab } from "./tabs.js";

let picture; // to search with
let search; // the one at work, which a newer one stops

/** Search with a picture (or none), and with the words and filters that stand in the form. */
export async function find(blob = picture, { keep = true } = {}) {
  if (blob && !usable(blob)) return;
  setPicture(blob);
  showTab("find");
  const words = $("words").value.trim();
  if (!picture && !words) return toast("say what to look for, or choose a picture");
  search?.abort();
  search = new AbortController();
  const { signal } = search;
  $("found").textContent = "Searching …";
  $("suggestions").hidden = true;
  await busy($("find-form").querySelector("[type=submit]"), async () => {
    try {
      const asked = { words, where: $("where").value, filters: chosen() };
      const { hits } = await send("/v1/search", { image: blob, text: words, where: filter() }, signal);
      $("found").textContent = hits.length
        ? `${items(hits.length)}, the most similar first`
        : "Nothing passes these filters.";
      $("results").replaceChildren(...hits.map(card));
      if (keep) {
        const image = blob ? await small(blob) : undefined;
        // What cannot be shown cannot be kept.
        if (image || !blob) remember("find", words || "with a picture", asked, image);
      }
    } catch (problem) {
      if (!signal.aborted) $("found").textContent = "";
      throw problem;
    }
  });
}

/** Search for what is like a picture, whatever the words were. */
export function findSimilar(blob) {
  $("words").value = "";
  return find(blob);
}

function setPicture(blob) {
  picture = blob;
  const place = $("query-picture");
  place.hidden = !blob;
  const image = place.querySelector("img");
  URL.revokeObjectURL(image.src);
  if (blob) image.src = URL.createObjectURL(blob);
}

function card(hit) {
  const { attributes } = hit;
  const image = el("img", { alt: "", loading: "lazy" });
  if (hit.picture) showPicture(image, hit.picture).catch(() => {});
  const facts = el("span", { className: "facts" });
  if (attributes.price !== undefined && attributes.price !== null) {
    facts.append(el("span", {}, `${$("find").dataset.currency}${attributes.price}`));
  }
  facts.append(el("span", { title: "similarity" }, hit.similarity.toFixed(2)));
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
    parts.push(field.type === "number" ? `${column} <= ${Number(field.value)}` : `${column} = '${field.value.replaceAll("'", "''")}'`);
  }
  const where = $("where").value.trim();
  return [...parts, ...(where ? [`(${where})`] : [])].join(" and ");
}

/** Make a control for every column that a filter can choose from. */
export function offerFilters({ facets }) {
  const names = new Set(facets.map((facet) => facet.column));
  const fields = facets
    // A column in Chinese beside the same in English says nothing more.
    .filter(({ column }) => !(column.endsWith("_zh") && names.has(column.slice(0, -3))))
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
        if (facet.least !== null) Object.assign(control, { min: facet.least, placeholder: `up to ${facet.most}` });
      } else {
        return null;
      }
      control.dataset.column = facet.column;
      control.addEventListener("change", () => (picture || $("words").value.trim()) && find());
      const words = facet.choices.length ? title : `${title}, at most`;
      return el("div", { className: "field" }, el("label", { htmlFor: id }, words), control);
    });
  $("filters").replaceChildren(...fields.filter(Boolean));
}

$("find-form").addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
$("find-file").addEventListener("change", (event) => {
  if (event.target.files[0]) find(event.target.files[0]);
  event.target.value = "";
});
$("query-picture").querySelector("button").addEventListener("click", () => {
  setPicture(undefined);
  $("words").focus();
});
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

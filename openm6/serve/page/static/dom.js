// The few lines that every part of the page needs.

export const ROOT = document.body.dataset.root; // the path below which a proxy offers the service

export const $ = (id) => document.getElementById(id);

/** An element: el("li", {className: "hit"}, "text", child). */
export function el(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `${ROOT}/static/icons.svg#${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

let fading;
/** Show a problem for some seconds, or until it is closed. */
export function toast(message) {
  $("toast-words").textContent = message;
  placeToast();
  $("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => ($("toast").hidden = true), 7000);
}
$("close-toast").addEventListener("click", () => ($("toast").hidden = true));

/** What lies beside an open dialog is under its backdrop: the toast goes into the topmost one. */
function placeToast() {
  const place = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  if ($("toast").parentElement !== place) place.append($("toast"));
}

/** Open a dialog. A toast that is shown stays above it, and outlives it. */
export function openDialog(dialog) {
  dialog.showModal();
  placeToast();
  dialog.addEventListener("close", placeToast, { once: true });
}

const started = new WeakMap(); // how much of what a button started is not done
function count(button, step) {
  started.set(button, (started.get(button) ?? 0) + step);
  button.disabled = started.get(button) > 0;
}

/** Run something that a button started: the button waits, problems are shown. */
export async function busy(button, run) {
  if (button) count(button, 1);
  try {
    return await run();
  } catch (problem) {
    if (problem.name !== "AbortError") toast(problem.message);
  } finally {
    if (button) count(button, -1);
  }
}

export const items = (count) => `${number(count)} ${count === 1 ? "item" : "items"}`;

const size = (bytes) => (bytes < 2 ** 20 ? `${Math.round(bytes / 2 ** 10)} KiB` : `${+(bytes / 2 ** 20).toFixed(1)} MiB`);

/** Whether a file is a picture; if not, a toast says so. */
export function usable(blob) {
  const picture = blob.type.startsWith("image/");
  if (!picture) toast(`${blob.name ?? "this"} is not a picture`);
  return picture;
}

const SIDE = 1280; // pixels: far more than a model reads
const LIGHT = 2 ** 20; // bytes that are sent as they are

/** The picture as it is sent: a large one is made smaller here. Throws where the service would not take it. */
export async function sendable(blob) {
  const most = Number(document.body.dataset.maxUpload) - 4096; // a form has more than the picture
  if (blob.size <= Math.min(LIGHT, most)) return blob;
  const canvas = await drawn(blob, SIDE);
  // JPEG is much smaller, but has no transparency.
  const type = blob.type === "image/jpeg" ? "image/jpeg" : "image/png";
  const small = canvas && (await new Promise((done) => canvas.toBlob(done, type, 0.9)));
  const sent = small && small.size < blob.size ? small : blob;
  if (sent.size > most) throw new Error(`the picture is larger than ${size(most + 4096)}`);
  return sent;
}

/** A picture on a canvas of at most `side` pixels a side; undefined where the browser cannot read it. */
async function drawn(blob, side) {
  const bitmap = await createImageBitmap(blob).catch(() => undefined);
  if (!bitmap) return undefined;
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

/** A picture small enough to keep, as a data: address; undefined where the browser cannot read it. */
export async function small(blob, side = 128) {
  return (await drawn(blob, side))?.toDataURL("image/png");
}

/** A number as people write it: 1,234.5; a price with both digits behind the point, or none. */
export function number(value, { price = false } = {}) {
  const digits = price ? { minimumFractionDigits: Number.isInteger(value) ? 0 : 2, maximumFractionDigits: 2 } : { maximumFractionDigits: 12 };
  return value.toLocaleString("en", digits);
}

/** The blob behind a data: address, without asking the network. */
export function blobOf(address) {
  const [head, data] = address.split(",");
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

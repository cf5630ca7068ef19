// The few lines that every part of the page needs.

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
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

let fading;
/** Tell of a problem, for some seconds. */
export function toast(message) {
  const place = $("toast");
  // What lies beside an open dialog is under its backdrop.
  ([...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body).append(place);
  place.textContent = message;
  place.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => (place.hidden = true), 7000);
}

const started = new WeakMap(); // how much of what a button started is not done
function count(button, step) {
  started.set(button, (started.get(button) ?? 0) + step);
  button.disabled = started.get(button) > 0;
}

/** Run something that a button started: the button waits, problems are told. */
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

export const items = (count) => `${count} ${count === 1 ? "item" : "items"}`;

const size = (bytes) => (bytes < 2 ** 20 ? `${Math.round(bytes / 2 ** 10)} KiB` : `${+(bytes / 2 ** 20).toFixed(1)} MiB`);

/** Whether a file may be sent as a picture; if not, it is told why. */
export function usable(blob) {
  const most = Number(document.body.dataset.maxUpload);
  const picture = blob.type.startsWith("image/");
  if (!picture) toast(`${blob.name ?? "this"} is not a picture`);
  else if (blob.size > most) toast(`the picture is larger than ${size(most)}`);
  return picture && blob.size <= most;
}

/** A picture small enough to keep, as a data: address; undefined where the browser cannot read it. */
export async function small(blob, side = 128) {
  const bitmap = await createImageBitmap(blob).catch(() => undefined);
  if (!bitmap) return undefined;
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

/** The blob behind a data: address, without asking the network. */
export function blobOf(address) {
  const [head, data] = address.split(",");
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

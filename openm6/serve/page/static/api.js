// Talking to the service: JSON, forms, server-sent events; its key; its errors.

import { $, openDialog, ROOT } from "./dom.js";

const PATIENCE = 3; // times that a busy service is asked again
const PASSING = ["starting", "queue_full"]; // what is over soon

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the service answered ${status}`);
    this.status = status;
    this.code = error?.code;
  }
}

const key = () => sessionStorage.getItem("api-key");

let asking; // the dialog's answer, while it is open
let dismissed = false; // then it does not come back by itself

/** Ask for the key, once however many requests need it; false where the user would rather not. */
export function askKey(refused = false) {
  asking ??= new Promise((done) => {
    const dialog = $("key");
    dialog.returnValue = ""; // of an earlier time
    dialog.addEventListener("close", () => {
      asking = undefined;
      dismissed = dialog.returnValue !== "use";
      if (!dismissed) sessionStorage.setItem("api-key", $("key-input").value.trim());
      $("key-input").value = "";
      $("open-key").hidden = !dismissed;
      done(!dismissed);
    }, { once: true });
    openDialog(dialog);
    $("key-problem").textContent = refused ? "The service refused this key." : "";
  });
  return asking;
}

/** The response, if it is one; a refused key is asked for, a busy service waited for. */
async function ask(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    const headers = new Headers(options.headers);
    const sent = key();
    if (sent) headers.set("X-API-Key", sent);
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      throw new Error("the service does not answer: is it running?");
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    // Another request may have asked for the key meanwhile.
    if (response.status === 401 && (sent !== key() || (!dismissed && (await askKey(Boolean(sent)))))) continue;
    if (PASSING.includes(body.error?.code) && attempt < PATIENCE) {
      const seconds = Number(response.headers.get("Retry-After") ?? 2);
      await new Promise((done) => setTimeout(done, 1000 * Math.min(seconds, 10)));
      continue;
    }
    throw new ApiError(response.status, body.error);
  }
}

export async function get(path) {
  return (await ask(ROOT + path)).json();
}

/** Post a form: files, and texts that say something. */
export async function send(path, fields, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined && value !== null && value !== "") form.append(name, value);
  }
  return (await ask(ROOT + path, { method: "POST", body: form, signal })).json();
}

/** Post JSON and hear of it while it is made: on.text(added, anew), on.progress(share). Returns the answer. */
export async function follow(path, body, on = {}, signal) {
  const response = await ask(ROOT + path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the service stopped in the middle of its answer");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const name = event.match(/^event: (.*)$/m)?.[1];
      const data = JSON.parse(event.match(/^data: (.*)$/m)[1]);
      if (name === "text") on.text?.(data.text, data.anew);
      if (name === "progress") on.progress?.(data.share);
      if (name === "error") throw new ApiError(200, data.error);
      if (name === "done") return data;
    }
  }
}

/** Show a picture of the service, at an address that it gave; the service may ask for its key. */
export async function show(image, path) {
  if (!key()) {
    image.src = path;
    return;
  }
  const address = URL.createObjectURL(await (await ask(path)).blob());
  image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
  image.src = address;
}

/* The gateway's answers; nothing here knows the page. */

/** What is known of the server: its facts (classes, limits, colours), and what is wrong, if anything. */
export const server = { model: null, problem: "Not asked yet." };

/** Thrown where it may be the server's fault; if the server is well, ask again after so many milliseconds, if any. */
export class Away extends Error {
  constructor(message, retryAfterMs) {
    super(message);
    this.retryAfterMs = retryAfterMs;
  }
}

async function fetchJson(path) {
  const response = await fetch(path);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

/** Asks how the server is; its facts, too, where it was not well before. */
export async function checkServer() {
  try {
    await fetchJson("health");
    if (server.problem) server.model = await fetchJson("model");
    server.problem = "";
  } catch (error) {
    server.problem = error instanceof TypeError ? "This page's own server does not answer." : error.message;
  }
  return !server.problem;
}

/**
 * Asks for all boxes, whatever their score: the slider needs no request.
 *
 * @returns {{entry: object, times: [string, number][], turned: boolean}} detect.py's JSON; milliseconds by
 * step; whether the server sees the picture turned, and the browser does not.
 */
export async function detect(file) {
  const { max_bytes: most } = server.model.limits;
  if (!file.size) throw new Error("The file is empty.");
  if (file.size > most) {
    throw new Error(`The picture is too large: ${megabytes(file.size)} MB, the server takes at most ${megabytes(most)} MB.`);
  }
  const begin = performance.now();
  let response, content;
  try {
    response = await fetch("detect?threshold=0&steps=1", post(file));
    content = await response.json();
  } catch {
    throw new Away("The file cannot be read.");
  }
  if (response.status === 503) throw new Away(content.error, 1000 * (Number(response.headers.get("Retry-After")) || 1));
  if (response.status === 504) throw new Away(content.error);
  if (!response.ok) throw new Error(content.error);
  return {
    entry: content,
    times: timesOf(response.headers.get("Server-Timing"), performance.now() - begin),
    turned: response.headers.has("WebP-Orientation"),
  };
}

/** The picture as the server draws it, with boxes from `threshold` up; null if it cannot. */
export async function draw(file, threshold) {
  const response = await fetch(`detect?draw=1&threshold=${threshold}`, post(file));
  return response.ok ? response.blob() : null;
}

function post(body) {
  return { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } };
}

/** Pairs of step and milliseconds, from the header's `name;dur=ms, …` and the time of the whole. */
function timesOf(header, whole) {
  const steps = new Map(
    (header || "").split(", ").map((part) => {
      const [name, ms] = part.split(";dur=");
      return [name, Number(ms)];
    }),
  );
  const detecting = steps.get("detect") || 0;
  steps.delete("detect");
  steps.delete("receive");
  const models = [...steps].map(([name, ms]) => [name.replace(`${server.model.model}_`, ""), ms]);
  const known = models.reduce((sum, [, ms]) => sum + ms, 0);
  return [
    ["upload and answer", whole - detecting],
    ...models,
    ["between the models", Math.max(0, detecting - known)],
    ["whole", whole],
  ];
}

export function megabytes(bytes) {
  return (bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0);
}

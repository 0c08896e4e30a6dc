"use strict";

/* What lies over the picture, by the key of a detection's JSON: a function that adds elements to its box.
   A model that answers more than boxes (keypoints, identities) gets an entry here and a column below. */
const MARKS = {
  xyxy: drawBox,
};

/* The table: heading, text of a detection, class name of the cell. */
const COLUMNS = [
  ["#", (_, index) => index + 1],
  ["class", (detection) => detection.label, "label"],
  ["score", (detection) => detection.score.toFixed(2)],
  ["x1", (detection) => Math.round(detection.xyxy[0])],
  ["y1", (detection) => Math.round(detection.xyxy[1])],
  ["x2", (detection) => Math.round(detection.xyxy[2])],
  ["y2", (detection) => Math.round(detection.xyxy[3])],
];

const AT_ONCE = 2; // Requests of this page in flight.
const MOST = 100; // Pictures on this page.
const POLL_READY_MS = 15000;
const POLL_AWAY_MS = 2000;

const $ = (id) => document.getElementById(id);
let model = null; // What the server serves: classes, limits, colours.
let ready = false;
let pictures = []; // {name, file, url, state: waiting|asking|done|failed, entry, times, error, drawn}
let shown = null;

/* ---- the server ---- */

async function fetchJson(path) {
  const response = await fetch(path);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

/** Asks how the server is, and goes on with what waits if it is well. */
async function checkServer() {
  let problem = "";
  try {
    await fetchJson("health");
    if (!ready || !model) await learn();
  } catch (error) {
    problem = error instanceof TypeError ? "This page's own server does not answer." : error.message;
  }
  ready = !problem;
  $("server").classList.toggle("away", !ready);
  setText($("server"), ready ? describe(model) : `${problem} Pictures wait, and go on when it is back.`);
  if (ready) pump();
  return ready;
}

async function poll() {
  if (!document.hidden) await checkServer();
  setTimeout(poll, ready ? POLL_READY_MS : POLL_AWAY_MS);
}

async function learn() {
  const first = !model;
  model = await fetchJson("model");
  const limits = model.limits;
  setText($("limits"), `Up to ${megabytes(limits.max_bytes)} MB and ${Math.round(limits.max_pixels / 1e6)} megapixels each.`);
  if (first) setThreshold(model.threshold);
}

function describe({ classes }) {
  if (!classes.length) return "The server is ready.";
  const few = classes.slice(0, 8).join(", ");
  const rest = classes.length > 8 ? ` and ${classes.length - 8} more` : "";
  return `The server is ready and knows ${classes.length === 1 ? "one class" : `${classes.length} classes`}: ${few}${rest}.`;
}

/** Asks for waiting pictures, a few at once. */
function pump() {
  for (const picture of pictures) {
    if (pictures.filter((one) => one.state === "asking").length >= AT_ONCE) return;
    if (ready && picture.state === "waiting") ask(picture);
  }
}

async function ask(picture) {
  picture.state = "asking";
  update(picture);
  try {
    await detect(picture);
  } catch (error) {
    picture.state = "failed";
    picture.error = error.message;
  }
  update(picture);
  pump();
}

/** All boxes at once, whatever their score: the slider asks for nothing. */
async function detect(picture) {
  const { file } = picture;
  if (!file.size) throw new Error("The file is empty.");
  if (file.size > model.limits.max_bytes) {
    throw new Error(
      `The picture is too large: ${megabytes(file.size)} MB, the server takes at most ${megabytes(model.limits.max_bytes)} MB.`,
    );
  }
  const begin = performance.now();
  let response, content;
  try {
    response = await fetch("detect?threshold=0&steps=1", {
      method: "POST",
      body: file,
      headers: { "Content-Type": "application/octet-stream" },
    });
    content = await response.json();
  } catch {
    if (await checkServer()) throw new Error("The file cannot be read.");
    picture.state = "waiting";
    return;
  }
  if (response.ok) {
    picture.times = timesOf(response.headers.get("Server-Timing"), performance.now() - begin);
    picture.entry = { ...content, image: picture.name };
    picture.state = "done";
  } else if (response.status === 503) {
    // Away, or busy with others: then again after a pause.
    if (await checkServer()) await pause(1000 * (Number(response.headers.get("Retry-After")) || 1));
    picture.state = "waiting";
  } else {
    throw new Error(content.error);
  }
}

/** Pairs of step and milliseconds, from the header's `name;dur=ms, …`. */
function timesOf(header, whole) {
  const steps = new Map((header || "").split(", ").map((part) => part.split(";dur=")).map(([name, ms]) => [name, Number(ms)]));
  const detect = steps.get("detect") || 0;
  const receive = steps.get("receive") || 0;
  steps.delete("detect");
  steps.delete("receive");
  const models = [...steps].map(([name, ms]) => [name.replace(`${model.model}_`, ""), ms]);
  const known = models.reduce((sum, [, ms]) => sum + ms, 0);
  const rest = Math.max(0, detect - known);
  return [["upload", Math.max(receive, whole - detect)], ...models, ["between them", rest], ["whole", whole]];
}

/* ---- pictures come in ---- */

function add(files) {
  setMessage("");
  const room = MOST - pictures.length;
  if (files.length > room) setMessage(`The page holds ${MOST} pictures: clear it before you add more.`);
  for (const file of [...files].slice(0, Math.max(0, room))) {
    const picture = { name: file.name || "picture", file, url: URL.createObjectURL(file), state: "waiting" };
    pictures.push(picture);
    addThumbnail(picture);
    if (!shown || files.length === 1) show(picture);
  }
  pump();
}

function clear() {
  for (const { url, drawn } of pictures) [url, drawn].forEach((one) => one && URL.revokeObjectURL(one));
  pictures = [];
  shown = null;
  $("pictures").replaceChildren();
  for (const id of ["strip", "result", "clear"]) $(id).hidden = true;
  setMessage("");
  $("choose").focus();
}

function addThumbnail(picture) {
  const image = element("img", { src: picture.url, alt: "" });
  const button = element("button", { type: "button" }, image, element("span", { textContent: picture.name }), element("span"));
  button.addEventListener("click", () => show(picture));
  picture.button = button;
  $("pictures").append(element("li", {}, button));
  $("strip").hidden = pictures.length < 2;
  $("clear").hidden = false;
}

async function openCamera() {
  setMessage("");
  // Browsers lend the camera to secure addresses alone; a phone's own camera program needs none.
  if (!navigator.mediaDevices) return $("snapshot").click();
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    $("viewfinder").showModal();
  } catch (error) {
    setMessage(`The camera cannot be used: ${error.message}.`);
  }
}

function closeCamera() {
  $("video").srcObject?.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
}

function shoot() {
  const video = $("video");
  if (!video.videoWidth) return; // No frame yet.
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => add([new File([blob], `camera-${pictures.length + 1}.jpg`, { type: blob.type })]), "image/jpeg", 0.95);
  $("viewfinder").close();
}

/* ---- what is shown ---- */

function show(picture) {
  shown = picture;
  $("result").hidden = false;
  $("frame").hidden = true;
  $("picture").src = picture.drawn || picture.url;
  render();
}

/** Something about a picture has changed. */
function update(picture) {
  if (picture !== shown) return renderThumbnail(picture);
  render();
  showDrawn(picture);
}

function render() {
  const { entry, error, state, name } = shown;
  const detections = entry?.detections || [];
  $("overlay").replaceChildren();
  $("rows").replaceChildren();
  $("found").hidden = !entry;
  $("head").replaceChildren(
    element("tr", {}, ...COLUMNS.map(([title, , style]) => element("th", { scope: "col", textContent: title, className: style || "" }))),
  );
  detections.forEach(addDetection);
  $("times").replaceChildren(
    ...(shown.times || []).flatMap(([step, ms]) => [
      element("dt", { textContent: step }),
      element("dd", { textContent: `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` }),
    ]),
  );
  $("summary").classList.toggle("problem", state === "failed");
  if (state === "failed") setText($("summary"), `${name}: ${error}`);
  else if (!entry) setText($("summary"), `${name}: ${state === "waiting" ? "waiting…" : "looking…"}`);
  $("note").hidden = !shown.note;
  setText($("note"), shown.note || "");
  $("picture").alt = name;
  applyThreshold();
  pictures.forEach(renderThumbnail);
}

/** A detection's row and marks; hover or focus on one shows the other. */
function addDetection(detection, index) {
  const color = model.colors[detection.class_id % model.colors.length];
  const cells = COLUMNS.map(([, text, style]) => element("td", { textContent: text(detection, index), className: style || "" }));
  cells[1].prepend(element("span", { className: "swatch" }));
  const row = element("tr", { tabIndex: -1 }, ...cells);
  const box = element("div", { className: "box" });
  for (const part of [row, box]) {
    part.style.setProperty("--color", color.box);
    part.style.setProperty("--text", color.text);
    const light = (on) => [row, box].forEach((one) => one.classList.toggle("on", on));
    part.addEventListener("pointerenter", () => light(true));
    part.addEventListener("pointerleave", () => light(document.activeElement === row));
    part.addEventListener("focus", () => light(true));
    part.addEventListener("blur", () => light(false));
  }
  box.addEventListener("click", () => focusRow(row));
  row.addEventListener("click", () => focusRow(row));
  for (const [key, draw] of Object.entries(MARKS)) if (key in detection) draw(box, detection, index);
  $("rows").append(row);
  $("overlay").append(box);
}

function drawBox(box, { label, score, xyxy }, index) {
  const { naturalWidth: width, naturalHeight: height } = $("picture");
  const [x1, y1, x2, y2] = xyxy;
  const percent = (value, whole) => `${(100 * value) / (whole || 1)}%`;
  box.style.left = percent(x1, width);
  box.style.top = percent(y1, height);
  box.style.width = percent(x2 - x1, width);
  box.style.height = percent(y2 - y1, height);
  // Small boxes lie on top, where the pointer reaches them.
  box.style.zIndex = String(Math.max(1, Math.round(10000 * (1 - ((x2 - x1) * (y2 - y1)) / (width * height || 1)))));
  const name = element("b", { textContent: ` ${label} ${score.toFixed(2)}` });
  box.append(element("span", { textContent: index + 1 }, name));
}

function applyThreshold() {
  const threshold = Number($("threshold").value);
  setText($("score"), threshold.toFixed(2));
  if (!shown?.entry) return;
  const { detections } = shown.entry;
  [...$("rows").children].forEach((row, index) => {
    const hide = detections[index].score < threshold;
    row.hidden = hide;
    $("overlay").children[index].hidden = hide;
    row.tabIndex = index ? -1 : 0;
  });
  setText($("summary"), `${shown.name}: ${count(atLeast(threshold, shown.entry).detections)}`);
}

function renderThumbnail({ button, state, entry, error }) {
  const threshold = Number($("threshold").value);
  const words = { waiting: "waiting", asking: "looking", failed: "failed", done: entry && count(atLeast(threshold, entry).detections) };
  setText(button.lastChild, words[state]);
  button.title = error || "";
  button.setAttribute("aria-current", String(shown?.button === button));
}

/** The browser may not know the format; the server draws what it saw. */
async function showDrawn(picture) {
  if (!picture.unreadable || !picture.entry || picture.drawn) return;
  const threshold = $("threshold").value;
  const response = await fetch(`detect?draw=1&threshold=${threshold}`, { method: "POST", body: picture.file });
  if (!response.ok) return;
  picture.drawn = URL.createObjectURL(await response.blob());
  picture.note = `This browser cannot show such a file: the server has drawn it, with boxes from ${threshold} up.`;
  if (picture === shown) show(picture);
}

function onUnreadable() {
  if (!shown) return;
  shown.unreadable = true;
  showDrawn(shown);
}

function onPictureLoaded() {
  const image = $("picture");
  $("frame").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  $("frame").hidden = false;
  if (shown) render();
  $("overlay").hidden = Boolean(shown?.drawn);
}

function atLeast(threshold, entry) {
  return { ...entry, detections: entry.detections.filter(({ score }) => score >= threshold) };
}

/** "3 coin, 1 cat", the most frequent first, as detect.py says it. */
function count(detections) {
  const counts = new Map();
  for (const { label } of detections) counts.set(label, (counts.get(label) || 0) + 1);
  return [...counts].sort((one, other) => other[1] - one[1]).map(([label, number]) => `${number} ${label}`).join(", ") || "nothing";
}

function download() {
  const threshold = Number($("threshold").value);
  const entries = pictures.filter(({ entry }) => entry).map(({ entry }) => atLeast(threshold, entry));
  const url = URL.createObjectURL(new Blob([JSON.stringify(entries, null, 1)], { type: "application/json" }));
  element("a", { href: url, download: "detections.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function focusRow(row) {
  for (const one of $("rows").children) one.tabIndex = one === row ? 0 : -1;
  row.focus({ preventScroll: false });
}

function onRowKey(event) {
  const rows = [...$("rows").children].filter((row) => !row.hidden);
  const here = rows.indexOf(document.activeElement);
  const next = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (here < 0 || next === undefined || !rows[next]) return;
  event.preventDefault();
  focusRow(rows[next]);
}

/* ---- small things ---- */

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Only what changes is said again by a screen reader. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setMessage(text) {
  $("message").hidden = !text;
  setText($("message"), text);
}

function setThreshold(value) {
  $("threshold").value = String(value);
  applyThreshold();
}

function megabytes(bytes) {
  return (bytes / 2 ** 20).toFixed(bytes < 2 ** 20 * 10 ? 1 : 0);
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function onDrop(event) {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const { files } = event.dataTransfer;
  if (files.length) add(files);
  else setMessage("That is no file. Save the picture first: this server fetches nothing from other places.");
}

for (const input of [$("files"), $("snapshot")]) {
  input.addEventListener("change", () => {
    add([...input.files]);
    input.value = "";
  });
}
$("choose").addEventListener("click", () => $("files").click());
$("camera").addEventListener("click", openCamera);
$("clear").addEventListener("click", clear);
$("shoot").addEventListener("click", shoot);
$("close").addEventListener("click", () => $("viewfinder").close());
$("viewfinder").addEventListener("close", closeCamera);
$("download").addEventListener("click", download);
$("threshold").addEventListener("input", () => {
  applyThreshold();
  pictures.forEach(renderThumbnail);
});
$("rows").addEventListener("keydown", onRowKey);
$("picture").addEventListener("load", onPictureLoaded);
$("picture").addEventListener("error", onUnreadable);
document.addEventListener("paste", (event) => event.clipboardData.files.length && add(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
document.addEventListener("drop", onDrop);
document.addEventListener("visibilitychange", () => document.hidden || checkServer());
poll();

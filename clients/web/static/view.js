/* The shown picture: its boxes, its table, its times. */

import { draw, server } from "./server.js";

/* What lies over the picture, by the key of a detection's JSON: a function that adds elements to its box.
   What else a model answers gets an entry here and a column below. */
const MARKS = {
  xyxy: drawBox,
  keypoints: drawKeyPoints,
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

export const $ = (id) => document.getElementById(id);

/** The page's pictures: {name, file, url, state: waiting|asking|done|failed, entry, times, error, turned, broken, drawn, note, button}. */
export const pictures = [];
let shown = null;

export function show(picture) {
  shown = picture;
  $("result").hidden = !picture;
  if (!picture) return;
  $("frame").hidden = true;
  $("picture").src = picture.drawn || picture.url;
  render();
}

/** Something about a picture has changed. */
export function update(picture) {
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
    element("tr", {}, ...COLUMNS.map(([title, , style = ""]) => element("th", { scope: "col", textContent: title, className: style }))),
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
}

/** A detection's row and marks; hover or focus on one shows the other. */
function addDetection(detection, index) {
  const color = server.model.colors[detection.class_id % server.model.colors.length];
  const cells = COLUMNS.map(([, text, style = ""]) => element("td", { textContent: text(detection, index), className: style }));
  cells[1].prepend(element("span", { className: "swatch" }));
  // One stop for the tab key; arrows go on from there.
  const row = element("tr", { tabIndex: index ? -1 : 0 }, ...cells);
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

/** Points over the picture; places are those in the box, whose ends they may lie beyond. */
function drawKeyPoints(box, { xyxy: [x1, y1, x2, y2], keypoints }) {
  for (const [x, y] of keypoints) {
    const point = element("i");
    point.style.left = `${(100 * (x - x1)) / (x2 - x1 || 1)}%`;
    point.style.top = `${(100 * (y - y1)) / (y2 - y1 || 1)}%`;
    box.append(point);
  }
}

/** Shows the boxes that score well enough. */
export function applyThreshold() {
  const threshold = Number($("threshold").value);
  setText($("score"), threshold.toFixed(2));
  pictures.forEach(renderThumbnail);
  if (!shown?.entry) return;
  const { detections } = shown.entry;
  [...$("rows").children].forEach((row, index) => {
    const hide = detections[index].score < threshold;
    row.hidden = hide;
    $("overlay").children[index].hidden = hide;
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
  if (!(picture.broken || picture.turned) || !picture.entry || picture.drawn) return;
  const threshold = $("threshold").value;
  const drawing = await draw(picture.file, threshold).catch(() => null);
  if (!drawing) return;
  picture.drawn = URL.createObjectURL(drawing);
  picture.note = `The browser cannot show this file as the server sees it: the server has drawn it, with boxes from ${threshold} up.`;
  if (picture === shown) show(picture);
}

export function onUnreadable() {
  if (!shown) return;
  shown.broken = true;
  showDrawn(shown);
}

export function onPictureLoaded() {
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

export function download() {
  const threshold = Number($("threshold").value);
  const entries = pictures.filter(({ entry }) => entry).map(({ entry }) => atLeast(threshold, entry));
  const url = URL.createObjectURL(new Blob([JSON.stringify(entries, null, 1)], { type: "application/json" }));
  element("a", { href: url, download: "detections.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function focusRow(row) {
  for (const one of $("rows").children) one.tabIndex = one === row ? 0 : -1;
  row.focus();
}

export function onRowKey(event) {
  const rows = [...$("rows").children].filter((row) => !row.hidden);
  const here = rows.indexOf(document.activeElement);
  const next = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (here < 0 || next === undefined || !rows[next]) return;
  event.preventDefault();
  focusRow(rows[next]);
}

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Only what changes is said again by a screen reader. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}


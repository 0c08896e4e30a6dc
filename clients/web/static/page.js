/* Pictures come in, are asked for, and wait while the server is away. */

import { Away, checkServer, detect, megabytes, server } from "./server.js";
import { $, applyThreshold, download, element, onPictureLoaded, onRowKey, onUnreadable, pictures, setText, show, update } from "./view.js";

const AT_ONCE = 2; // Requests of this page in flight.
const MOST = 100; // Pictures on this page.
const POLL_READY_MS = 15000;
const POLL_AWAY_MS = 2000;

let known = false; // Whether the server has ever answered.

/* ---- asking ---- */

/** Asks how the server is, and goes on with what waits if it is well. */
async function check() {
  const ready = await checkServer();
  $("server").classList.toggle("away", !ready);
  setText($("server"), ready ? describe(server.model) : `${server.problem} Pictures wait, and go on when it is back.`);
  if (!ready) return false;
  const { limits, threshold } = server.model;
  setText($("limits"), `Up to ${megabytes(limits.max_bytes)} MB and ${Math.round(limits.max_pixels / 1e6)} megapixels each.`);
  if (!known) $("threshold").value = String(threshold);
  known = true;
  applyThreshold();
  pump();
  return true;
}

async function poll() {
  if (!document.hidden) await check();
  setTimeout(poll, server.problem ? POLL_AWAY_MS : POLL_READY_MS);
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
    if (pictures.filter(({ state }) => state === "asking").length >= AT_ONCE) return;
    if (!server.problem && picture.state === "waiting") ask(picture);
  }
}

async function ask(picture) {
  setState(picture, "asking");
  try {
    const { entry, ...more } = await detect(picture.file);
    setState(picture, "done", { ...more, entry: { ...entry, image: picture.name } });
  } catch (error) {
    if (error instanceof Away && !(await check())) setState(picture, "waiting");
    else if (error.retryAfterMs) setTimeout(() => setState(picture, "waiting"), error.retryAfterMs);
    else setState(picture, "failed", { error: error.message });
  }
}

function setState(picture, state, more = {}) {
  Object.assign(picture, more, { state });
  update(picture);
  pump();
}

/* ---- pictures come in ---- */

function add(files) {
  const room = MOST - pictures.length;
  setMessage(files.length > room ? `The page holds ${MOST} pictures: clear it before you add more.` : "");
  const news = [...files].slice(0, Math.max(0, room));
  for (const file of news) {
    const picture = { name: file.name || "picture", file, url: URL.createObjectURL(file), state: "waiting" };
    pictures.push(picture);
    addThumbnail(picture);
  }
  if (news.length) show(pictures.at(-news.length));
  pump();
}

function addThumbnail(picture) {
  const image = element("img", { src: picture.url, alt: "" });
  image.addEventListener("error", () => (image.style.visibility = "hidden"));
  picture.button = element("button", { type: "button" }, image, element("span", { textContent: picture.name }), element("span"));
  picture.button.addEventListener("click", () => show(picture));
  $("pictures").append(element("li", {}, picture.button));
  $("strip").hidden = pictures.length < 2;
  $("clear").hidden = false;
}

function clear() {
  for (const { url, drawn } of pictures.splice(0)) [url, drawn].forEach((one) => one && URL.revokeObjectURL(one));
  $("pictures").replaceChildren();
  $("strip").hidden = $("clear").hidden = true;
  show(null);
  setMessage("");
  $("choose").focus();
}

function drop(event) {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const { files } = event.dataTransfer;
  if (files.length) add(files);
  else setMessage("That is no file. Save the picture first: this server fetches nothing from other places.");
}

function paste(event) {
  const { files } = event.clipboardData;
  if (files.length) add(files);
}

function setMessage(text) {
  $("message").hidden = !text;
  setText($("message"), text);
}

/* ---- the camera ---- */

async function openCamera() {
  setMessage("");
  // Browsers lend it to secure addresses alone; a phone's own camera program needs none.
  if (!navigator.mediaDevices) return $("snapshot").click();
  const video = { facingMode: "environment", width: { ideal: 1920 } };
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video });
    $("viewfinder").showModal();
  } catch (error) {
    setMessage(`The camera cannot be used: ${error.message}.`);
  }
}

function closeCamera() {
  for (const track of $("video").srcObject?.getTracks() || []) track.stop();
  $("video").srcObject = null;
}

function shoot() {
  const { videoWidth: width, videoHeight: height } = $("video");
  if (!width) return; // No frame yet.
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  const name = `camera-${pictures.length + 1}.jpg`;
  canvas.toBlob((blob) => add([new File([blob], name, { type: blob.type })]), "image/jpeg", 0.95);
  $("viewfinder").close();
}

for (const input of [$("files"), $("snapshot")]) {
  input.addEventListener("change", () => {
    add([...input.files]);
    input.value = "";
  });
}
for (const [id, type, handler] of [
  ["choose", "click", () => $("files").click()],
  ["camera", "click", openCamera],
  ["clear", "click", clear],
  ["shoot", "click", shoot],
  ["close", "click", () => $("viewfinder").close()],
  ["viewfinder", "close", closeCamera],
  ["download", "click", download],
  ["threshold", "input", applyThreshold],
  ["rows", "keydown", onRowKey],
  ["picture", "load", onPictureLoaded],
  ["picture", "error", onUnreadable],
]) {
  $(id).addEventListener(type, handler);
}
document.addEventListener("paste", paste);
document.addEventListener("drop", drop);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
document.addEventListener("visibilitychange", () => document.hidden || check());
poll();

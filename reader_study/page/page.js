"use strict";
// The page of one rater. What was rated is known to the server alone: a reload at any moment loses at most the answers
// to the image on the screen.

const $ = (id) => document.getElementById(id);
const form = $("rating"), stage = $("stage"), canvas = $("view");
// What the page of this design asks: name -> words.
const ASKED = Object.fromEntries([...form.querySelectorAll("fieldset[data-question]")].map(
  (set) => [set.dataset.question, set.querySelector("legend").textContent]));
const QUESTIONS = Object.keys(ASKED);
const KEYS = QUESTIONS.includes("chosen")  // key -> [question, value], whichever question is highlighted
  ? { 1: ["chosen", "left"], 2: ["chosen", "right"] }
  : { r: ["verdict", "real"], s: ["verdict", "synthetic"] };
const NEUTRAL = { width: 256, level: 128, zoom: 1, x: 0, y: 0, invert: false };  // x, y: of the centre, in image pixels

let state = null;      // the server's: done, total, position, image (of a pair LEFT-RIGHT), next
let view = { ...NEUTRAL };  // of both images of a pair
let slices = null;     // {grey, width, height} of each image on the screen
let shown = 0, earlier = 0;  // when the image came up, and the ms that it was looked at before a pause
let active = QUESTIONS[0];
let saving = false;
const loading = new Map();

// The server ------------------------------------------------------------------------------------------------------

async function ask(path, body) {
  let reply, answer;
  try {
    reply = await fetch(path, body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    answer = await reply.json();
  } catch {
    throw new Error("The server does not answer. Your answers are still here: try again in a moment.");
  }
  if (!reply.ok) throw new Error(typeof answer.detail === "string" ? answer.detail : "This answer is not accepted.");
  return answer;
}

async function picture(name) {
  const image = new Image();
  image.src = `images/${name}`;
  await image.decode();
  const sheet = new OffscreenCanvas(image.width, image.height), pen = sheet.getContext("2d");
  pen.drawImage(image, 0, 0);
  const { data } = pen.getImageData(0, 0, image.width, image.height);
  return { grey: data.filter((_, i) => i % 4 === 0), width: image.width, height: image.height };
}

function load(name) {
  if (!loading.has(name)) {
    const ready = Promise.all(name.split("-").map(picture));
    ready.catch(() => loading.delete(name));
    loading.set(name, ready);
  }
  return loading.get(name);
}

async function show(next, answers) {
  state = next;
  $("sign-in").hidden = state.pseudonym !== null;
  const finished = state.pseudonym !== null && state.position === null;
  $("finished").hidden = !finished;
  $("study").hidden = state.pseudonym === null || finished;
  if (state.pseudonym === null) return $("pseudonym").focus();
  if (finished) { $("finished-total").textContent = state.total; return; }
  $("progress").textContent = `${$("progress").dataset.trial} ${state.position + 1} of ${state.total}`;
  $("who").textContent = state.pseudonym;
  $("bar").value = state.done;
  $("undo").disabled = state.done === 0;
  say("");
  fill(answers);
  view = { ...NEUTRAL };
  slices = null;
  draw();
  const name = state.image;
  try {
    const loaded = await load(name);
    if (state.image !== name) return;
    slices = loaded;
  } catch {
    return say("The image cannot be loaded; reload the page.");
  }
  draw();
  canvas.dataset.image = name;
  shown = performance.now();
  for (const old of loading.keys()) if (old !== name) loading.delete(old);
  if (state.next) load(state.next).catch(() => {});
}

// The answers ------------------------------------------------------------------------------------------------------

const say = (text) => { $("message").textContent = text; };
const answer = (name) => form.querySelector(`input[name=${name}]:checked`)?.value;

function fill(answers) {
  form.reset();
  earlier = 0;
  if (answers) {
    for (const name of QUESTIONS) choose(name, answers[name]);
    for (const box of tags()) box.checked = answers.tags.includes(box.value);
    $("comment").value = answers.comment;
    earlier = answers.seconds * 1000;
  }
  document.activeElement?.blur();
  activate(QUESTIONS[0]);
}

function activate(name) {
  active = name;
  for (const set of form.querySelectorAll("fieldset[data-question]"))
    set.classList.toggle("active", set.dataset.question === name);
}

function choose(name, value) {
  form.querySelector(`input[name=${name}][value="${value}"]`).checked = true;
}

function answered(name) {
  say("");
  activate(QUESTIONS.find((question) => !answer(question)) ?? name);
}

const tags = () => [...form.querySelectorAll("input[name=tag]")];

const looked = () => earlier + (slices && !$("paused").open ? performance.now() - shown : 0);

async function save() {
  if (saving || !state || state.position === null) return;
  const missing = QUESTIONS.find((name) => !answer(name));
  if (!slices) return say("Wait for the image.");
  if (missing) {
    activate(missing);
    return say(ASKED[missing]);
  }
  const given = Object.fromEntries(QUESTIONS.map((name) => [name, /^\d$/.test(answer(name)) ? Number(answer(name)) : answer(name)]));
  if (tags().length) given.tags = tags().filter((box) => box.checked).map((box) => box.value);
  await once(async () => show(await ask("ratings", {
    position: state.position,
    image: state.image,
    ...given,
    seconds: Math.min(86400, Math.round(looked() / 100) / 10),
    comment: $("comment").value,
  })));
}

async function undo() {
  if (!state || !state.done) return;
  await once(async () => {
    const back = await ask("undo", { done: state.done });
    await show(back, back.answers);
  });
}

async function once(action) {  // a second key press while the first is being saved does nothing
  if (saving) return;
  saving = true;
  $("save").disabled = true;
  try { await action(); } catch (error) { say(error.message); }
  saving = false;
  $("save").disabled = false;
}

function pause() {
  if ($("study").hidden) return;
  earlier = looked();
  $("paused-progress").textContent = `${state.done} of ${state.total} rated.`;
  $("paused").showModal();
  draw();  // nothing: a pause is no time to look
}

function resume() {
  $("paused").close();
  shown = performance.now();
  draw();
}

// The image --------------------------------------------------------------------------------------------------------

const panel = () => canvas.width / (slices?.length ?? 1);  // the width that each image has, in screen pixels

function scale() {  // screen pixels an image pixel
  return slices ? view.zoom * Math.min(panel() / slices[0].width, canvas.height / slices[0].height) : 1;
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(stage.clientWidth * ratio);  // clears it, too
  canvas.height = Math.round(stage.clientHeight * ratio);
  if (!slices || $("paused").open) return;
  const low = view.level - view.width / 2;
  const table = Uint8ClampedArray.from({ length: 256 }, (_, v) => {
    const grey = Math.min(255, Math.max(0, ((v - low) / view.width) * 255));
    return view.invert ? 255 - grey : grey;
  });
  slices.forEach((slice, place) => paint(slice, table, place * panel()));
  $("view-state").textContent =
    `window ${Math.round(view.width)}  level ${Math.round(view.level)}  zoom ${view.zoom.toFixed(1)}×`;
}

function paint(slice, table, left) {  // within its own panel, which begins at `left`
  const pixels = new ImageData(slice.width, slice.height);
  for (let i = 0; i < slice.grey.length; i++) {
    const grey = table[slice.grey[i]];
    pixels.data.set([grey, grey, grey, 255], 4 * i);
  }
  const sheet = new OffscreenCanvas(slice.width, slice.height), pen = canvas.getContext("2d");
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  const factor = scale(), gap = slices.length > 1 ? 2 : 0;
  pen.save();
  pen.beginPath();
  pen.rect(left + gap, 0, panel() - 2 * gap, canvas.height);
  pen.clip();
  pen.imageSmoothingQuality = "high";
  pen.setTransform(factor, 0, 0, factor, left + panel() / 2 - view.x * factor, canvas.height / 2 - view.y * factor);
  pen.drawImage(sheet, -slice.width / 2, -slice.height / 2);
  pen.restore();
}

let planned = false;
function change(next) {
  Object.assign(view, next);
  view.width = Math.min(512, Math.max(8, view.width));
  view.level = Math.min(255, Math.max(0, view.level));
  view.zoom = Math.min(12, Math.max(1, view.zoom));
  const room = slices ? (slices[0].width / 2) * (1 - 0.6 / view.zoom) : 0;  // some of the image stays in sight
  view.x = Math.min(room, Math.max(-room, view.x));
  view.y = Math.min(room, Math.max(-room, view.y));
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => { planned = false; draw(); });
}

function zoom(by, clientX, clientY) {  // what is under the pointer stays there
  const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width, before = scale();
  const across = ((clientX ?? box.x + panel() / ratio / 2) - box.x) * ratio;
  const dx = across % panel() - panel() / 2;  // from the middle of the image that it is in
  const dy = ((clientY ?? box.y + box.height / 2) - box.y - box.height / 2) * ratio;
  const after = before * Math.min(12, Math.max(1, view.zoom * by)) / view.zoom;
  change({ zoom: view.zoom * by, x: view.x + dx / before - dx / after, y: view.y + dy / before - dy / after });
}

function move(dx, dy) {  // by CSS pixels
  const ratio = canvas.width / canvas.getBoundingClientRect().width;
  change({ x: view.x - dx * ratio / scale(), y: view.y - dy * ratio / scale() });
}

const fingers = new Map();
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
  document.activeElement?.blur();
});
canvas.addEventListener("pointermove", (event) => {
  const last = fingers.get(event.pointerId);
  if (!last) return;
  const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
  if (fingers.size === 2) {
    const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    const span = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
    move(dx / 2, dy / 2);
    if (span(last) > 0) zoom(span(event) / span(last), (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
  } else if (event.buttons & 6 || event.shiftKey) {
    move(dx, dy);
  } else {
    change({ width: view.width + dx, level: view.level + dy / 2 });  // right: wider; down: a higher level, so darker
  }
  fingers.set(event.pointerId, event);
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
}, { passive: false });
canvas.addEventListener("dblclick", () => change(NEUTRAL));
new ResizeObserver(draw).observe(stage);

// Keys and buttons -------------------------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if ($("keys").open) return key === "?" ? $("keys").close() : undefined;
  if ($("paused").open) {
    if (key === "escape" || key === "p") { event.preventDefault(); resume(); }
    return;
  }
  if (!$("finished").hidden) return key === "u" ? undo() : undefined;
  if ($("study").hidden) return;
  if (document.activeElement === $("comment")) {
    if (key === "escape") document.activeElement.blur();
    return;
  }
  const on = document.activeElement;
  if (["Enter", " "].includes(event.key) && (on instanceof HTMLButtonElement || on instanceof HTMLAnchorElement)) return;
  if (event.key in ARROWS) {
    if (on?.type === "radio") return;  // whoever came by Tab chooses with arrows, as in any form
    const [dx, dy] = ARROWS[event.key];
    event.shiftKey ? move(-40 * dx, -40 * dy) : change({ width: view.width + 8 * dx, level: view.level + 4 * dy });
  } else if (key in KEYS) {
    choose(...KEYS[key]);
    answered(KEYS[key][0]);
  } else if (/^[1-5]$/.test(key) && form.querySelector(`input[name=${active}][value="${key}"]`)) {
    choose(active, key);
    answered(active);
  } else if (key === "enter") { if (!event.repeat) save(); }
  else if (key === "u" || key === "backspace") { if (!event.repeat) undo(); }
  else if (key === "p") pause();
  else if (key === "?") $("keys").showModal();
  else if (key === "c") $("comment").focus();
  else if (key === "0") change(NEUTRAL);
  else if (key === "n") change({ invert: !view.invert });
  else if (key === "+" || key === "=") zoom(1.25);
  else if (key === "-") zoom(0.8);
  else {
    const box = form.querySelector(`input[data-key="${CSS.escape(key)}"]`);
    if (!box) return;
    box.checked = !box.checked;
  }
  event.preventDefault();
});

form.addEventListener("submit", (event) => { event.preventDefault(); save(); });
form.addEventListener("focusin", (event) => {
  const question = event.target.closest("fieldset")?.dataset.question;
  if (question && event.target.matches(":focus-visible")) activate(question);
});
form.addEventListener("change", (event) => { if (QUESTIONS.includes(event.target.name)) answered(event.target.name); });
form.addEventListener("click", (event) => {  // a focus that a click leaves behind would take the next keys
  if (event.detail > 0 && event.target.id !== "comment") event.target.closest("label, button") && document.activeElement?.blur();
});
$("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await show(await ask("sign-in", { pseudonym: $("pseudonym").value }));
  } catch (error) { $("sign-in-message").textContent = error.message; }
});
$("undo").addEventListener("click", undo);
$("finished-undo").addEventListener("click", undo);
$("pause").addEventListener("click", pause);
$("resume").addEventListener("click", resume);
$("paused").addEventListener("cancel", (event) => { event.preventDefault(); });
$("help").addEventListener("click", () => $("keys").showModal());
$("keys-close").addEventListener("click", () => $("keys").close());
$("reset").addEventListener("click", (event) => { change(NEUTRAL); event.currentTarget.blur(); });
$("invert").addEventListener("click", (event) => { change({ invert: !view.invert }); event.currentTarget.blur(); });

ask("state").then((first) => show(first)).catch((error) => { document.body.prepend(error.message); });

"use strict";
// What is drawn is known to the page alone: it keeps the last eight slices, and asks for others.

const $ = (id) => document.getElementById(id);
const form = $("form"), field = form.elements;

function asked() {
  const level = field.level.value;
  return {
    contrast: field.contrast.value, plane: field.plane.value, label: field.label.value,
    level: level === "" ? null : Number(level), seed: Number(field.seed.value), steps: Number(field.steps.value),
  };
}

async function ask(body) {
  let reply, answer;
  try {
    reply = await fetch("/draw", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    answer = await reply.json();
  } catch {
    throw new Error("Nothing answers: is `synthmri demo` still running?");
  }
  if (!reply.ok) throw new Error(typeof answer.detail === "string" ? answer.detail : "This cannot be drawn.");
  return answer;
}

function shown(slice, prompt) {
  const figure = document.createElement("figure"), image = new Image(), caption = document.createElement("figcaption");
  const verdict = document.createElement("strong");
  const why = [slice.alike && "too like a training slice", slice.implausible && "implausible"].filter(Boolean);
  figure.classList.toggle("stopped", why.length > 0);
  image.src = $("outlines").checked && slice.outlined || slice.picture;
  image.alt = `Synthetic slice, seed ${slice.seed}: ${prompt}`;
  verdict.textContent = why.length ? `✗ ${why.join(", ")}` : "✓ passes";
  const lesions = slice.lesions === undefined ? "" : `, ${slice.lesions || "no"} lesion${slice.lesions === 1 ? "" : "s"}`;
  caption.append(`seed ${slice.seed}, likeness ${slice.likeness.toFixed(3)}${lesions}`, document.createElement("br"), verdict);
  figure.append(image, caption);
  return figure;
}

let last = { prompt: "", slices: [] };

function show() {
  $("choice").hidden = !last.slices.some((slice) => slice.outlined);
  $("slices").replaceChildren(...last.slices.map((slice) => shown(slice, last.prompt)));
}

async function draw() {
  if (!form.reportValidity()) return;
  for (const button of form.querySelectorAll("button")) button.disabled = true;
  $("message").textContent = "";
  $("status").textContent = "Drawing …";
  try {
    last = await ask(asked());
    show();
    const { prompt, slices } = last;
    const passed = slices.filter((slice) => !slice.alike && !slice.implausible).length;
    $("status").textContent = `“${prompt}”: ${passed} of ${slices.length} pass.`;
  } catch (error) {
    $("status").textContent = "";
    $("message").textContent = error.message;
  }
  for (const button of form.querySelectorAll("button")) button.disabled = false;
}

$("outlines").addEventListener("change", show);
form.addEventListener("submit", (event) => { event.preventDefault(); draw(); });
$("next").addEventListener("click", () => { field.seed.value = Number(field.seed.value) + 8; draw(); });

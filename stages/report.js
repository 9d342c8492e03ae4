"use strict";
// One point of the training at a time. Without this script, and in print, all of them stand one below the other.
const slider = document.getElementById("point");
const points = [...document.querySelectorAll(".point")];

function show() {
  points.forEach((point, i) => point.classList.toggle("away", i !== Number(slider.value)));
  const words = points[slider.value].querySelector("figcaption").textContent.trim();
  slider.setAttribute("aria-valuetext", words.replace(/\s+/g, " "));
}

if (points.length > 1) {
  slider.max = points.length - 1;
  const kept = points.findIndex((point) => point.classList.contains("kept"));
  slider.value = kept < 0 ? slider.max : kept;
  document.getElementById("player").hidden = false;
  slider.addEventListener("input", show);
  show();
}

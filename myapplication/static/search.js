// Shows each search in its own card on this page, so that several searches can run at the same time.
// Without this script the form loads the result as a new page; the cards are taken from the same pages.
"use strict";

const form = document.getElementById("search");
const results = document.getElementById("results");
const announcement = document.getElementById("announcement");

function copyOf(templateId) {
  return document.getElementById(templateId).content.firstElementChild.cloneNode(true);
}

function duration(milliseconds) {
  return milliseconds < 1000 ? milliseconds.toFixed(0) + " ms" : (milliseconds / 1000).toFixed(2) + " s";
}

// Shows and sends only the fields that the chosen report uses.
function showFieldsOfReport() {
  const chosen = form.querySelector("input[name=report]:checked");
  const used = chosen ? chosen.dataset.uses.split(" ") : [];
  for (const label of form.querySelectorAll("[data-for]")) {
    label.hidden = !used.includes(label.dataset.for);
    label.querySelector("input, select").disabled = label.hidden;
  }
}

function addCloseButton(card, whenClosed) {
  const button = copyOf("close");
  button.addEventListener("click", () => {
    whenClosed();
    card.remove();
    form.querySelector("button").focus();
  });
  card.append(button);
}

function failedCard(title, message) {
  const card = copyOf("failed");
  card.querySelector("h2").textContent = title;
  card.querySelector(".message").textContent = message;
  return card;
}

async function fetchCard(url, title, signal) {
  let response, text;
  try {
    response = await fetch(url, { headers: { Accept: "text/html" }, signal });
    text = await response.text();
  } catch {
    return failedCard(title, "The server cannot be reached. Is your network connected?");
  }
  const card = new DOMParser().parseFromString(text, "text/html").querySelector("#results .card");
  if (card) {
    return document.adoptNode(card);
  }
  return failedCard(title, `The server could not answer (${response.status}). Please try again in a moment.`);
}

async function search() {
  const parameters = new URLSearchParams(new FormData(form));
  const title = form.querySelector("input[name=report]:checked ~ .title").textContent;
  const started = performance.now();
  const cancellation = new AbortController();

  const running = copyOf("running");
  running.querySelector("h2").textContent = title;
  for (const [name, value] of parameters) {
    if (name !== "report" && value) {
      const chip = document.createElement("span");
      const shown = document.createElement("b");
      shown.textContent = value;
      chip.append(name + " ", shown);
      running.querySelector(".chosen").append(chip);
    }
  }
  addCloseButton(running, () => cancellation.abort());
  const stopwatch = running.querySelector(".stopwatch");
  const ticking = setInterval(() => {
    stopwatch.textContent = ((performance.now() - started) / 1000).toFixed(1) + " s";
  }, 100);
  results.querySelector(".welcome")?.remove();
  results.prepend(running);
  // The card may be out of sight: above the visible part, or on a phone below the form.
  const top = running.getBoundingClientRect().top;
  if (top < 0 || top > window.innerHeight / 2) {
    running.scrollIntoView({ block: "start" });
  }

  const card = await fetchCard(form.action + "?" + parameters, title, cancellation.signal);
  clearInterval(ticking);
  if (cancellation.signal.aborted) {
    return;
  }
  // On a separate page an error is an alert; here the announcement reports it.
  card.removeAttribute("role");
  card.removeAttribute("id");
  const facts = card.querySelector(".facts");
  if (facts) {
    const waited = document.createElement("span");
    waited.className = "waited";
    waited.textContent = ` (answered after ${duration(performance.now() - started)})`;
    facts.append(waited);
  }
  const focusWasInside = running.contains(document.activeElement);
  addCloseButton(card, () => {});
  // The card grows downwards if it is in sight; otherwise it must not move what the user is reading.
  results.classList.toggle("growing-down", running.getBoundingClientRect().top >= 0);
  running.replaceWith(card);
  if (focusWasInside) {
    card.querySelector(".close").focus();
  }
  announcement.textContent = title + ": " + (facts ?? card.querySelector(".message")).textContent;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
form.addEventListener("change", showFieldsOfReport);
// The browser may restore an earlier choice without a change event.
window.addEventListener("pageshow", showFieldsOfReport);
showFieldsOfReport();
for (const card of results.querySelectorAll(".card")) {
  addCloseButton(card, () => {});
}
for (const element of document.querySelectorAll("[data-script-only]")) {
  element.hidden = false;
}

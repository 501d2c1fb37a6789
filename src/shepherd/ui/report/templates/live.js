"use strict";
// Ask whether <main> has changed; swap it, and leave the reader where they were.
const EVERY = 2000;
const main = document.getElementById("report");
const live = document.getElementById("live");
let tag = main.dataset.tag;

function place() {
  const seen = [...main.querySelectorAll("[id]")]
    .find((e) => e.checkVisibility() && e.getBoundingClientRect().bottom > 0);
  return {
    id: seen?.id,
    top: seen?.getBoundingClientRect().top,
    focus: document.activeElement?.id,
    open: [...main.querySelectorAll("details[open]")].map((e) => e.id),
    boxes: [...main.querySelectorAll(".box")].map((e) => [e.id, e.scrollLeft, e.scrollTop]),
  };
}

function restore(was) {
  for (const id of was.open) document.getElementById(id)?.setAttribute("open", "");
  for (const [id, left, top] of was.boxes) document.getElementById(id)?.scrollTo(left, top);
  if (was.focus) document.getElementById(was.focus)?.focus({ preventScroll: true });
  const seen = was.id && document.getElementById(was.id);
  if (seen) scrollBy({ top: seen.getBoundingClientRect().top - was.top, behavior: "instant" });
}

function tell(words) {
  if (live.textContent !== words) live.textContent = words;
}

async function look() {
  try {
    const answer = await fetch("/main", { headers: { "If-None-Match": tag }, cache: "no-store" });
    if (answer.status === 200 && getSelection().isCollapsed) {
      const html = await answer.text();
      const was = place();
      main.innerHTML = html;
      restore(was);
      tag = answer.headers.get("ETag");
    }
    tell("Live: the page follows the run.");
  } catch {
    tell("Not live: the server does not answer. The page shows the last known state.");
  }
  setTimeout(look, EVERY);
}

look();

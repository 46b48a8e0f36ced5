/** How long the user waited for a reply, split by stage: a small bar, and the numbers below it. */

/** In the order in which they pass; the key is the one of the server's `turn-latency` message. */
const STAGES = [
  ["endpointing_ms", "Endpointing", "silence that shows that you paused"],
  ["final_transcript_ms", "Transcript", "the last words are recognised"],
  ["turn_decision_ms", "Turn decision", "you are taken to have finished"],
  ["first_token_ms", "First token", "the language model begins its answer"],
  ["first_audio_ms", "First audio", "the first sentence is synthesised"],
];
const REST = ["rest_ms", "Rest", "everything between the stages"];
const SHOWN_REST_MS = 5; // less is rounding

const number = new Intl.NumberFormat("en");
const inWords = (ms) => `${number.format(Math.round(ms))} ms`;

/** @param {{turn: number, total_ms: number, stages: Object<string, number>}} data @returns {HTMLDetailsElement} */
export function latencyBar({ turn, total_ms: total, stages }) {
  const rows = STAGES.filter(([key]) => stages[key] > 0).map((stage) => [...stage, stages[stage[0]]]);
  const rest = total - rows.reduce((sum, row) => sum + row[3], 0);
  if (rest >= SHOWN_REST_MS) rows.push([...REST, rest]);

  const details = document.createElement("details");
  details.className = "latency";
  details.open = true;
  const summary = document.createElement("summary");
  summary.setAttribute("aria-label", `Turn ${turn}: answered after ${inWords(total)}`);
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.style.setProperty("--total", total);
  const sum = document.createElement("span");
  sum.className = "total";
  sum.textContent = inWords(total);
  const list = document.createElement("dl");
  for (const [key, name, meaning, ms] of rows) {
    const part = document.createElement("span");
    part.className = "part";
    part.dataset.stage = key;
    part.style.flexGrow = ms;
    bar.append(part);
    const row = document.createElement("div");
    row.title = meaning;
    row.dataset.stage = key;
    const term = document.createElement("dt");
    term.textContent = name;
    const value = document.createElement("dd");
    value.textContent = number.format(Math.round(ms));
    row.append(term, value);
    list.append(row);
  }
  summary.append(bar, sum);
  details.append(summary, list);
  return details;
}

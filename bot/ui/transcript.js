/**
 * The conversation on the page. It follows RTVI 2.2: the user's words arrive as interim and final transcriptions, the
 * assistant's as `bot-output` segments whose `spoken_progress` tells how much was heard. Only that is shown.
 */
import { latencyBar } from "./latency.js";

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

const joined = (parts) => parts.map((part) => part.trim()).filter(Boolean).join(" ");

/** One thing that one side said: an item of the list. */
class Turn {
  constructor(list, role) {
    this.role = role;
    this.item = element("li", `turn ${role}`);
    this.item.append(element("span", "visually-hidden", role === "user" ? "You: " : "Assistant: "));
    this.said = element("p", "said");
    this.text = element("span", "text");
    this.said.append(this.text);
    this.item.append(this.said);
    list.append(this.item);
  }
}

class UserTurn extends Turn {
  finals = [];
  ended = false;

  constructor(list) {
    super(list, "user");
    this.tail = element("span", "interim");
    this.said.append(this.tail);
  }

  show(interim = "") {
    this.text.textContent = joined(this.finals);
    this.tail.textContent = interim && this.finals.length ? ` ${interim}` : interim;
    this.item.classList.toggle("unfinished", Boolean(interim));
  }

  get words() {
    return joined(this.finals);
  }

  /** Whether the last words are not final yet. */
  get unfinished() {
    return this.tail.textContent !== "";
  }
}

class BotTurn extends Turn {
  #segments = new Map(); // segment id -> the words of it that were heard
  #shown = "";

  constructor(list) {
    super(list, "assistant");
  }

  /** Shows the words heard so far; new ones come as their own elements, so that they can fade in. */
  hear(segmentId, heard) {
    this.#segments.set(segmentId, heard);
    const words = this.words;
    if (words.startsWith(this.#shown)) this.text.append(element("span", "heard", words.slice(this.#shown.length)));
    else this.text.textContent = words;
    this.#shown = words;
  }

  get words() {
    return joined([...this.#segments.values()]);
  }

  get speaking() {
    return this.item.classList.contains("unfinished");
  }

  set speaking(speaking) {
    this.item.classList.toggle("unfinished", speaking);
  }

  end() {
    this.speaking = false;
    this.text.textContent = this.words;
  }

  cut(label) {
    this.said.append(" ", element("span", "cut", label));
    this.end();
  }
}

export class Transcript extends EventTarget {
  #list;
  #announce;
  #user = null;
  #bot = null;
  #cut = null; // the reply that was cut off, until the bot has stopped
  #latency = null; // data of a turn whose reply is not on the page yet
  #slowest = 1_000; // ms; the full width of a latency bar

  /** @param {HTMLOListElement} list @param {(text: string) => void} announce says a sentence to screen readers */
  constructor(list, announce) {
    super();
    this.#list = list;
    this.#announce = announce;
  }

  get empty() {
    return !this.#list.childElementCount;
  }

  clear() {
    this.#list.replaceChildren();
    this.#user = this.#bot = this.#cut = this.#latency = null;
    this.#changed();
  }

  /** Shows an earlier conversation: messages `{role, text}`. */
  restore(messages) {
    this.clear();
    for (const { role, text } of messages) {
      const turn = role === "user" ? new UserTurn(this.#list) : new BotTurn(this.#list);
      turn.text.textContent = text;
    }
    this.#changed();
  }

  /** A line between turns, such as "The server has forgotten ...". */
  note(sentence) {
    this.hangUp();
    this.#list.append(element("li", "note", sentence));
    this.#changed();
  }

  userSaid(text, final) {
    const late = final && this.#user?.unfinished; // the last words of a turn that is over
    const continues = this.#user && (!this.#user.ended || late);
    if (!continues) {
      if (!text.trim()) return;
      this.#dropEmptyUser();
      this.#user = new UserTurn(this.#list);
    }
    if (final && text.trim()) {
      this.#user.finals.push(text);
      this.#announce(`You: ${text}`);
    }
    this.#user.show(final ? "" : text);
    this.#changed();
  }

  /** The words said last were a backchannel ("mm-hm"): they were heard, and are no turn. */
  userBackchannel(text) {
    const turn = this.#user ?? new UserTurn(this.#list);
    if (!turn.words) turn.finals.push(text);
    turn.show();
    turn.item.classList.add("backchannel");
    this.#user = null;
    this.#changed();
  }

  /** The user's turn is over: what the assistant says next is a new reply. Tells whether anything was understood. */
  userEnded() {
    if (this.#user) this.#user.ended = true;
    return Boolean(this.#user?.words);
  }

  botOutput({ segment_id, text, spoken_progress, will_be_spoken }) {
    const heard = will_be_spoken === false ? text : (spoken_progress?.accumulated_text ?? "");
    if (!heard.trim()) return;
    if (this.#cut) return this.#hearLate(segment_id, heard);
    if (this.#unanswered) this.#endReply();
    if (!this.#bot) {
      if (this.#user?.ended) this.#dropEmptyUser();
      this.#bot = new BotTurn(this.#list);
      this.#showLatency();
    }
    this.#bot.hear(segment_id, heard);
    this.#bot.speaking = true;
    this.#changed();
  }

  botStopped() {
    this.#cut = null;
    if (!this.#bot) return;
    this.#bot.speaking = false;
    this.#announce(`Assistant: ${this.#bot.words}`);
  }

  /** The reply was cut off. @param {string} label who did it, in a word */
  botInterrupted(label) {
    if (this.#bot && !this.#unanswered) {
      if (this.#bot.speaking) this.#cut = this.#bot;
      this.#bot.cut(label);
      this.#announce(`Assistant, ${label}: ${this.#bot.words}`);
    }
    this.#endReply();
    this.#changed();
  }

  /** The assistant begins to speak: what comes now is no late word of a reply that was cut off. */
  botStarted() {
    this.#cut = null;
  }

  /** How long the user waited for the reply that is spoken now, or that comes next. */
  latency(data) {
    this.#latency = data;
    this.#showLatency();
  }

  /** The line is gone: nothing that was begun goes on. */
  hangUp() {
    this.#dropEmptyUser();
    this.#endReply();
    this.#cut = this.#latency = null;
    this.#changed();
  }

  /** A word that was sounding when its reply was cut off; the news of it may come after the news of the cut. */
  #hearLate(segmentId, heard) {
    this.#cut.hear(segmentId, heard);
    this.#cut.end();
    this.#changed();
  }

  /** The user's last turn is over, and nothing of the reply was heard yet. */
  get #unanswered() {
    return Boolean(this.#user?.ended && this.#user.words);
  }

  #showLatency() {
    if (!this.#bot || !this.#latency || this.#unanswered) return;
    this.#slowest = Math.max(this.#slowest, this.#latency.total_ms);
    this.#list.style.setProperty("--slowest", this.#slowest);
    for (const older of this.#list.querySelectorAll("details.latency")) older.open = false;
    this.#bot.item.append(latencyBar(this.#latency));
    this.#latency = null;
    this.#changed();
  }

  #endReply() {
    this.#bot?.end();
    this.#bot = null;
  }

  #dropEmptyUser() {
    if (!this.#user) return;
    if (this.#user.words) this.#user.show();
    else this.#user.item.remove();
    this.#user = null;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

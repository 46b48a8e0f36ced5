/**
 * A call to the bot: the microphone, and a line that is opened again when it breaks, until the user hangs up. The
 * server keeps the conversation under the session's id.
 *
 * Events: `phase` (detail {phase, sentence}), `message` (detail: the RTVI message), `streams` (detail {local, remote}),
 * `session` (detail: the session's id), `ended` (detail: a Problem, or null when the user hung up).
 */
import { Problem } from "./api.js";
import { Line } from "./line.js";

const RETRY_MS = [500, 1_000, 2_000, 4_000, 8_000]; // pauses between attempts; the last one for all further ones
const AUDIO = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };

const MICROPHONE_PROBLEMS = {
  NotAllowedError:
    "The microphone is blocked for this page. Allow it in the browser’s address bar, then connect again.",
  NotFoundError: "No microphone was found. Plug one in, then connect again.",
  NotReadableError: "The microphone cannot be opened; another program may be using it.",
};
const MICROPHONE_GONE = "The microphone went away. Plug it in, then connect again.";
const INSECURE =
  "Browsers allow the microphone only over https or on localhost. Open this page over https, or on the server itself.";

/** Why this page cannot use a microphone at all, or null. */
export function originProblem() {
  return window.isSecureContext && navigator.mediaDevices ? null : new Problem(INSECURE);
}

async function openMicrophone() {
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: AUDIO });
  } catch (error) {
    throw new Problem(MICROPHONE_PROBLEMS[error.name] ?? `The microphone cannot be opened (${error.message}).`);
  }
}

/** Resolves after `ms`, or at once when the signal aborts or the network returns. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    window.addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}

export class Connection extends EventTarget {
  /** The conversation to take up; null begins one. */
  session = null;
  /** @type {RTCIceServer[]} */
  iceServers = [];
  #choices;
  #microphone = null;
  #line = null;
  #call = null; // AbortController of the whole call
  #muted = false;

  /** @param {() => {voice: string, language: string}} choices what the user has chosen */
  constructor(choices) {
    super();
    this.#choices = choices;
  }

  get active() {
    return this.#call !== null;
  }

  get muted() {
    return this.#muted;
  }

  set muted(muted) {
    this.#muted = muted;
    for (const track of this.#microphone?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  /** Calls the bot. Resolves when the bot is ready or the attempt has ended; never throws. */
  async connect() {
    const call = (this.#call = new AbortController());
    try {
      this.#enter("microphone");
      const microphone = await openMicrophone();
      if (call.signal.aborted) return stop(microphone);
      this.#microphone = microphone;
      microphone.getAudioTracks()[0].onended = () => this.#end(new Problem(MICROPHONE_GONE));
      this.muted = false;
      this.#enter("connecting");
      await this.#openLine(call.signal);
    } catch (error) {
      if (!call.signal.aborted) this.#end(error);
    }
  }

  /** Hangs up. */
  disconnect() {
    this.#end(null);
  }

  /** Sends an RTVI message; without an open line it is dropped. */
  send(type, data) {
    this.#line?.send(type, data);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #enter(phase, sentence = null) {
    this.#tell("phase", { phase, sentence });
  }

  #end(problem) {
    if (!this.#call) return;
    this.#call.abort(); // closes the line
    this.#call = this.#line = null;
    if (this.#microphone) stop(this.#microphone);
    this.#microphone = null;
    this.#tell("ended", problem);
  }

  async #openLine(signal) {
    const line = new Line(this.#microphone, this.iceServers, {
      track: (remote) => this.#tell("streams", { local: this.#microphone, remote }),
      session: (id) => this.#tell("session", (this.session = id)),
      message: (message) => this.#receive(message),
      broken: (problem) => this.#recover(problem.message, signal),
    });
    this.#line = line;
    await line.open({ ...this.#choices(), session: this.session ?? undefined }, signal);
    this.#enter("connected");
  }

  #receive(message) {
    const ended = message.type === "server-message" && message.data?.type === "session-ended";
    if (ended) this.#end(new Problem(message.data.reason));
    else this.#tell("message", message);
  }

  /** The line broke: opens new ones until one works, the user hangs up, or the server wants another token. */
  async #recover(sentence, signal) {
    for (let attempt = 0; !signal.aborted; attempt += 1) {
      this.#enter("reconnecting", sentence);
      await pause(RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)], signal);
      if (signal.aborted) return;
      try {
        return await this.#openLine(signal);
      } catch (error) {
        if (error.status === 401) return this.#end(error);
        sentence = error.message;
      }
    }
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) {
    track.onended = null;
    track.stop();
  }
}

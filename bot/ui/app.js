/** The page: connects the buttons, the line to the bot, the transcript and the meters. */
import { getConfig, getHealth, getSession, hasToken, setToken } from "./api.js";
import { Connection, originProblem } from "./connection.js";
import { Meters } from "./meters.js";
import { Picker, named } from "./pickers.js";
import { Speaker } from "./speaker.js";
import { Transcript } from "./transcript.js";

const SESSION_KEY = "triton-voice.session"; // sessionStorage: this tab, also after a reload
const HEALTH_MS = 3_000;
const ANNOUNCED = 5; // last sentences that are left to a slow screen reader
const SHOWN_MS = 5_000; // an error stays at least this long
const SPOKEN_MS = 10_000; // from the end of the written reply to its first sound, at most

const STATES = {
  idle: "Not connected",
  microphone: "Waiting for the microphone",
  connecting: "Connecting",
  reconnecting: "Reconnecting",
  listening: "Listening",
  muted: "You are muted",
  user: "You are speaking",
  thinking: "Thinking",
  assistant: "Assistant is speaking",
};

const $ = (id) => document.getElementById(id);
const conversation = $("conversation");

let config = null; // the server's /api/config once it answered
let phase = "idle";
let userSpeaking = false;
let botSpeaking = false;
let thinking = false;
let preparing = false; // a click on Connect is being followed up
let replies = 0; // begun by the language model
let stopped = false; // the user pressed Stop; tells how the reply was cut
let trouble = null; // what is wrong with the server, while it is watched
let troubleSince = 0;

const transcript = new Transcript($("turns"), announce);
const voice = new Picker("voice", $("voice"), (value) => ask("set-voice", { voice: value }));
const language = new Picker("language", $("language"), (value) => ask("set-language", { language: value }));
const connection = new Connection(() => ({ voice: voice.value, language: language.value }));
const speaker = new Speaker($("speaker"));
const meters = new Meters([
  { canvas: document.querySelector("#you .meter"), towards: "left" },
  { canvas: document.querySelector("#assistant .meter"), towards: "right" },
]);

// --- what the page says ---------------------------------------------------------------------------------------------

/** Tells screen readers. */
function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  $("announcer").append(line);
  if ($("announcer").childElementCount > ANNOUNCED) $("announcer").firstElementChild.remove();
}

function show(banner, sentence) {
  banner.textContent = sentence ?? "";
  banner.hidden = !sentence;
}

/** @param {"wait" | "alarm"} kind whether it passes by itself */
function showProblem(sentence, kind = "alarm") {
  show($("problem"), sentence);
  $("problem").dataset.kind = kind;
}

function showWelcomeOrTurns() {
  $("welcome").hidden = !transcript.empty;
  $("turns").hidden = transcript.empty;
  $("start-over").hidden = transcript.empty || connection.active;
}

function able(button, yes) {
  button.setAttribute("aria-disabled", String(!yes)); // not `disabled`: the button keeps the keyboard's focus
}

function render() {
  const connected = phase === "connected";
  let state = phase;
  if (connected) {
    state = connection.muted ? "muted" : "listening";
    if (thinking) state = "thinking";
    if (botSpeaking) state = "assistant";
    if (userSpeaking) state = "user";
  }
  $("state").textContent = STATES[state];
  $("state").dataset.state = state;
  $("you").classList.toggle("speaking", connected && userSpeaking);
  $("you").classList.toggle("muted", connection.active && connection.muted);
  $("assistant").classList.toggle("speaking", connected && botSpeaking);
  const label = { idle: "Connect", connected: "Disconnect" }[phase] ?? "Cancel";
  $("connect").querySelector(".label").textContent = label;
  $("connect").classList.toggle("primary", phase === "idle");
  able($("mute"), connected);
  $("mute").querySelector(".label").textContent = connection.muted ? "Unmute" : "Mute";
  $("mute").querySelector("use").setAttribute("href", connection.muted ? "#icon-mic-off" : "#icon-mic");
  able($("stop"), connected && (thinking || botSpeaking));
  document.body.dataset.phase = phase;
  showWelcomeOrTurns();
}

function quiet() {
  userSpeaking = botSpeaking = thinking = stopped = false;
}

// --- the server, before and beside a call ---------------------------------------------------------------------------

async function loadConfig() {
  config = await getConfig(); // with the token there may be more in it
  connection.iceServers = config.ice_servers;
  voice.offer(config.voices, config.voice);
  language.offer(config.languages, config.language);
  show($("notice"), config.notice);
}

async function restore() {
  const id = sessionStorage.getItem(SESSION_KEY);
  if (!id || (config.auth && !hasToken())) return;
  try {
    transcript.restore((await getSession(id)).messages);
    connection.session = id;
  } catch (error) {
    if (error.status === 404) sessionStorage.removeItem(SESSION_KEY);
    else throw error;
  }
}

/** Looks after the server while nobody talks or something is wrong; never during a healthy call. */
async function watch() {
  if (!document.hidden && (phase === "idle" || (phase === "connected" && trouble))) {
    try {
      if (!config) {
        await loadConfig();
        await restore();
      }
      const { status, models } = await getHealth();
      const names = Object.keys(models).filter((name) => !models[name]).join(", ");
      const which = names && ` (${names})`;
      if (status !== "ok") setTrouble(`The speech models are not ready${which}. This page keeps trying.`);
      else if (performance.now() - troubleSince > SHOWN_MS) setTrouble(null);
    } catch (error) {
      setTrouble(`${error.message} This page keeps trying.`);
    }
  }
  setTimeout(watch, HEALTH_MS);
}

function setTrouble(sentence) {
  if (sentence === trouble) return;
  if (sentence) {
    troubleSince = performance.now();
    showProblem(sentence, "wait");
  } else {
    showProblem(originProblem()?.message);
    announce("The server is ready.");
  }
  trouble = sentence;
}

// --- the call -------------------------------------------------------------------------------------------------------

function askForToken(reason) {
  if (reason) $("token-reason").textContent = reason;
  $("token").value = "";
  $("token-dialog").showModal();
}

async function connect() {
  const origin = originProblem();
  if (origin) return showProblem(origin.message);
  if (config?.auth && !hasToken()) return askForToken();
  if (preparing) return;
  preparing = true;
  showProblem(null);
  trouble = null;
  try {
    if (!config) await loadConfig();
    if (transcript.empty) await restore();
    connection.connect();
  } catch (error) {
    if (error.status === 401) askForToken(error.message);
    else setTrouble(`${error.message} This page keeps trying.`);
  } finally {
    preparing = false;
  }
}

function toggleConnection() {
  if (connection.active) connection.disconnect();
  else connect();
}

function toggleMute() {
  if (phase !== "connected") return;
  connection.muted = !connection.muted;
  announce(connection.muted ? "You are muted." : "Your microphone is on.");
  render();
}

/** Asks the bot for something during a call. */
function ask(t, d) {
  connection.send("client-message", { t, d });
}

function stop() {
  if (phase !== "connected" || !(thinking || botSpeaking)) return;
  stopped = true;
  speaker.hush();
  ask("interrupt", {});
}

connection.addEventListener("phase", ({ detail }) => {
  const recovering = detail.phase === "reconnecting";
  if (recovering && phase === "connected") {
    quiet();
    transcript.hangUp();
    meters.detach();
  }
  phase = detail.phase;
  if (recovering) showProblem(`${detail.sentence} Trying again until you cancel.`, "wait");
  if (phase === "connected") {
    showProblem(null);
    announce("Connected. You can speak.");
  }
  render();
});

connection.addEventListener("ended", ({ detail: problem }) => {
  phase = "idle";
  quiet();
  transcript.hangUp();
  meters.detach();
  speaker.stop();
  if (problem?.status === 401) askForToken(problem.message);
  else showProblem(problem?.message);
  if (!problem) announce("Disconnected.");
  render();
});

connection.addEventListener("session", ({ detail: id }) => {
  const before = sessionStorage.getItem(SESSION_KEY);
  if (before && before !== id && !transcript.empty) transcript.note("The server has forgotten what was said above.");
  sessionStorage.setItem(SESSION_KEY, id);
});

connection.addEventListener("streams", ({ detail: { local, remote } }) => {
  speaker.play(remote, showProblem);
  meters.attach([local, remote]);
});

/** The language model said something that is never spoken: then nobody thinks any more. */
function giveUpThinking(reply) {
  if (reply !== replies || !thinking) return;
  thinking = false;
  render();
}

const messages = {
  "user-started-speaking": () => (userSpeaking = true),
  "user-stopped-speaking": () => {
    userSpeaking = false;
    thinking = transcript.userEnded();
  },
  "user-transcription": ({ text, final }) => transcript.userSaid(text, final),
  "user-input": ({ text, input_type }) => input_type === "backchannel" && transcript.userBackchannel(text),
  "bot-llm-started": () => {
    replies += 1;
    thinking ||= !userSpeaking; // it may begin before the user's turn is over
  },
  "bot-llm-stopped": () => setTimeout(giveUpThinking, SPOKEN_MS, replies),
  "bot-started-speaking": () => {
    botSpeaking = true;
    thinking = stopped = false;
    transcript.botStarted();
    speaker.unhush();
    if (!trouble) showProblem(null);
  },
  "bot-stopped-speaking": () => {
    botSpeaking = false;
    transcript.botStopped();
  },
  "bot-interrupted": () => {
    if (botSpeaking || stopped) {
      speaker.hush();
      transcript.botInterrupted(stopped ? "stopped" : "interrupted");
    }
    thinking = botSpeaking = stopped = false;
  },
  "bot-output": (data) => transcript.botOutput(data),
  "server-message": (data) => data.type === "turn-latency" && transcript.latency(data),
  "server-response": ({ t, d }) => {
    if (t === "set-voice") announce(`Voice: ${named.voice(d.voice)}.`);
    if (t === "set-language") announce(`Language: ${named.language(d.language)}.`);
  },
  "error-response": ({ error }) => showProblem(error),
  error: ({ error }) => {
    thinking = false;
    setTrouble(error.replace(/^\S+#\d+[:\s]+/, "")); // without the name of Pipecat's processor
  },
};

connection.addEventListener("message", ({ detail: { type, data } }) => {
  if (!messages[type]) return;
  messages[type](data);
  render();
});

// --- controls -------------------------------------------------------------------------------------------------------

$("connect").addEventListener("click", toggleConnection);
$("mute").addEventListener("click", toggleMute);
$("stop").addEventListener("click", stop);
$("start-over").addEventListener("click", () => {
  sessionStorage.removeItem(SESSION_KEY);
  connection.session = null;
  transcript.clear();
  $("connect").focus();
});
$("token-cancel").addEventListener("click", () => $("token-dialog").close());
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value.trim());
  config = null;
  $("token-dialog").close();
  connect();
});

const SHORTCUTS = { "Alt+KeyC": toggleConnection, "Alt+KeyM": toggleMute, Escape: stop };
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || $("token-dialog").open) return;
  const action = SHORTCUTS[`${event.altKey ? "Alt+" : ""}${event.code}`];
  if (!action) return;
  event.preventDefault();
  action();
});
if (/Mac|iPhone|iPad/.test(navigator.platform)) {
  for (const key of document.querySelectorAll("kbd")) key.textContent = key.textContent.replace("Alt ", "⌥");
}

let following = true; // the newest words are in view
conversation.addEventListener("scroll", () => {
  following = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < 60;
});
function follow() {
  if (following && !transcript.empty) conversation.scrollTop = conversation.scrollHeight;
}
new ResizeObserver(follow).observe(conversation);
transcript.addEventListener("change", () => {
  showWelcomeOrTurns();
  follow();
});
window.addEventListener("pagehide", () => connection.disconnect()); // frees the place at once; the session stays

showProblem(originProblem()?.message);
render();
watch();

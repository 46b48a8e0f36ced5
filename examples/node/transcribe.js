/** node transcribe.js FILE.wav: one Triton sequence, a request for each 160 ms, the transcript so far after each. */
import { randomUUID } from "node:crypto";
import { audioTensor, connect, infer, request } from "./triton.js";
import { readWav } from "./wav.js";

const RATE = 16000;
const CHUNK = 0.16 * RATE;
const START_TIMEOUT_US = 2_000_000; // how long the first request may wait for a free stream

const file = process.argv[2];
if (!file) {
  console.error("usage: node transcribe.js FILE.wav   (16 kHz, mono, 16 bits)");
  process.exit(2);
}
const samples = readWav(file, RATE);
const client = connect();
const sequence = { sequence_id: randomUUID() };
let shown = "";
try {
  for (let at = 0; at === 0 || at < samples.length; at += CHUNK) {
    const start = at === 0;
    const end = at + CHUNK >= samples.length;
    const parameters = {
      ...sequence,
      sequence_start: start,
      sequence_end: end, // closes the utterance and frees the stream
      ...(start ? { latency_ms: 160, timeout: START_TIMEOUT_US } : {}),
    };
    const piece = audioTensor("AUDIO", samples.subarray(at, at + CHUNK));
    const answer = await infer(client, request("parakeet", [piece], parameters));
    if (answer.TRANSCRIPT !== shown || answer.IS_FINAL) {
      shown = answer.TRANSCRIPT;
      console.log(`${answer.IS_FINAL ? "final  " : "partial"} ${shown}`);
    }
    if (answer.IS_FINAL) console.log(`words   ${answer.WORDS}`);
  }
} catch (error) {
  // RESOURCE_EXHAUSTED and UNAVAILABLE: try again later. INVALID_ARGUMENT: `rawMessage` says what is allowed.
  console.error(`error: ${error.rawMessage ?? error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}

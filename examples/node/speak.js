/** node speak.js TEXT FILE.wav [VOICE]: the audio chunk by chunk as it is made, written to a file at the end. */
import { connect, inferStream, request, textTensor } from "./triton.js";
import { writeWav } from "./wav.js";

const RATE = 22050;

const [text, file, voice] = process.argv.slice(2);
if (!text || !file) {
  console.error("usage: node speak.js TEXT FILE.wav [VOICE]");
  process.exit(2);
}
const client = connect();
const chunks = [];
const began = performance.now();
try {
  const parameters = { max_seconds: 20, seed: 1, ...(voice ? { voice } : {}) };
  for await (const { AUDIO, WORDS } of inferStream(client, request("magpie", [textTensor("TEXT", text)], parameters))) {
    if (AUDIO.length === 0) continue; // the last response
    chunks.push(AUDIO);
    const words = JSON.parse(WORDS).map(({ word }) => word);
    console.log(`${(performance.now() - began).toFixed(0)} ms: ${(AUDIO.length / RATE).toFixed(2)} s ${words.join(" ")}`);
  }
  const samples = new Int16Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    samples.set(chunk, at);
    at += chunk.length;
  }
  writeWav(file, samples, RATE);
  console.log(`${(samples.length / RATE).toFixed(2)} s in ${file}`);
} catch (error) {
  console.error(`error: ${error.rawMessage ?? error.message}`); // e.g. INVALID_ARGUMENT: voice 'x': there are aria, ...
  process.exitCode = 1;
} finally {
  client.close();
}

/** 16-bit mono WAV files, in and out. */
import { readFileSync, writeFileSync } from "node:fs";

/** Reads a PCM WAV file; throws unless it is mono, 16 bits and of the wanted rate. */
export function readWav(file, wantedRate) {
  const bytes = readFileSync(file);
  let format;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const [id, size] = [bytes.toString("latin1", at, at + 4), bytes.readUInt32LE(at + 4)];
    const body = bytes.subarray(at + 8, at + 8 + size);
    if (id === "fmt ") {
      format = { channels: body.readUInt16LE(2), rate: body.readUInt32LE(4), bits: body.readUInt16LE(14) };
    } else if (id === "data") {
      if (format?.channels !== 1 || format.bits !== 16 || format.rate !== wantedRate) {
        throw new Error(`${file} is ${JSON.stringify(format)}; wanted: mono, 16 bits, ${wantedRate} Hz`);
      }
      return new Int16Array(body.length >> 1).map((_, i) => body.readInt16LE(2 * i));
    }
    at += 8 + size + (size % 2);
  }
  throw new Error(`${file} is no WAV file`);
}

/** Writes mono 16-bit PCM. */
export function writeWav(file, samples, rate) {
  const header = Buffer.alloc(44);
  header.write("RIFF", 0);
  header.writeUInt32LE(36 + samples.byteLength, 4);
  header.write("WAVEfmt ", 8);
  header.writeUInt32LE(16, 16);
  header.writeUInt16LE(1, 20);
  header.writeUInt16LE(1, 22);
  header.writeUInt32LE(rate, 24);
  header.writeUInt32LE(2 * rate, 28);
  header.writeUInt16LE(2, 32);
  header.writeUInt16LE(16, 34);
  header.write("data", 36);
  header.writeUInt32LE(samples.byteLength, 40);
  writeFileSync(file, Buffer.concat([header, Buffer.from(samples.buffer, samples.byteOffset, samples.byteLength)]));
}

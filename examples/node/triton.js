/**
 * Triton's gRPC from Node.js: the two calls that triton-voice needs, and how their tensors are packed.
 *
 * A unary ModelInfer carries one piece of audio of a sequence (speech to text). ModelStreamInfer carries one request and
 * many responses (text to speech, chat). Messages and service are stubs/, generated from ../proto (npm run stubs).
 */
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { GRPCInferenceService } from "./stubs/grpc_service_pb.js";

/** Connects to `host:port`: a client with a method for each of the service's calls, and `close()`. */
export function connect(server = process.env.TRITON_VOICE_URL ?? "127.0.0.1:8001") {
  const baseUrl = `http://${server}`;
  const sessionManager = new Http2SessionManager(baseUrl);
  const client = createClient(GRPCInferenceService, createGrpcTransport({ baseUrl, sessionManager }));
  return Object.assign(client, { close: () => sessionManager.abort() });
}

/** An INT16 tensor: mono PCM, little-endian as in a WAV file. */
export function audioTensor(name, samples) {
  const bytes = Buffer.from(samples.buffer, samples.byteOffset, samples.byteLength);
  return { tensor: { name, datatype: "INT16", shape: [1n, BigInt(samples.length)] }, bytes };
}

/** A BYTES tensor of one string: its length in four bytes, then UTF-8. */
export function textTensor(name, text) {
  const utf8 = Buffer.from(text, "utf8");
  const length = Buffer.alloc(4);
  length.writeUInt32LE(utf8.length);
  return { tensor: { name, datatype: "BYTES", shape: [1n] }, bytes: Buffer.concat([length, utf8]) };
}

/** The request: tensors raw, in the order of `inputs`; parameters typed by what they are. */
export function request(model, tensors, parameters = {}) {
  const choice = (value) => {
    if (typeof value === "boolean") return { case: "boolParam", value };
    if (Number.isInteger(value)) return { case: "int64Param", value: BigInt(value) };
    if (typeof value === "number") return { case: "doubleParam", value };
    return { case: "stringParam", value: String(value) };
  };
  const typed = ([name, value]) => [name, { parameterChoice: choice(value) }];
  return {
    modelName: model,
    inputs: tensors.map(({ tensor }) => tensor),
    rawInputContents: tensors.map(({ bytes }) => bytes),
    parameters: Object.fromEntries(Object.entries(parameters).map(typed)),
  };
}

/** The outputs of a response by name: Int16Array, boolean or string. */
export function outputs(response) {
  const values = {};
  response.outputs.forEach(({ name, datatype }, i) => {
    const { buffer, byteOffset, length } = response.rawOutputContents[i];
    const raw = Buffer.from(buffer, byteOffset, length);
    if (datatype === "INT16") {
      values[name] = new Int16Array(raw.length / 2).map((_, at) => raw.readInt16LE(2 * at));
    } else if (datatype === "BOOL") {
      values[name] = raw[0] === 1;
    } else {
      values[name] = raw.subarray(4).toString("utf8");
    }
  });
  return values;
}

/** One unary call; throws Connect's error, whose `code` and `rawMessage` are the server's. */
export async function infer(client, message, deadlineS = 30) {
  return outputs(await client.modelInfer(message, { timeoutMs: deadlineS * 1000 }));
}

/**
 * One request of a decoupled model: yields the outputs of each response until the final one.
 *
 * Leaving the loop early cancels the request on the server. A refused request throws its sentence, which begins with the
 * name of its status: messages of a stream have no status codes.
 */
export async function* inferStream(client, message) {
  const call = new AbortController();
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  async function* requests() {
    yield message;
    await ended;
  }
  try {
    for await (const { errorMessage, inferResponse } of client.modelStreamInfer(requests(), { signal: call.signal })) {
      if (errorMessage) throw new Error(errorMessage);
      yield outputs(inferResponse);
      if (inferResponse.parameters.triton_final_response?.parameterChoice.value) end();
    }
  } finally {
    end();
    call.abort();
  }
}

/**
 * Triton's gRPC from Node.js: the two calls that triton-voice needs, and how their tensors are packed.
 *
 * A unary ModelInfer carries one piece of audio of a sequence (speech to text). ModelStreamInfer carries one request and
 * many responses (text to speech, chat).
 */
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTO = fileURLToPath(new URL("../proto", import.meta.url));
const schema = protoLoader.loadSync("grpc_service.proto", {
  includeDirs: [PROTO],
  keepCase: true,
  longs: Number,
  defaults: true,
});
const { inference } = grpc.loadPackageDefinition(schema);

/** Connects to `host:port`. Audio of one request may be longer than gRPC's 4 MB. */
export function connect(server = process.env.TRITON_VOICE_URL ?? "127.0.0.1:8001") {
  return new inference.GRPCInferenceService(server, grpc.credentials.createInsecure(), {
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
  });
}

/** An INT16 tensor: mono PCM, little-endian as in a WAV file. */
export function audioTensor(name, samples) {
  const bytes = Buffer.from(samples.buffer, samples.byteOffset, samples.byteLength);
  return { tensor: { name, datatype: "INT16", shape: [1, samples.length] }, bytes };
}

/** A BYTES tensor of one string: its length in four bytes, then UTF-8. */
export function textTensor(name, text) {
  const utf8 = Buffer.from(text, "utf8");
  const length = Buffer.alloc(4);
  length.writeUInt32LE(utf8.length);
  return { tensor: { name, datatype: "BYTES", shape: [1] }, bytes: Buffer.concat([length, utf8]) };
}

/** The request: tensors raw, in the order of `inputs`; parameters typed by what they are. */
export function request(model, tensors, parameters = {}) {
  const typed = ([name, value]) => {
    if (typeof value === "boolean") return [name, { bool_param: value }];
    if (Number.isInteger(value)) return [name, { int64_param: value }];
    if (typeof value === "number") return [name, { double_param: value }];
    return [name, { string_param: String(value) }];
  };
  return {
    model_name: model,
    inputs: tensors.map(({ tensor }) => tensor),
    raw_input_contents: tensors.map(({ bytes }) => bytes),
    parameters: Object.fromEntries(Object.entries(parameters).map(typed)),
  };
}

/** The outputs of a response by name: Int16Array, boolean or string. */
export function outputs(response) {
  const values = {};
  response.outputs.forEach(({ name, datatype }, i) => {
    const raw = response.raw_output_contents[i];
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

/** One unary call; rejects with gRPC's error, whose `code` and `details` are the server's. */
export function infer(client, message, deadlineS = 30) {
  const deadline = Date.now() + deadlineS * 1000;
  return new Promise((resolve, reject) => {
    client.ModelInfer(message, { deadline }, (error, response) => (error ? reject(error) : resolve(outputs(response))));
  });
}

/**
 * One request of a decoupled model: yields the outputs of each response until the final one.
 *
 * Leaving the loop early cancels the request on the server. A refused request throws its sentence, which begins with the
 * name of its status: messages of a stream have no status codes.
 */
export async function* inferStream(client, message) {
  const call = client.ModelStreamInfer();
  try {
    call.write(message);
    for await (const { error_message: error, infer_response: response } of call) {
      if (error) throw new Error(error);
      yield outputs(response);
      if (response.parameters.triton_final_response?.bool_param) call.end();
    }
  } finally {
    call.cancel();
  }
}

/** node chat.js PROMPT: an OpenAI chat.completions body in, its chunks out, the reply as it comes. */
import { connect, inferStream, request, textTensor } from "./triton.js";

const prompt = process.argv[2];
if (!prompt) {
  console.error("usage: node chat.js PROMPT");
  process.exit(2);
}
const client = connect();
const body = { messages: [{ role: "user", content: prompt }], max_tokens: 60, temperature: 0 };
try {
  const message = request("nemotron", [textTensor("chat_request", JSON.stringify(body))]);
  for await (const { chat_chunk: chunk } of inferStream(client, message)) {
    const { choices, usage } = JSON.parse(chunk);
    process.stdout.write(choices[0]?.delta.content ?? "");
    if (choices[0]?.delta.tool_calls) console.log(JSON.stringify(choices[0].delta.tool_calls));
    if (usage) console.log(`\n(${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out)`);
  }
} catch (error) {
  console.error(`error: ${error.rawMessage ?? error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}

// Run by test_others.py with the server's URL and key; prints one JSON line of what came.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: process.argv[3], maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const said = {};

const answer = await client.chat.completions.create({ model: "smollm2", messages, temperature: 0 });
said.answer = answer.choices[0].message.content;
said.tokens = answer.usage.completion_tokens;

said.streamed = "";
const stream = await client.chat.completions.create({
  model: "smollm2", messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  said.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) said.streamedTokens = chunk.usage.completion_tokens;
}

const response = await client.responses.create({
  model: "smollm2", input: messages[0].content, temperature: 0,
});
said.response = response.output_text;

try {
  await client.chat.completions.create({ model: "other", messages });
} catch (error) {
  said.error = [error.status, error.code];
}
console.log(JSON.stringify(said));

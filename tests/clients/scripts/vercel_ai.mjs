// `generateText` and `streamText` with a tool, over the provider for OpenAI-compatible servers.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url, key, model] = process.argv.slice(2, 5);
const asked = [];
const tools = {
  get_weather: tool({
    description: "Get the current weather for a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return "sunny, 21 degrees";
    },
  }),
};
const prompt = "What is the weather in Paris?";
const providers = [
  createOpenAICompatible({ name: "weather", baseURL: url, apiKey: key }),
  createOpenAI({ baseURL: url, apiKey: key }), // the Responses API
];
for (const provider of providers) {
  const request = { model: provider(model), tools, prompt, stopWhen: stepCountIs(3) };
  const { text } = await generateText(request);
  assert.match(text, /21 degrees/);
  assert.match(await streamText(request).text, /21 degrees/);
}
assert.deepEqual(asked, ["Paris", "Paris", "Paris", "Paris"]);
console.log(asked);

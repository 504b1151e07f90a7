// A tool call of the model's own choice, whole, streamed and with the client's tool runner.
import assert from "node:assert";
import OpenAI from "openai";

const [url, key, model] = process.argv.slice(2, 5);
const client = new OpenAI({ baseURL: url, apiKey: key });
const tool = {
  name: "get_weather",
  description: "Get the current weather for a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const request = {
  model,
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
  tools: [{ type: "function", function: tool }],
  tool_choice: "auto",
};

const answer = await client.chat.completions.create(request);
const [call] = answer.choices[0].message.tool_calls;
assert.equal(answer.choices[0].finish_reason, "tool_calls");
assert.equal(call.function.name, "get_weather");
assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });

const stream = client.chat.completions.stream(request);
const streamed = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0].function;
assert.equal(streamed.name, "get_weather");
assert.deepEqual(JSON.parse(streamed.arguments), { city: "Paris" });

const asked = [];
const runner = client.chat.completions.runTools({
  ...request,
  tools: [
    {
      type: "function",
      function: {
        ...tool,
        parse: JSON.parse,
        function: ({ city }) => {
          asked.push(city);
          return "sunny, 21 degrees";
        },
      },
    },
  ],
});
const said = await runner.finalContent();
assert.deepEqual(asked, ["Paris"]);
assert.match(said, /21 degrees/);
console.log(said);

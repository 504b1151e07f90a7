// `promptfoo eval` with a tool: the call is valid and has the right argument.
import assert from "node:assert";
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [url, key, model] = process.argv.slice(2, 5);
const tool = {
  name: "get_weather",
  description: "Get the current weather for a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const config = {
  prompts: ["What is the weather in {{city}}?"],
  providers: [
    {
      id: `openai:chat:${model}`,
      config: { apiBaseUrl: url, apiKey: key, tools: [{ type: "function", function: tool }] },
    },
  ],
  tests: ["Paris", "London"].map((city) => ({
    vars: { city },
    assert: [
      { type: "is-valid-openai-tools-call" },
      { type: "javascript", value: `JSON.parse(output[0].function.arguments).city === "${city}"` },
    ],
  })),
};
writeFileSync("promptfooconfig.json", JSON.stringify(config));
const command = join(import.meta.dirname, "node_modules", "promptfoo", "dist", "src", "entrypoint.js");
const done = spawnSync(
  process.execPath,
  [command, "eval", "-c", "promptfooconfig.json", "--no-cache", "-o", "results.json"],
  { stdio: "inherit", env: { ...process.env, PROMPTFOO_CONFIG_DIR: process.cwd() } },
);
assert.equal(done.status, 0);
const { stats } = JSON.parse(readFileSync("results.json")).results;
assert.deepEqual([stats.successes, stats.failures, stats.errors], [2, 0, 0]);

// The official JavaScript client of OpenAI's API.

import OpenAI from "openai";
import { answer } from "./asking.mjs";
import { SCHEMA, TOKENS, TOOLS, said } from "./questions.mjs";

const client = ({ url }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const body = ({ model, question }) => ({ model, messages: said(question), max_tokens: TOKENS, temperature: 0 });

// What is there of an answer.
const given = (value) => {
  if (Array.isArray(value)) return value.map(given);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== null).map(([name, one]) => [name, given(one)]));
};

const told = (whole) => ({
  model: whole.model,
  content: whole.choices[0].message.content,
  finish: whole.choices[0].finish_reason,
  tokens: [whole.usage.prompt_tokens, whole.usage.completion_tokens],
  whole: given(whole),
});

async function* stream(asked) {
  let reason = null;
  for await (const part of await client(asked).chat.completions.create({ ...body(asked), stream: true })) {
    for (const choice of part.choices) {
      if (choice.delta.content) yield choice.delta.content;
      reason = choice.finish_reason ?? reason;
    }
  }
  return reason;
}

// What its own helper makes of a stream.
const final = (asked, whole) =>
  client(asked).chat.completions.stream({ ...whole, stream_options: { include_usage: true } }).finalChatCompletion();

async function* completions(asked) {
  const { model, prompt } = asked;
  const parts = await client(asked).completions.create({ model, prompt, max_tokens: TOKENS, stream: true });
  for await (const part of parts) {
    for (const choice of part.choices) if (choice.text) yield choice.text;
  }
}

async function* responses(asked) {
  const { model, question } = asked;
  for await (const event of await client(asked).responses.create({ model, input: question, stream: true })) {
    if (event.type === "response.output_text.delta") yield event.delta;
  }
}

async function schema(asked) {
  const response_format = { type: "json_schema", json_schema: { name: "weather", strict: true, schema: SCHEMA } };
  const { choices } = await client(asked).chat.completions.parse({ ...body(asked), response_format });
  return choices[0].message.parsed;
}

async function tools({ result, streamed, ...asked }) {
  const messages = said(asked.question);
  const ask = async () => {
    const whole = { ...body(asked), messages, tools: TOOLS };
    const { choices } = await (streamed ? final(asked, whole) : client(asked).chat.completions.create(whole));
    return choices[0].message;
  };
  const first = await ask();
  messages.push(first);
  for (const { id } of first.tool_calls ?? []) messages.push({ role: "tool", tool_call_id: id, content: result });
  const calls = (first.tool_calls ?? []).map(({ function: { name, arguments: text } }) => [name, JSON.parse(text)]);
  return { calls, then: (await ask()).content };
}

async function list(asked) {
  const names = [];
  for await (const model of client(asked).models.list()) names.push(model.id);
  return names.sort();
}

await answer(
  {
    chat: async (asked) => told(await client(asked).chat.completions.create(body(asked))),
    final: async (asked) => told(await final(asked, body(asked))),
    schema,
    tools,
    list,
  },
  { stream, completions, responses },
);

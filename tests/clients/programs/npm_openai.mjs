// The official JavaScript client of OpenAI's API.

import OpenAI from "openai";
import { answer } from "./asking.mjs";
import { TOKENS, said } from "./questions.mjs";

const client = ({ url }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const body = ({ model, question }) => ({ model, messages: said(question), max_tokens: TOKENS, temperature: 0 });

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

await answer(
  { chat: (asked) => client(asked).chat.completions.create(body(asked)) },
  { stream, completions, responses },
);

// The official JavaScript client of Anthropic's API.

import Anthropic from "@anthropic-ai/sdk";
import { answer } from "./asking.mjs";
import { TOKENS, said } from "./questions.mjs";

const client = ({ url }) => new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const body = ({ model, question }) => ({ model, max_tokens: TOKENS, messages: said(question) });

// By the way that its documentation begins with.
async function* stream(asked) {
  const parts = client(asked).messages.stream(body(asked));
  for await (const event of parts) {
    if (event.type === "content_block_delta") yield event.delta.text;
  }
  return (await parts.finalMessage()).stop_reason;
}

async function* events(asked) {
  let reason = null;
  for await (const event of await client(asked).messages.create({ ...body(asked), stream: true })) {
    if (event.type === "content_block_delta") yield event.delta.text;
    if (event.type === "message_delta") reason = event.delta.stop_reason;
  }
  return reason;
}

async function final({ url, ...asked }) {
  const parts = client({ url }).messages.stream(asked);
  const types = [];
  parts.on("streamEvent", (event) => types.push(event.type));
  return { message: await parts.finalMessage(), types };
}

async function count({ url, ...asked }) {
  return (await client({ url }).messages.countTokens(asked)).input_tokens;
}

async function beta({ url, ...asked }) {
  const { max_tokens, ...counted } = asked;
  const messages = client({ url }).beta.messages;
  return {
    message: await messages.create({ ...asked, betas: ["interleaved-thinking-2025-05-14"] }),
    tokens: (await messages.countTokens(counted)).input_tokens,
  };
}

async function tools({ url, result, streamed, ...asked }) {
  const messages = [...asked.messages];
  const ask = () => {
    const whole = { ...asked, messages };
    return streamed ? client({ url }).messages.stream(whole).finalMessage() : client({ url }).messages.create(whole);
  };
  const first = await ask();
  const calls = first.content.filter((block) => block.type === "tool_use");
  messages.push({ role: "assistant", content: first.content });
  messages.push({
    role: "user",
    content: calls.map((call) => ({ type: "tool_result", tool_use_id: call.id, content: result })),
  });
  return { first, then: await ask() };
}

const chat = (asked) => client(asked).messages.create(body(asked));
const create = ({ url, ...asked }) => client({ url }).messages.create(asked);

await answer({ chat, create, final, count, beta, tools }, { stream, events });

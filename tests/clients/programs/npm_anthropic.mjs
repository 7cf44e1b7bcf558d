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

await answer({ chat: (asked) => client(asked).messages.create(body(asked)) }, { stream, events });

// The AI SDK, with its provider for whatever speaks OpenAI's API.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, isStepCount, jsonSchema, streamText, tool } from "ai";
import { answer } from "./asking.mjs";
import { SCHEMA, TOKENS, TOOLS } from "./questions.mjs";

const asked = ({ url, model, question }) => ({
  model: createOpenAICompatible({
    name: "orch",
    baseURL: `${url}/v1`,
    includeUsage: true,
    supportsStructuredOutputs: true,
  }).chatModel(model),
  prompt: question,
  temperature: 0,
  maxOutputTokens: TOKENS,
  maxRetries: 0,
});

const told = ({ text, finishReason, usage, response }) => ({
  model: response.modelId,
  content: text,
  finish: finishReason,
  tokens: [usage.inputTokens, usage.outputTokens],
});

// What goes wrong is a part of the stream, and who leaves has to say so.
async function* parts(question) {
  const leaving = new AbortController();
  const result = streamText({ ...asked(question), abortSignal: leaving.signal, onError: () => {} });
  try {
    for await (const part of result.stream) {
      if (part.type === "error") throw part.error;
      if (part.type === "text-delta") yield part.text;
    }
  } finally {
    leaving.abort();
  }
  return result;
}

async function* stream(question) {
  const { text, finishReason, usage, response } = yield* parts(question);
  return told({ text: await text, finishReason: await finishReason, usage: await usage, response: await response });
}

async function tools({ result, streamed, ...question }) {
  const calls = [];
  const known = TOOLS.map(({ function: { name, description, parameters } }) => {
    const execute = (given) => {
      calls.push([name, given]);
      return result;
    };
    return [name, tool({ description, inputSchema: jsonSchema(parameters), execute })];
  });
  const whole = { ...asked(question), tools: Object.fromEntries(known), stopWhen: isStepCount(2) };
  const then = streamed ? await streamText(whole).text : (await generateText(whole)).text;
  return { calls, then };
}

async function thinking(question) {
  const { reasoningText, text } = await generateText(asked(question));
  return { thinking: reasoningText, content: text };
}

async function* thinkingStream(question) {
  return (yield* parts(question)).reasoningText;
}

await answer(
  {
    chat: async (question) => told(await generateText(asked(question))),
    schema: async (question) => (await generateObject({ ...asked(question), schema: jsonSchema(SCHEMA) })).object,
    tools,
    thinking,
  },
  { stream, thinking_stream: thinkingStream },
);

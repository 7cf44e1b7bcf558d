// The official JavaScript client of Ollama.

import { Ollama } from "ollama";
import { answer } from "./asking.mjs";
import { GREEDY, SCHEMA, TOOLS, said } from "./questions.mjs";

const client = ({ url, headers }) => new Ollama({ host: url, headers });

const chat = (asked, more = {}) =>
  client(asked).chat({ model: asked.model, messages: said(asked.question), options: GREEDY, ...more });

// The texts of a stream, and what `rest` makes of all its parts. Who leaves has to say so to the client, too.
async function* texts(parts, textOf, rest) {
  const all = [];
  try {
    for await (const part of parts) {
      if (textOf(part)) yield textOf(part);
      all.push(part);
    }
    return rest(all);
  } finally {
    parts.abort();
  }
}

const ofChat = (part) => part.message.content;
const last = (parts) => parts.at(-1);

async function* stream(asked) {
  return yield* texts(await chat(asked, { stream: true }), ofChat, last);
}

async function* generateStream(asked) {
  const { model, prompt } = asked;
  const parts = await client(asked).generate({ model, prompt, options: GREEDY, stream: true });
  return yield* texts(parts, (part) => part.response, last);
}

async function tools(asked) {
  const messages = said(asked.question);
  const ask = async () => (await client(asked).chat({ model: asked.model, messages, options: GREEDY, tools: TOOLS })).message;
  const first = await ask();
  messages.push(first);
  for (const call of first.tool_calls ?? []) {
    messages.push({ role: "tool", content: asked.result, tool_name: call.function.name });
  }
  return { calls: first.tool_calls ?? [], then: (await ask()).content };
}

async function* toolsStream(asked) {
  const calls = (parts) => parts.flatMap((part) => part.message.tool_calls ?? []);
  return yield* texts(await chat(asked, { tools: TOOLS, stream: true }), ofChat, calls);
}

async function thinking(asked) {
  const { message } = await chat(asked, { think: asked.think ?? true });
  return { thinking: message.thinking ?? "", content: message.content };
}

async function* thinkingStream(asked) {
  const thought = (parts) => parts.map((part) => part.message.thinking ?? "").join("");
  return yield* texts(await chat(asked, { think: asked.think ?? true, stream: true }), ofChat, thought);
}

await answer(
  {
    chat: (asked) => chat(asked, "think" in asked ? { think: asked.think } : {}),
    generate: (asked) => client(asked).generate({ model: asked.model, prompt: asked.prompt, options: GREEDY }),
    schema: async (asked) => (await chat(asked, { format: SCHEMA })).message.content,
    tools,
    thinking,
    embed: (asked) => client(asked).embed({ model: asked.model, input: asked.text }),
    bad_option: (asked) => chat(asked, { options: { num_ctx: "many" } }),
    list: (asked) => client(asked).list(),
    ps: (asked) => client(asked).ps(),
    show: (asked) => client(asked).show({ model: asked.model }),
    delete: (asked) => client(asked).delete({ model: asked.model }),
    pull: async (asked) => {
      const lines = [];
      for await (const line of await client(asked).pull({ model: asked.model, stream: true })) lines.push(line);
      return lines;
    },
  },
  { stream, generate_stream: generateStream, tools_stream: toolsStream, thinking_stream: thinkingStream },
);

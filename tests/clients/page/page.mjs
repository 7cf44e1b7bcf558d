// What a page does that is asked by browser.py: see asking.mjs, of which this is the same over HTTP.

import OpenAI from "openai";
import { Ollama } from "ollama/browser";

const say = (told) => fetch("/told", { method: "POST", body: JSON.stringify(told) });
const said = (question) => [{ role: "user", content: question }];

const openai = ({ url, key }) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: key ?? "none", maxRetries: 0, dangerouslyAllowBrowser: true });
const ollama = ({ url, key }) =>
  new Ollama({ host: url, headers: key ? { Authorization: `Bearer ${key}` } : undefined });

// `repeat`: a header as long as that many letters; `size`: a body of that many.
async function ask({ url, repeat, size, body, headers, ...init }) {
  const answer = await fetch(url, {
    ...init,
    headers: repeat ? { ...headers, "X-Long": "x".repeat(repeat) } : headers,
    body: size ? "x".repeat(size) : body,
  });
  return { status: answer.status, headers: Object.fromEntries(answer.headers), text: await answer.text() };
}

const verbs = {
  ask,
  origin: () => location.origin,
  openai_models: async (asked) => (await openai(asked).models.list()).data.map(({ id }) => id),
  ollama_list: async (asked) => (await ollama(asked).list()).models.map(({ name }) => name),
};

const streams = {
  async *openai(asked) {
    const { model, question } = asked;
    const body = { model, messages: said(question), max_tokens: 40, temperature: 0, stream: true };
    for await (const part of await openai(asked).chat.completions.create(body)) {
      for (const choice of part.choices) if (choice.delta.content) yield choice.delta.content;
    }
  },
  async *ollama(asked) {
    const { model, question } = asked;
    const body = { model, messages: said(question), options: { num_predict: 40, temperature: 0 }, stream: true };
    for await (const part of await ollama(asked).chat(body)) if (part.message.content) yield part.message.content;
  },
  async *bytes({ url, ...init }) {
    const answer = await fetch(url, init);
    const decoder = new TextDecoder();
    for await (const bytes of answer.body) yield decoder.decode(bytes, { stream: true });
  },
};

async function answer({ do: verb, ...asked }) {
  const texts = [];
  try {
    if (verb in verbs) return { result: await verbs[verb](asked) };
    for await (const text of streams[verb](asked)) {
      texts.push(text);
      if (texts.length === 1) await say({ part: text });
    }
    return { result: { text: texts.join(""), parts: texts.length } };
  } catch (error) {
    const status = error.status_code ?? error.status ?? null;
    return { raised: { type: error.constructor.name, message: String(error.message), status }, text: texts.join("") };
  }
}

for (;;) {
  const next = await fetch("/next");
  if (next.status === 204) continue;
  const question = await next.json();
  if (question.do === "visit") {
    location.href = question.url;
    break;
  }
  await say(await answer(question));
}

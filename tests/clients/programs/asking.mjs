// See asking.py: the same for clients that run in Node.js.

import { createInterface } from "node:readline";

const say = (told) => process.stdout.write(JSON.stringify(told) + "\n");

// `streams` are async generators of texts, which return what else there is to tell.
export async function answer(verbs, streams) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { do: verb, ...asked } = JSON.parse(line);
    const texts = [];
    try {
      if (verb in verbs) {
        say({ result: await verbs[verb](asked) });
      } else if (verb.startsWith("leave:")) {
        const stream = streams[verb.slice("leave:".length)](asked);
        await stream.next();
        await stream.return();
        say({ result: "left" });
      } else {
        const rest = await follow(streams[verb](asked), texts);
        say({ result: { text: texts.join(""), parts: texts.length, rest: rest ?? null } });
      }
    } catch (error) {
      const status = error.status_code ?? error.statusCode ?? error.status ?? null;
      say({ raised: { type: error.constructor.name, message: String(error.message), status }, text: texts.join("") });
    }
  }
}

async function follow(stream, texts) {
  for (;;) {
    const { value, done } = await stream.next();
    if (done) return value;
    texts.push(value);
    if (texts.length === 1) say({ part: value });
  }
}

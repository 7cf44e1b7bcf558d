// See questions.py.

export const TOKENS = 200;
export const GREEDY = { temperature: 0, seed: 1, num_predict: TOKENS };
export const SCHEMA = {
  type: "object",
  properties: { weather: { type: "string", enum: ["sunny", "rainy"] } },
  required: ["weather"],
};

const parameters = (properties) => ({
  type: "object",
  properties: Object.fromEntries(Object.entries(properties).map(([key, type]) => [key, { type }])),
  required: Object.keys(properties),
});
const tool = (name, description, properties) => ({
  type: "function",
  function: { name, description, parameters: parameters(properties) },
});
export const TOOLS = [
  tool("get_weather", "The weather in a city", { city: "string", days: "integer" }),
  tool("get_time", "The time in a zone", { zone: "string" }),
];

export const said = (question) => [{ role: "user", content: question }];

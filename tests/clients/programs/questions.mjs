// See questions.py.

export const TOKENS = 40;
export const GREEDY = { temperature: 0, seed: 1, num_predict: TOKENS };
export const SCHEMA = {
  type: "object",
  properties: { name: { type: "string", maxLength: 8 }, size: { type: "integer" } },
  required: ["name", "size"],
};
export const TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

export const said = (question) => [{ role: "user", content: question }];

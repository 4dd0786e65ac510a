// The official `openai` package through the gateway. Reads {base_url, fixed, markup, poor, limited} from the first argument and
// prints one JSON object: case -> {request_id, input, output, text} or {error: {type, status, message}}.
import OpenAI from "openai";

const settings = JSON.parse(process.argv[2]);
const MODEL = "gpt-4o-mini";
const QUESTION = "Say hello.";
const MESSAGES = [{ role: "user", content: QUESTION }];
const TYPES = ["AuthenticationError", "RateLimitError", "InternalServerError", "APIError"];

function client(apiKey, headers = {}) {
  return new OpenAI({
    apiKey,
    baseURL: `${settings.base_url}forward/openai/v1`,
    maxRetries: 0,
    defaultHeaders: { "x-sandbox-delay-ms": "0", ...headers },
  });
}

const found = (response, input, output, text) => ({ request_id: response.headers.get("x-lava-request-id"), input, output, text });

async function chat(openai) {
  const { data, response } = await openai.chat.completions.create({ model: MODEL, messages: MESSAGES }).withResponse();
  return found(response, data.usage.prompt_tokens, data.usage.completion_tokens, data.choices[0].message.content);
}

async function chatStream(openai, options = { stream_options: { include_usage: true } }) {
  const call = openai.chat.completions.create({ model: MODEL, messages: MESSAGES, stream: true, ...options });
  const { data, response } = await call.withResponse();
  let text = "";
  let usage = null;
  let usageChunks = 0;
  for await (const chunk of data) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
    usageChunks += chunk.choices.length ? 0 : 1;
  }
  return { ...found(response, usage?.prompt_tokens, usage?.completion_tokens, text), usage_chunks: usageChunks };
}

async function responses(openai) {
  const { data, response } = await openai.responses.create({ model: MODEL, input: QUESTION }).withResponse();
  return found(response, data.usage.input_tokens, data.usage.output_tokens, data.output_text);
}

async function responsesStream(openai) {
  const { data, response } = await openai.responses.create({ model: MODEL, input: QUESTION, stream: true }).withResponse();
  let text = "";
  let usage = null;
  for await (const event of data) {
    if (event.type === "response.output_text.delta") text += event.delta;
    if (event.type === "response.completed") usage = event.response.usage;
  }
  return found(response, usage.input_tokens, usage.output_tokens, text);
}

async function embeddings(openai) {
  const call = openai.embeddings.create({ model: "text-embedding-3-small", input: QUESTION });
  const { data, response } = await call.withResponse();
  return found(response, data.usage.prompt_tokens, 0, "");
}

async function refused(ask) {
  try {
    await ask();
    return { error: null };
  } catch (error) {
    const type = TYPES.find((name) => error instanceof OpenAI[name]) ?? error.constructor.name;
    return { error: { type, status: error.status, message: error.message } };
  }
}

const fixed = client(settings.fixed);
const limited = client(settings.limited);
const failing = (status) => client(settings.fixed, { "x-sandbox-fail": `status=${status}` });
const cases = {
  chat: () => chat(fixed),
  "chat stream": () => chatStream(fixed),
  "chat stream, usage not asked for": () => chatStream(fixed, {}),
  responses: () => responses(fixed),
  "responses stream": () => responsesStream(fixed),
  embeddings: () => embeddings(fixed),
  markup: () => chat(client(settings.markup)),
  "markup stream": () => chatStream(client(settings.markup)),
  "401": () => refused(() => chat(client("aks_live_unknown"))),
  "401 stream": () => refused(() => chatStream(client("aks_live_unknown"))),
  "402": () => refused(() => responses(client(settings.poor))),
  "402 stream": () => refused(() => chatStream(client(settings.poor))),
  limited: () => chat(limited),
  "limited, again": () => refused(() => responses(limited)),
  "limited stream, again": () => refused(() => chatStream(limited)),
  "429": () => refused(() => chat(failing(429))),
  "429 stream": () => refused(() => responsesStream(failing(429))),
  "503": () => refused(() => chat(failing(503))),
  "503 stream": () => refused(() => chatStream(failing(503))),
};

const results = {};
for (const [name, run] of Object.entries(cases)) results[name] = await run();
console.log(JSON.stringify(results));

// Vercel's `ai` with @ai-sdk/openai through the gateway. Reads {base_url, fixed, markup, poor, limited} from the first
// argument and prints one JSON object: case -> {request_id, input, output, text} or {error: {type, status, message}}.
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, embed, generateText, streamText } from "ai";

const settings = JSON.parse(process.argv[2]);
const MODEL = "gpt-4o-mini";
const QUESTION = "Say hello.";

function openai(apiKey, headers = {}) {
  return createOpenAI({
    apiKey,
    baseURL: `${settings.base_url}forward/openai/v1`,
    headers: { "x-sandbox-delay-ms": "0", ...headers },
  });
}

const found = (headers, usage, text) => ({
  request_id: headers["x-lava-request-id"], input: usage.inputTokens, output: usage.outputTokens, text,
});

async function whole(model) {
  const answer = await generateText({ model, prompt: QUESTION, maxRetries: 0 });
  return found(answer.response.headers, answer.usage, answer.text);
}

async function stream(model) {
  let failure = null;
  const answer = streamText({ model, prompt: QUESTION, maxRetries: 0, onError: ({ error }) => (failure = error) });
  let text = "";
  for await (const part of answer.fullStream) {
    if (part.type === "text-delta") text += part.text;
    if (part.type === "error") failure = part.error;
  }
  if (failure) throw failure;
  return found((await answer.response).headers, await answer.usage, text);
}

async function embedding(model) {
  const answer = await embed({ model, value: QUESTION, maxRetries: 0 });
  return found(answer.response.headers, { inputTokens: answer.usage.tokens, outputTokens: 0 }, "");
}

async function refused(ask) {
  try {
    await ask();
    return { error: null };
  } catch (error) {
    const type = APICallError.isInstance(error) ? "APICallError" : error.constructor.name;
    return { error: { type, status: error.statusCode, message: error.message, is_retryable: error.isRetryable } };
  }
}

const fixed = openai(settings.fixed);
const markup = openai(settings.markup);
const unknown = openai("aks_live_unknown");
const poor = openai(settings.poor);
const limited = openai(settings.limited);
const failing = (status) => openai(settings.fixed, { "x-sandbox-fail": `status=${status}` });
const cases = {
  chat: () => whole(fixed.chat(MODEL)),
  "chat stream": () => stream(fixed.chat(MODEL)),
  responses: () => whole(fixed(MODEL)),
  "responses stream": () => stream(fixed(MODEL)),
  embeddings: () => embedding(fixed.textEmbeddingModel("text-embedding-3-small")),
  markup: () => whole(markup.chat(MODEL)),
  "markup stream": () => stream(markup(MODEL)),
  "401": () => refused(() => whole(unknown(MODEL))),
  "401 stream": () => refused(() => stream(unknown.chat(MODEL))),
  "402": () => refused(() => whole(poor(MODEL))),
  "402 stream": () => refused(() => stream(poor.chat(MODEL))),
  limited: () => whole(limited.chat(MODEL)),
  "limited, again": () => refused(() => whole(limited(MODEL))),
  "limited stream, again": () => refused(() => stream(limited.chat(MODEL))),
  "429": () => refused(() => whole(failing(429)(MODEL))),
  "429 stream": () => refused(() => stream(failing(429).chat(MODEL))),
  "503": () => refused(() => whole(failing(503)(MODEL))),
  "503 stream": () => refused(() => stream(failing(503).chat(MODEL))),
};

const results = {};
for (const [name, run] of Object.entries(cases)) results[name] = await run();
console.log(JSON.stringify(results));

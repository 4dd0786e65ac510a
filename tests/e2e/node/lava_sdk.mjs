// The official `@lavapayments/nodejs` of three generations. Reads {base_url, secret_key} from the first argument, then one JSON
// object a line from stdin, and answers each with one line: {value} or {error}.
//   {sdk, do: "methods"}                 every method that this version has: "customers.create", "gateway", "Lava.login" ...
//   {sdk, do: "helpers"}                 its URLs of providers: name -> URL
//   {sdk, do: "call", path, args}        calls one
import { createInterface } from "node:readline";

import { Lava as Lava11 } from "lava11";
import { Lava as Lava2 } from "lava2";
import { Lava as Lava8 } from "lava8";

const { base_url: baseUrl, secret_key: secretKey } = JSON.parse(process.argv[2]);
const CLASSES = { lava2: Lava2, lava8: Lava8, lava11: Lava11 };
const CLIENTS = {
  lava2: new Lava2(secretKey, { apiVersion: "2025-03-27.v1", baseUrl }),
  lava8: new Lava8(secretKey, { baseUrl }),
  lava11: new Lava11(secretKey, { baseUrl }),
};

const methodsOf = (thing) => Object.getOwnPropertyNames(thing).filter((name) => name !== "constructor" && typeof thing[name] === "function");

function methods(sdk) {
  const client = CLIENTS[sdk];
  const found = methodsOf(Object.getPrototypeOf(client));
  found.push(...methodsOf(CLASSES[sdk]).map((name) => `Lava.${name}`));
  for (const [name, resource] of Object.entries(client)) {
    if (resource?.constructor?.name.endsWith("Resource")) {
      const base = Object.getPrototypeOf(Object.getPrototypeOf(resource));
      const own = new Set([...methodsOf(Object.getPrototypeOf(resource)), ...methodsOf(base)]);
      own.delete("buildPaginationParams"); // reads no answer: a part of every list
      for (const key of own) if (!(key in Object.prototype)) found.push(`${name}.${key}`);
    }
  }
  return found.sort();
}

function helpers(sdk) {
  const client = CLIENTS[sdk];
  const older = Object.entries(client).filter(([name]) => name.endsWith("Url") && name !== "baseUrl");
  return { ...Object.fromEntries(older), ...client.providers };
}

async function call(sdk, path, args) {
  const names = path.split(".");
  const method = names.pop();
  const owner = names[0] === "Lava" ? CLASSES[sdk] : names.reduce((thing, name) => thing[name], CLIENTS[sdk]);
  return owner[method](...args);
}

const ACTIONS = { methods, helpers, call };
for await (const line of createInterface({ input: process.stdin })) {
  const { sdk, do: action, path, args } = JSON.parse(line);
  try {
    const value = await ACTIONS[action](sdk, path, args);
    process.stdout.write(`${JSON.stringify({ value })}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify({ error: error.message })}\n`);
  }
}

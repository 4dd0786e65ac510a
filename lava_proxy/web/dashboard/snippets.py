"""Programs to paste: a first call with a forward token, in the languages people use."""

from __future__ import annotations

import json
from dataclasses import dataclass

_MODEL = "gpt-4o-mini"
_CLAUDE = "claude-haiku-4-5"
_HELLO = '[{"role": "user", "content": "Say hello."}]'


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """`name` is unique on a page; `needs` is what to install first."""

    name: str
    label: str
    code: str
    needs: str = ""


def snippets(
    base_url: str, *, customer_id: str | None, meter_slug: str | None, token: str | None, by_anthropic: bool = False
) -> tuple[Snippet, ...]:
    """Without a token the programs make it from LAVA_SECRET_KEY: keys are stored hashed, so nobody here could.

    `base_url` ends with a slash. `by_anthropic`: Anthropic can be called and OpenAI cannot, so its programs come first.
    """
    root, api = base_url.rstrip("/"), base_url + "v1"
    members = {name: value for name, value in (("customer_id", customer_id), ("meter_slug", meter_slug)) if value is not None}
    shell, python, node = _shell(members, token), _python(members, token), _node(members, token)
    curl = Snippet(name="curl", label="curl", code=shell + (_curl_anthropic(api) if by_anthropic else _curl(api)))
    openai = (
        Snippet(name="python-openai", label="Python, openai", code=python + _python_openai(api), needs="pip install openai"),
        Snippet(name="node-openai", label="Node, openai", code=node + _node_openai(api), needs="npm install openai"),
    )
    anthropic = (
        Snippet(
            name="python-anthropic", label="Python, anthropic", code=python + _python_anthropic(root), needs="pip install anthropic"
        ),
        Snippet(
            name="node-anthropic", label="Node, anthropic", code=node + _node_anthropic(root), needs="npm install @anthropic-ai/sdk"
        ),
    )
    return (curl, *anthropic, *openai) if by_anthropic else (curl, *openai, *anthropic)


def _shell(members: dict[str, str], token: str | None) -> str:
    if token is not None:
        return f"TOKEN={token}\n"
    rest = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in members.items()).replace("'", "'\\''")
    return f"""TOKEN=$(printf '{{"secret_key":"%s"{rest.replace("%", "%%")}}}' "$LAVA_SECRET_KEY" | base64 | tr -d '\\n')\n"""


def _curl(api: str) -> str:
    body = f'{{"model": "{_MODEL}", "messages": {_HELLO}}}'
    return f"""curl {api}/chat/completions \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{body}'"""


def _curl_anthropic(api: str) -> str:
    body = f'{{"model": "{_CLAUDE}", "max_tokens": 200, "messages": {_HELLO}}}'
    return f"""curl {api}/messages \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "anthropic-version: 2023-06-01" \\
  -H "Content-Type: application/json" \\
  -d '{body}'"""


def _python(members: dict[str, str], token: str | None) -> str:
    if token is not None:
        return f"token = {json.dumps(token)}\n"
    rest = "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in members.items())
    return f"""import base64, json, os

members = {{"secret_key": os.environ["LAVA_SECRET_KEY"]{rest}}}
token = base64.b64encode(json.dumps(members).encode()).decode()
"""


def _python_openai(api: str) -> str:
    return f"""
from openai import OpenAI

client = OpenAI(base_url="{api}", api_key=token)
answer = client.chat.completions.create(model="{_MODEL}", messages={_HELLO})
print(answer.choices[0].message.content)"""


def _python_anthropic(root: str) -> str:
    return f"""
from anthropic import Anthropic

client = Anthropic(base_url="{root}", api_key=token)
answer = client.messages.create(model="{_CLAUDE}", max_tokens=200, messages={_HELLO})
print(answer.content[0].text)"""


def _node(members: dict[str, str], token: str | None) -> str:
    if token is not None:
        return f"const token = {json.dumps(token)};\n"
    rest = "".join(f", {name}: {json.dumps(value)}" for name, value in members.items())
    return f"""const members = {{ secret_key: process.env.LAVA_SECRET_KEY{rest} }};
const token = Buffer.from(JSON.stringify(members)).toString("base64");
"""


def _node_openai(api: str) -> str:
    return f"""
import OpenAI from "openai";

const client = new OpenAI({{ baseURL: "{api}", apiKey: token }});
const answer = await client.chat.completions.create({{
  model: "{_MODEL}", messages: [{{ role: "user", content: "Say hello." }}],
}});
console.log(answer.choices[0].message.content);"""


def _node_anthropic(root: str) -> str:
    return f"""
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({{ baseURL: "{root}", apiKey: token }});
const answer = await client.messages.create({{
  model: "{_CLAUDE}", max_tokens: 200, messages: [{{ role: "user", content: "Say hello." }}],
}});
console.log(answer.content[0].text);"""

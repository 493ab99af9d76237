"""Quick-start code that works when pasted: the right base URL and a model that the tenant may use."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

_PIP, _NPM = "pip install openai", "npm install openai"


@dataclass(frozen=True)
class Snippet:
    """``install``: what the language needs first, if anything."""

    id: str
    label: str
    code: str
    install: str = ""


def snippets(base_url: str, model: str, speaks: Sequence[str] = ("generate",)) -> list[Snippet]:
    """Code against ``base_url`` (it ends in ``/v1``), key from ``PENSTOCK_API_KEY``, for what the model can be asked.

    ``speaks`` as in ``worker.options.Speak``: chat, embeddings, a ranking, or a prediction, in this order.
    """
    if "generate" in speaks or not speaks:
        return _chat(base_url, json.dumps(model, ensure_ascii=False))
    if "embed" in speaks:
        return _embeddings(base_url, json.dumps(model, ensure_ascii=False))
    if "score" in speaks:
        body = {"model": model, "query": "Which is a fruit?", "documents": ["An apple", "A hammer"]}
        return _posted(f"{base_url}/rerank", body, "results")
    rows: dict[str, Any] = {"inputs": [[1.0, 2.0, 3.0, 4.0]]}
    address = f"{base_url.removesuffix('/v1')}/invocations/{quote(model, safe='/')}"
    return _posted(address, rows, "predictions" if "invocations" in speaks else "")


def _curl(address: str, body: str, *, flags: str = "") -> Snippet:
    quoted = body.replace("'", "'\\''")
    code = (
        f"curl{flags} {address} \\\n"
        '  -H "Authorization: Bearer $PENSTOCK_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d '{quoted}'"
    )
    return Snippet("curl", "curl", code)


def _chat(base_url: str, name: str) -> list[Snippet]:
    body = f'{{"model": {name}, "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
    python = (
        "import os\n"
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base_url}", api_key=os.environ["PENSTOCK_API_KEY"])\n'
        "stream = client.chat.completions.create(\n"
        f"    model={name},\n"
        '    messages=[{"role": "user", "content": "Hello"}],\n'
        "    stream=True,\n"
        ")\n"
        "for chunk in stream:\n"
        "    if chunk.choices:\n"
        '        print(chunk.choices[0].delta.content or "", end="", flush=True)'
    )
    javascript = (
        'import OpenAI from "openai";\n\n'
        f'const client = new OpenAI({{ baseURL: "{base_url}", apiKey: process.env.PENSTOCK_API_KEY }});\n'
        "const stream = await client.chat.completions.create({\n"
        f"  model: {name},\n"
        '  messages: [{ role: "user", content: "Hello" }],\n'
        "  stream: true,\n"
        "});\n"
        "for await (const chunk of stream) {\n"
        '  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");\n'
        "}"
    )
    return [
        _curl(f"{base_url}/chat/completions", body, flags=" -N"),
        Snippet("python", "Python", python, _PIP),
        Snippet("javascript", "JavaScript", javascript, _NPM),
    ]


def _embeddings(base_url: str, name: str) -> list[Snippet]:
    python = (
        "import os\n"
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base_url}", api_key=os.environ["PENSTOCK_API_KEY"])\n'
        "answer = client.embeddings.create(\n"
        f"    model={name},\n"
        '    input=["Hello"],\n'
        ")\n"
        "print(answer.data[0].embedding)"
    )
    javascript = (
        'import OpenAI from "openai";\n\n'
        f'const client = new OpenAI({{ baseURL: "{base_url}", apiKey: process.env.PENSTOCK_API_KEY }});\n'
        "const answer = await client.embeddings.create({\n"
        f"  model: {name},\n"
        '  input: ["Hello"],\n'
        "});\n"
        "console.log(answer.data[0].embedding);"
    )
    return [
        _curl(f"{base_url}/embeddings", f'{{"model": {name}, "input": ["Hello"]}}'),
        Snippet("python", "Python", python, _PIP),
        Snippet("javascript", "JavaScript", javascript, _NPM),
    ]


def _posted(address: str, body: dict[str, Any], member: str) -> list[Snippet]:
    """A request that OpenAI's client does not know; ``member`` of the answer is what is shown."""
    text = json.dumps(body, ensure_ascii=False)
    shown = f'["{member}"]' if member else ""
    python = (
        "import os\n"
        "import requests\n\n"
        "answer = requests.post(\n"
        f"    {json.dumps(address)},\n"
        '    headers={"Authorization": f"Bearer {os.environ[\'PENSTOCK_API_KEY\']}"},\n'
        f"    json={text},\n"
        ")\n"
        "answer.raise_for_status()\n"
        f"print(answer.json(){shown})"
    )
    return [_curl(address, text), Snippet("python", "Python", python, "pip install requests")]

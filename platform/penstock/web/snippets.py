"""Quick-start code that works when pasted: the right base URL and a model that the tenant may use."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Snippet:
    id: str
    label: str
    code: str


def snippets(base_url: str, model: str) -> list[Snippet]:
    """curl, Python and JavaScript against ``base_url`` (it ends in ``/v1``), key from ``PENSTOCK_API_KEY``."""
    name = json.dumps(model, ensure_ascii=False)
    body = f'{{"model": {name}, "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
    shell_body = body.replace("'", "'\\''")
    curl = (
        f"curl -N {base_url}/chat/completions \\\n"
        '  -H "Authorization: Bearer $PENSTOCK_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d '{shell_body}'"
    )
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
        Snippet("curl", "curl", curl),
        Snippet("python", "Python", python),
        Snippet("javascript", "JavaScript", javascript),
    ]

"""The conversation of a request of Anthropic's API: its fields, and the chat that engines are asked for it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from serving.gateway import errors
from serving.gateway.dialects import base, media
from serving.gateway.dialects.base import utf8_length
from serving.gateway.usage import UNREADABLE
from serving.policy.admission import Ask
from serving.policy.images import Gallery

MAX_MESSAGES = 4096
_BILLING = "x-anthropic-billing-header"
"""Begins a line that Anthropic's own tools put in front of each prompt, another one each time: nothing after it would
be found in the prefix cache."""

_FAILED = "Error"


class Source(msgspec.Struct):
    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""


class Block(msgspec.Struct):
    """A block of content, with the fields of all kinds."""

    type: str
    text: str = ""
    thinking: str = ""
    source: Source | None = None
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw()
    tool_use_id: str = ""
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, msgspec.Raw] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    type: str


class Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: msgspec.Raw


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: Format | None = None


class Metadata(msgspec.Struct):
    user_id: str | None = None


class Conversation(msgspec.Struct):
    """What both routes share."""

    model: str
    messages: list[Message]
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    mcp_servers: msgspec.Raw = msgspec.Raw()
    container: msgspec.Raw = msgspec.Raw()
    priority: msgspec.Raw = msgspec.Raw()


class Fields(Conversation, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None


_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Chat:
    """A conversation as the engine's chat route takes it. Raises ApiError 400 for what no engine could be told."""

    def __init__(self, fields: Conversation) -> None:
        self.messages: list[dict[str, Any]] = []
        self.text_bytes = 0
        self.images = Gallery()
        self.instructions: list[str] = []
        if fields.priority:
            raise base.priority_refused()
        for name in ("mcp_servers", "container"):
            if bytes(getattr(fields, name)) not in (b"", b"null", b"[]"):
                raise errors.bad_request(
                    f"'{name}' runs on Anthropic's servers and is not available here. Leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )
        if not fields.messages:
            raise errors.bad_request("'messages' must hold at least one message.", param="messages", code="empty_array")
        base.require_range("messages", len(fields.messages), 1, MAX_MESSAGES)
        if fields.system:
            self._system(fields.system, "system")
        for number, message in enumerate(fields.messages):
            self._message(message, f"messages[{number}].content")
        if self.instructions:
            # Also those of later messages: many chat templates allow no other place.
            self.messages.insert(0, {"role": "system", "content": "\n\n".join(self.instructions)})
        if not self.messages:
            raise errors.bad_request("'messages' say nothing.", param="messages", code="empty_array")
        self.members: dict[str, Any] = {"model": fields.model, "messages": self.messages}
        if fields.tools:
            base.require_few(len(fields.tools), base.MAX_TOOLS, "tools")
            tools = self.members["tools"] = [_tool(tool, number) for number, tool in enumerate(fields.tools)]
            self.text_bytes += len(msgspec.json.encode(tools))
            self.members["tool_choice"] = "auto"
            if fields.tool_choice is not None:
                self._choose(fields.tool_choice)
        elif fields.tool_choice is not None and fields.tool_choice.type in ("any", "tool"):
            raise errors.bad_request(
                "'tool_choice' asks for a tool, but there are no 'tools'.", param="tool_choice", code="invalid_value"
            )
        last = self.messages[-1] if self.messages else {}
        if last.get("role") == "assistant" and last.get("content") and "tool_calls" not in last:
            # What the client has begun, the model goes on with.
            self.members["add_generation_prompt"] = False
            self.members["continue_final_message"] = True
        if fields.thinking is not None:
            is_wanted = fields.thinking.type != "disabled"
            self.members["chat_template_kwargs"] = {"enable_thinking": is_wanted}
        if fields.output_config is not None and fields.output_config.effort is not None:
            self.members["reasoning_effort"] = fields.output_config.effort

    def ask(self, max_output: int) -> Ask:
        return Ask(
            prompts=1,
            choices=1,
            text_bytes=self.text_bytes,
            messages=len(self.messages),
            media=len(self.images.bounds),
            images=tuple(self.images.bounds),
            max_output=max_output,
        )

    def _system(self, content: str | list[Block], param: str) -> None:
        texts = [content] if isinstance(content, str) else [_text(block, param) for block in content]
        text = "".join(text.partition("\n")[2] if text.startswith(_BILLING) else text for text in texts)
        self.text_bytes += utf8_length(text)
        if text:
            self.instructions.append(text)

    def _message(self, message: Message, param: str) -> None:
        if message.role == "system":
            self._system(message.content, param)
        elif isinstance(message.content, str):
            self.text_bytes += utf8_length(message.content)
            self.messages.append({"role": message.role, "content": message.content})
        elif message.role == "user":
            self._user(message.content, param)
        else:
            self._assistant(message.content, param)

    def _user(self, blocks: list[Block], param: str) -> None:
        """Results of tools first, each a message of its own that follows the calls; then what the user says."""
        parts: list[dict[str, Any]] = []
        is_answer = False
        base.require_few(len(blocks), base.MAX_PARTS, param)
        for number, block in enumerate(blocks):
            at = f"{param}[{number}]"
            if block.type == "tool_result":
                parts.extend(self._tool_result(block, at))
                is_answer = True
            else:
                parts.extend(self._part(block, at))
        if not (parts or is_answer):
            raise errors.bad_request(f"'{param}' must not be empty.", param=param, code="empty_array")
        self._put("user", parts)

    def _put(self, role: str, parts: list[dict[str, Any]], **more: Any) -> None:
        if len(parts) == 1 and parts[0]["type"] == "text":
            more["content"] = parts[0]["text"]
        elif parts:
            more["content"] = parts
        if more:
            self.messages.append({"role": role, **more})

    def _part(self, block: Block, at: str) -> list[dict[str, Any]]:
        if block.type == "image":
            url = _image(block.source, at)
            media.add_image(self.images, url, f"{at}.source")
            return [{"type": "image_url", "image_url": {"url": url}}]
        text = _document(block.source, at) if block.type == "document" else _text(block, at)
        self.text_bytes += utf8_length(text)
        return [{"type": "text", "text": text}] if text else []

    def _tool_result(self, block: Block, at: str) -> list[dict[str, Any]]:
        """Puts a message of the tool's own. Returns the images, which such a message cannot hold."""
        parts: list[dict[str, Any]] = []
        if isinstance(block.content, str):
            self.text_bytes += utf8_length(block.content)
            parts.append({"type": "text", "text": block.content})
        for number, each in enumerate(block.content or () if not isinstance(block.content, str) else ()):
            parts.extend(self._part(each, f"{at}.content[{number}]"))
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        if block.is_error:
            # A chat has no field for it.
            text = f"{_FAILED}: {text}" if text else _FAILED
            self.text_bytes += len(_FAILED)
        self.messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
        return [part for part in parts if part["type"] != "text"]

    def _assistant(self, blocks: list[Block], param: str) -> None:
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        thoughts: list[str] = []
        base.require_few(len(blocks), base.MAX_PARTS, param)
        for number, block in enumerate(blocks):
            at = f"{param}[{number}]"
            if block.type == "thinking":
                self.text_bytes += utf8_length(block.thinking)
                thoughts.append(block.thinking)
            elif block.type == "tool_use":
                calls.append(self._call(block, at))
            elif block.type != "redacted_thinking":
                parts.extend(self._part(block, at))
        more: dict[str, Any] = {"reasoning": "".join(thoughts)} if thoughts else {}
        if calls:
            more["tool_calls"] = calls
        self._put("assistant", parts, **more)

    def _call(self, block: Block, at: str) -> dict[str, Any]:
        arguments = bytes(block.input) or b"{}"
        try:
            _decode_object(arguments)
        except UNREADABLE:
            raise errors.bad_request(
                f"'{at}.input' must be an object.", param=f"{at}.input", code="invalid_type"
            ) from None
        self.text_bytes += len(arguments) + utf8_length(block.name)
        function = {"name": block.name, "arguments": arguments.decode()}
        return {"id": block.id, "type": "function", "function": function}

    def _choose(self, choice: ToolChoice) -> None:
        if choice.type == "tool":
            if not choice.name:
                raise errors.bad_request(
                    "Missing required parameter: 'tool_choice.name'.",
                    param="tool_choice.name",
                    code="missing_required_parameter",
                )
            self.members["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            self.members["tool_choice"] = {"any": "required"}.get(choice.type, choice.type)
        if choice.disable_parallel_tool_use:
            self.members["parallel_tool_calls"] = False


def _tool(tool: Tool, number: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise errors.bad_request(
            f"Tools of type '{tool.type[:60]}' are Anthropic's own and not available here. Describe the tool with "
            "'name' and 'input_schema'.",
            param=f"tools[{number}].type",
            code="unsupported_parameter",
        )
    if tool.input_schema is None:
        param = f"tools[{number}].input_schema"
        raise errors.bad_request(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    schema: dict[str, Any] = {"type": "object"} | tool.input_schema
    function: dict[str, Any] = {"name": tool.name, "parameters": schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _text(block: Block, at: str) -> str:
    if block.type != "text":
        raise _unsupported(f"Blocks of type '{block.type[:40]}'", at)
    return block.text


def _image(source: Source | None, at: str) -> str:
    if source is None:
        param = f"{at}.source"
        raise errors.bad_request(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    if source.type == "url":
        return source.url
    if source.type != "base64":
        raise _unsupported(f"Image sources of type '{source.type[:40]}'", f"{at}.source")
    return f"data:{source.media_type or 'image/jpeg'};base64,{source.data}"


def _document(source: Source | None, at: str) -> str:
    if source is None or source.type != "text":
        raise _unsupported("Documents that are not plain text", f"{at}.source")
    return source.data


def _unsupported(what: str, at: str) -> errors.ApiError:
    return errors.bad_request(f"{what} are not supported.", param=at, code="invalid_value")

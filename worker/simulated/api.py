"""Answers in vLLM's shapes: one ``Call`` per request takes the tokens of its sequences and writes them out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from worker.simulated.engine import Engine
from worker.simulated.requestlog import RequestLine
from worker.simulated.requests import ApiError, Plan
from worker.simulated.scheduler import Sequence
from worker.simulated.tokenizer import VOCABULARY

_TEXTS = tuple(token.decode("utf-8", "replace") for token in VOCABULARY)
_JSON_TEXTS = tuple(msgspec.json.encode(text) for text in _TEXTS)
_DONE = b"data: [DONE]\n\n"
ENGINE_ERROR = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Responder(Protocol):
    """Writes one HTTP response."""

    def start_stream(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def end_stream(self) -> None: ...

    def send(self, status: int, body: bytes) -> None: ...


class _Choice:
    """State of one choice: the text that may still become part of a stop string, and for whole answers all of it."""

    __slots__ = ("finish", "has_role", "held", "index", "sent_tokens", "sequence", "stop_reason", "text", "tokens")

    def __init__(self, index: int, sequence: Sequence, prefix: str) -> None:
        self.index = index
        self.sequence = sequence
        self.text: list[str] = [prefix] if prefix else []
        self.held = ""
        self.tokens = 0
        self.sent_tokens = 0
        self.has_role = False
        self.finish: str | None = None
        self.stop_reason: str | None = None


class Call:
    """One completion request from its plan to its log line. ``on_end`` is called once, when it is over."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        responder: Responder,
        *,
        request_id: str,
        call_id: str,
        path: str,
        model: str,
        on_end: Callable[[Call, RequestLine], None],
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.responder = responder
        self.request_id = request_id
        self.id = call_id
        self.path = path
        self.model = model
        self.received_at = time.time()
        self._first_token_at: float | None = None
        self._on_end = on_end
        self._out: list[bytes] = []
        self._left = len(plan.prompts)
        self._is_over = False
        self._hold = max((len(text) for text in plan.stop), default=1) - 1
        self.choices = [
            _Choice(
                i,
                Sequence(
                    prompt,
                    max_tokens=plan.max_tokens[i],
                    eos_after=plan.eos_after[i],
                    seed=plan.seeds[i],
                    priority=plan.priority,
                    salt=plan.salt,
                    owner=self,
                    index=i,
                ),
                plan.echo[i] if plan.echo else "",
            )
            for i, prompt in enumerate(plan.prompts)
        ]
        is_chat = plan.dialect == "chat"
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        envelope = {"id": call_id, "object": kind, "created": int(self.received_at), "model": model}
        self._head = b"data: " + msgspec.json.encode(envelope)[:-1]
        text_key = b'"delta":{"content":' if is_chat else b'"text":'
        self._text_heads = [b'%b,"choices":[{"index":%d,%b' % (self._head, c.index, text_key) for c in self.choices]
        self._text_close = b"}" if is_chat else b""

    def start(self) -> None:
        """Queue the sequences; a stream's header goes out at once."""
        if self.plan.is_stream:
            self.responder.start_stream()
        for choice in self.choices:
            self.engine.submit(choice.sequence)

    def emit(self, sequence: Sequence, token: int, reason: str | None) -> None:
        """Take a token from the engine."""
        if self._is_over:
            return
        fault = self.engine.fault
        if fault.mode == "error_done" and sum(c.tokens for c in self.choices) >= fault.after_tokens:
            self.fail(ENGINE_ERROR)
            return
        choice = self.choices[sequence.index]
        choice.tokens += 1
        if self._first_token_at is None:
            self._first_token_at = time.time()
        if self.plan.stop:
            piece, reason = self._without_stop(choice, _TEXTS[token], reason)
            self._put(choice, piece, msgspec.json.encode(piece), reason)
        else:
            self._put(choice, _TEXTS[token], _JSON_TEXTS[token], reason)
        if reason:
            choice.finish = reason
            self._left -= 1

    def flush(self) -> None:
        """Write what this step brought; end the answer when every choice has finished."""
        if self._is_over:
            return
        if self._left == 0 and not self.plan.is_stream:
            self._over("completed")
            self.responder.send(200, msgspec.json.encode(self._whole()))
            return
        if self._left == 0:
            if self.plan.include_usage:
                self._out.append(self._head + b',"choices":[],"usage":' + msgspec.json.encode(self._usage()) + b"}\n\n")
            self._out.append(_DONE)
        if self._out:
            self.responder.write(b"".join(self._out))
            self._out.clear()
            for choice in self.choices:
                choice.sent_tokens = choice.tokens
        if self._left == 0:
            self._over("completed")
            self.responder.end_stream()

    def abort(self) -> None:
        """The client has left: stop computing at once."""
        if not self._is_over:
            self._out.clear()
            self._over("abort")

    def fail(self, message: str) -> None:
        """End with an engine error: inside a stream as an event followed by [DONE], as vLLM does."""
        if self._is_over:
            return
        error = ApiError(500, message, kind="InternalServerError")
        if not self.plan.is_stream:
            self._over("error")
            self.responder.send(500, error.body)
            return
        self._out.append(b"data: " + error.body + b"\n\n" + _DONE)
        self.responder.write(b"".join(self._out))
        self._out.clear()
        for choice in self.choices:
            choice.sent_tokens = choice.tokens
        self._over("error")
        self.responder.end_stream()

    def _over(self, how: str) -> None:
        self._is_over = True
        for choice in self.choices:
            self.engine.end(choice.sequence, "error" if how == "error" else "abort")
        made = sum(choice.tokens for choice in self.choices)
        is_sent = not self.plan.is_stream and how == "completed"
        line = RequestLine(
            id=self.id,
            request_id=self.request_id,
            path=self.path,
            stream=self.plan.is_stream,
            prompt_tokens=self._prompt_tokens(),
            cached_tokens=self._cached_tokens(),
            output_tokens=made if is_sent else sum(choice.sent_tokens for choice in self.choices),
            generated_tokens=made,
            finish=(self.choices[-1].finish or how) if how == "completed" else how,
            received_at=self.received_at,
            first_token_at=self._first_token_at,
            ended_at=time.time(),
        )
        self._on_end(self, line)

    def _without_stop(self, choice: _Choice, piece: str, reason: str | None) -> tuple[str, str | None]:
        """Return the text that can go out now, and the finish reason; what may begin a stop string is held back."""
        text = choice.held + piece
        found = [(text.find(stop), stop) for stop in self.plan.stop if stop in text]
        if found:
            at, choice.stop_reason = min(found)
            choice.held = ""
            self.engine.end(choice.sequence, "stop")
            return text[:at], "stop"
        if reason:
            choice.held = ""
            return text, reason
        split = max(0, len(text) - self._hold)
        choice.held = text[split:]
        return text[:split], None

    def _put(self, choice: _Choice, text: str, encoded: bytes, reason: str | None) -> None:
        if not self.plan.is_stream:
            choice.text.append(text)
            return
        out = self._out
        if not choice.has_role:
            choice.has_role = True
            self._open(choice)
        if reason is None:
            finish = b'"logprobs":null,"finish_reason":null'
            if self.plan.dialect == "completions":
                finish += b',"stop_reason":null'
        else:
            stop = msgspec.json.encode(choice.stop_reason)
            finish = b'"logprobs":null,"finish_reason":"%b","stop_reason":%b' % (reason.encode(), stop)
        head = self._text_heads[choice.index]
        usage = self._running_usage(choice, choice.tokens) if self.plan.continuous_usage else b""
        out.append(b"%b%b%b,%b}]%b}\n\n" % (head, encoded, self._text_close, finish, usage))

    def _open(self, choice: _Choice) -> None:
        """First event of a choice: its role (chat), or the prompt again (``echo``)."""
        usage = self._running_usage(choice, 0) if self.plan.continuous_usage else b""
        if self.plan.dialect == "chat":
            delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
            self._out.append(b'%b,"choices":[{"index":%d,%b}]%b}\n\n' % (self._head, choice.index, delta, usage))
        elif choice.text:
            text = msgspec.json.encode(choice.text[0])
            finish = b'"logprobs":null,"finish_reason":null,"stop_reason":null'
            self._out.append(b"%b%b,%b}]%b}\n\n" % (self._text_heads[choice.index], text, finish, usage))

    def _running_usage(self, choice: _Choice, completion: int) -> bytes:
        prompt = choice.sequence.prompt_tokens
        return b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (
            prompt,
            prompt + completion,
            completion,
        )

    def _prompt_tokens(self) -> int:
        """Tokens of the prompts, each once however many choices it has."""
        return sum(choice.sequence.prompt_tokens for choice in self.choices[:: self.plan.n])

    def _cached_tokens(self) -> int:
        return sum(choice.sequence.cached_tokens or 0 for choice in self.choices[:: self.plan.n])

    def _usage(self) -> dict[str, Any]:
        prompt = self._prompt_tokens()
        completion = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens()},
        }

    def _whole(self) -> dict[str, Any]:
        is_chat = self.plan.dialect == "chat"
        choices: list[dict[str, Any]] = []
        for choice in self.choices:
            text = "".join(choice.text)
            answer: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}}
                if is_chat
                else {"text": text}
            )
            choices.append(
                {"index": choice.index}
                | answer
                | {"logprobs": None, "finish_reason": choice.finish, "stop_reason": choice.stop_reason}
            )
        return {
            "id": self.id,
            "object": "chat.completion" if is_chat else "text_completion",
            "created": int(self.received_at),
            "model": self.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": None,
            "usage": self._usage(),
            "kv_transfer_params": None,
        }

"""A tiny engine for supervisor tests: vLLM's routes over the standard library, with a core process of its own.

``--mode``: serve | exit-at-start | never-healthy | ignore-term | crash-after SECONDS | bad-warm-up
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CORE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", default="serve")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--model", default="fake")
    chosen = parser.parse_args()
    if chosen.mode == "exit-at-start":
        print("OSError: [Errno 98] Address already in use", flush=True)
        sys.exit(1)
    core = subprocess.Popen([sys.executable, "-c", CORE])
    if chosen.mode == "ignore-term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:

        def end(*_: object) -> None:
            core.kill()
            # Real vLLM, too, ends with code 0 whatever the reason.
            os._exit(0)

        signal.signal(signal.SIGTERM, end)
    time.sleep(chosen.delay)
    if chosen.mode == "crash":
        threading.Timer(1.5, os._exit, (0,)).start()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: str) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if self.path == "/health":
                self.answer(503 if chosen.mode == "never-healthy" else 200, "")
            elif self.path == "/metrics":
                self.answer(
                    200, 'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'
                )
            elif self.path == "/version":
                self.answer(200, '{"version": "0.0.fake"}')
            else:
                self.answer(200, json.dumps({"data": [{"id": chosen.model, "max_model_len": 512}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_bad = chosen.mode == "bad-warm-up" or body["max_tokens"] != 1
            self.answer(400 if is_bad else 200, json.dumps({"error": {"message": "no such model"}}))

        def log_message(self, *_: object) -> None:
            return

    print("listening", flush=True)
    ThreadingHTTPServer(("127.0.0.1", chosen.port), Handler).serve_forever()


if __name__ == "__main__":
    main()

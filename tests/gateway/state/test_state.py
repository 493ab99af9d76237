"""The client of the shared state, against a real server."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.gateway import state as state_module
from serving.gateway.state import Script, State, StateUnavailable, connect, ring_push, ring_read


async def test_calls_made_together_share_one_round_trip(state_url):
    state = State(state_url)
    await state.call("PING")
    sent = []
    original = state._exchange

    async def counted(batch):
        sent.append(len(batch))
        await original(batch)

    state._exchange = counted
    answers = await asyncio.gather(*(state.call("INCR", "n") for _ in range(50)))
    assert sorted(answers) == list(range(1, 51))
    assert sent == [50]
    await state.close()


async def test_a_script_the_server_does_not_know_is_sent_whole(state_url):
    state = State(state_url)
    text = "return ARGV[1] .. KEYS[1]"
    unknown = Script(text, "0" * 40)
    assert await state.run(unknown, ["k"], ["v"]) == b"vk"
    await state.close()


async def test_a_refused_command_fails_alone(state_url):
    state = State(state_url)
    good, bad, good_too = await asyncio.gather(
        state.call("SET", "s", "x"), state.call("LPUSH", "s", "y"), state.call("GET", "s"), return_exceptions=True
    )
    assert (good, good_too) == (b"OK", b"x")
    assert "WRONGTYPE" in str(bad)
    await state.close()


async def test_a_cancelled_call_does_not_shift_the_answers_of_others(state_url):
    state = State(state_url)
    tasks = [asyncio.ensure_future(state.call("ECHO", str(i))) for i in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert list(answers[1::2]) == [str(i).encode() for i in range(1, 20, 2)]
    assert await state.call("ECHO", "after") == b"after"
    await state.close()


async def test_the_server_is_the_one_that_was_asked_for(state_url):
    state = State(state_url)
    told = await state.call("INFO", "server")
    wanted = os.environ.get("PENSTOCK_TEST_STATE_SERVER")
    assert (b"redis_version:6.2." in told) if wanted else (b"valkey" in told)
    await state.close()


async def test_it_fails_fast_while_the_server_is_away_and_comes_back(valkey_server):
    server = valkey_server()
    state = State(server.url, timeout_s=6.0)
    # On a busy disk an append may reach the file after the answer; the kill is meant to find it there.
    await state.call("CONFIG", "SET", "appendfsync", "always")
    await state.call("SET", "k", "v")
    first = state.epoch
    server.stop(signal.SIGKILL)
    for _ in range(200):
        with pytest.raises(StateUnavailable):
            await state.call("GET", "k")
    server.start()
    async with asyncio.timeout(5):
        while True:
            try:
                assert await state.call("GET", "k") == b"v"
                break
            except StateUnavailable:
                await asyncio.sleep(0.02)
    assert first
    assert state.epoch == first
    server.stop(signal.SIGKILL)
    server.wipe()
    server.start()
    async with asyncio.timeout(5):
        while state.epoch == first:
            try:
                await state.call("GET", "k")
            except StateUnavailable:
                await asyncio.sleep(0.02)
    await state.close()


async def test_a_frozen_server_is_unavailable_within_the_timeout(valkey_server):
    server = valkey_server()
    state = State(server.url, timeout_s=0.3)
    await state.call("PING")
    server.process.send_signal(signal.SIGSTOP)
    while psutil.Process(server.process.pid).status() != psutil.STATUS_STOPPED:
        await asyncio.sleep(0.001)
    try:
        async with asyncio.timeout(2):
            with pytest.raises(StateUnavailable):
                await state.call("PING")
    finally:
        server.process.send_signal(signal.SIGCONT)
    await state.close()


def test_rings_keep_the_newest_first_and_are_trimmed(state_url):
    client = connect(state_url)
    for i in range(7):
        ring_push(client, {"r:1": {"i": i}, "r:2": {"i": -i}}, keep=5)
    assert [s["i"] for s in ring_read(client, "r:1", 10)] == [6, 5, 4, 3, 2]
    assert [s["i"] for s in ring_read(client, "r:2", 2)] == [-6, -5]
    client.close()


def test_no_credentials_in_a_message():
    assert "secret" not in state_module._place("redis://user:secret@host:1/0")


def test_policy_state_round_trips(state_url):
    client = connect(state_url)
    assert state_module.policy_state_read(client, "scale", "d") is None
    state_module.policy_state_write(client, "scale", "d", {"a": [1, 2.5]})
    assert state_module.policy_state_read(client, "scale", "d") == {"a": [1, 2.5]}
    client.close()


def test_the_epoch_is_made_once(valkey_url):
    client = connect(valkey_url)
    client.delete(state_module.EPOCH)
    epoch = state_module.ensure_epoch(client)
    assert epoch == state_module.ensure_epoch(client)
    made_ms = int(epoch.rpartition(".")[2])
    assert abs(made_ms / 1000 - client.time()[0]) <= 2
    client.close()


RESET = """
import asyncio, socket, struct, sys, threading, time
import uvloop
from serving.gateway.state import State, StateUnavailable

def serve(listener):
    while True:
        peer, _ = listener.accept()
        file = peer.makefile("rb")
        while line := file.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(file.readline()[1:])
                words.append(file.read(size + 2)[:-2])
            peer.sendall(b"$3\\r\\nx.1\\r\\n" if words[0] == b"EVAL" else b"+OK\\r\\n")
            if words[0] == b"PING":
                time.sleep(0.05)
                file.close()
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
                break

async def main():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    state = State(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
    await state.call("PING")
    await asyncio.sleep(0.3)
    failed = 0
    for _ in range(40):
        try:
            async with asyncio.timeout(3):
                await state.call("GET", "a")
            print("answered after", failed)
            break
        except StateUnavailable:
            failed += 1
            await asyncio.sleep(0.05)
    await state.close()

uvloop.run(main())
"""


def test_a_connection_that_is_reset_while_idle_is_made_anew():
    """With production's event loop, which has an error of its own for it."""
    done = subprocess.run(
        [sys.executable, "-c", RESET], capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.startswith("answered after"), done.stdout + done.stderr

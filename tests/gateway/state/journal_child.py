"""A gateway's journal in a process of its own, to be killed. Says on stdout what it did, after each call returned."""

import asyncio
import os
import random
import sys
import time
from pathlib import Path

from serving.gateway.journal import Journal
from serving.gateway.records import AdmitLine, EndLine, ProgressLine, Usage
from serving.gateway.shipper import Shipper
from serving.gateway.state import State


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def main(directory, url, seed, name):
    rng = random.Random(seed)
    journal = Journal(Path(directory), name, time.time, rotate_bytes=rng.choice([4000, 64 * 2**20]))
    state = State(url)
    shipper = Shipper(state, journal, price=lambda admit, usage: 0.0)
    await journal.start()
    await shipper.start()
    open_requests, tokens, count = [], {}, 0
    while True:
        action = rng.random()
        if action < 0.4 or not open_requests:
            request = f"{name}-{count}"
            count += 1
            usage = Usage(input_tokens=7, output_tokens=9)
            journal.admit(
                AdmitLine(
                    id=request,
                    at=time.time(),
                    tenant="t",
                    key="k",
                    pool="p",
                    deployment="d",
                    revision="r",
                    model="m",
                    dialect="chat",
                    profile_version=1,
                    estimated_mu=1.0,
                    estimated=usage,
                )
            )
            say("admit", request)
            open_requests.append(request)
            tokens[request] = 0
        elif action < 0.7:
            request = rng.choice(open_requests)
            tokens[request] += 1
            usage = Usage(input_tokens=7, output_tokens=tokens[request])
            journal.progress(ProgressLine(id=request, at=time.time(), replica="r1", usage=usage))
            say("progress", request, tokens[request])
        else:
            request = open_requests.pop(rng.randrange(len(open_requests)))
            usage = Usage(input_tokens=7, output_tokens=tokens[request])
            journal.end(
                EndLine(id=request, at=time.time(), outcome="completed", status=200, usage=usage, actual_mu=2.0)
            )
            say("end", request, tokens[request])
        if rng.random() < 0.1:
            await asyncio.sleep(rng.choice([0, 0.001, 0.02]))


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))

#!/usr/bin/python3 -B
"""A client of the loss matrix: aiohttp, with one session and its connector for all tasks.
A stream (sse, websocket) is one request, from its beginning until the time is over: 10 s of silence are its end."""

import asyncio
import json

import aiohttp
from load import PATHS, Load, WrongAnswer

load = Load(f"python-aiohttp {aiohttp.__version__}", [*PATHS, "sse", "websocket"])


async def get(session):
    async with session.get(load.url + PATHS[load.work]) as answer:
        return load.answered(answer.status, answer.headers.get("x-server"), await answer.text())


async def sse(session):
    timeout = aiohttp.ClientTimeout(total=None, sock_read=10)
    async with session.get(load.url + "/events", timeout=timeout) as answer:
        server, sequence = answer.headers.get("x-server"), 0
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            sequence += 1
            if json.loads(line[6:]) != {"server": server, "sequence": sequence}:
                raise WrongAnswer(f"event {sequence} of {server} is {line!r}")
            if load.over:
                return server
    raise WrongAnswer("the stream of events ended")


async def websocket(session):
    async with session.ws_connect(load.url + "/ws") as socket:
        number = 0
        while True:
            number += 1
            await socket.send_str(str(number))
            server, _, echo = (await socket.receive_str(timeout=10)).partition(": ")
            if echo != str(number):
                raise WrongAnswer(f"echo of {number} is {echo!r}")
            if load.over:
                return server
            await asyncio.sleep(3)


async def main():
    work = {"sse": sse, "websocket": websocket}.get(load.work, get)
    async with aiohttp.ClientSession() as session:
        await load.tasks(lambda: work(session))


asyncio.run(main())

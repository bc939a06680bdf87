#!/usr/bin/python3 -B
"""A client of the loss matrix: httpx, with one AsyncClient and its pool for all tasks.
The pool is as large as there are workers; all else is the default, with too short a time to read for polls."""

import asyncio

import httpx
from load import PATHS, Load

load = Load(f"python-httpx {httpx.__version__}", ["quick", "slow", "chunked"])


async def main():
    limits = httpx.Limits(max_connections=load.workers, max_keepalive_connections=load.workers)
    async with httpx.AsyncClient(limits=limits) as client:

        async def request():
            answer = await client.get(load.url + PATHS[load.work])
            return load.answered(answer.status_code, answer.headers.get("x-server"), answer.text)

        await load.tasks(request)


asyncio.run(main())

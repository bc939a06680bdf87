#!/usr/bin/python3 -B
"""A client of the loss matrix: redis-py, with one ConnectionPool for all threads. Every command is a request: in turn
INCR (slow: a BLPOP that finds nothing for 2 s) and GET of the server's name, which `redis-cli set server b1` sets."""

import itertools

import redis
from load import Load, WrongAnswer

load = Load(f"redis-py {redis.__version__}", ["quick", "slow"])
client = redis.Redis(connection_pool=redis.ConnectionPool.from_url(load.url, decode_responses=True))
turns = itertools.count()


def request():
    if next(turns) % 2 == 0:
        name = client.get("server")
        if not name:
            raise WrongAnswer(f"the server's name is {name!r}")
        return name
    if load.work == "quick":
        count = client.incr("matrix:count")
        if not isinstance(count, int) or count < 1:
            raise WrongAnswer(f"INCR gave {count!r}")
    else:
        found = client.blpop("matrix:none", timeout=2)
        if found is not None:
            raise WrongAnswer(f"BLPOP found {found!r}")
    return None


load.threads(request)

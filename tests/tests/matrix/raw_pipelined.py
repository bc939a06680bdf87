#!/usr/bin/python3 -B
"""A client of the loss matrix: HTTP/1.1 over plain sockets, one for each worker, kept for the next request or burst.
Bursts: four requests at once. Pipelined: in every other burst the second answer takes 2 s and holds up the rest. A burst
is one request."""

import select
import socket
import threading
import urllib.parse

from load import PATHS, Load, WrongAnswer

load = Load("plain sockets", ["quick", "slow", "bursts", "pipelined"])
parts = urllib.parse.urlsplit(load.url)
mine = threading.local()


def connected():
    """The worker's connection: a new one if the old one has something to read, as the pools of libraries do it."""
    stream = getattr(mine, "stream", None)
    if stream and select.select([stream], [], [], 0)[0]:
        stream.close()
        stream = None
    mine.stream = stream or socket.create_connection((parts.hostname, parts.port))
    return mine.stream


def answer(reader):
    line = reader.readline()
    if not line:
        raise ConnectionError("the connection ended before an answer")
    headers = {}
    while (header := reader.readline()).strip():
        name, _, value = header.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = reader.read(int(headers["content-length"])).decode()
    return load.answered(int(line.split()[1]), headers.get("x-server"), body)


def burst(paths):
    """Sends the requests at once and reads the answers in turn."""
    stream = connected()
    try:
        stream.sendall("".join(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n" for path in paths).encode())
        with stream.makefile("rb") as reader:
            servers = {answer(reader) for _ in paths}
        if len(servers) > 1:
            raise WrongAnswer(f"one connection has answers of {sorted(servers)}")
        return servers.pop()
    except BaseException:
        mine.stream = None
        stream.close()
        raise


def request():
    if load.work == "bursts":
        return burst(["/quick"] * 4)
    if load.work != "pipelined":
        return burst([PATHS[load.work]])
    mine.bursts = getattr(mine, "bursts", 0) + 1
    return burst(["/quick", "/quick" if mine.bursts % 2 else "/slow", "/quick", "/quick"])


load.threads(request)

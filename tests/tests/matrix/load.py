"""What the Python clients of the loss matrix share: the command line, the loop of the workers and the report.
A request is a function that returns the name of the server that answered, if it told, or raises: that is a failure."""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import threading
import time

PATHS = {"quick": "/quick", "slow": "/slow", "chunked": "/chunked?parts=3&pause=3000", "poll": "/poll"}
SIGNALS = {signal.SIGTERM, signal.SIGINT}
GRACE = 15  # seconds in which the last requests may end


class WrongAnswer(Exception):
    """An answer came, but not the one to expect."""


class Load:
    def __init__(self, client, kinds):
        parser = argparse.ArgumentParser()
        parser.add_argument("--url", required=True)
        parser.add_argument("--seconds", type=float, required=True)
        parser.add_argument("--workers", type=int, required=True)
        parser.add_argument("--work", required=True)
        parser.add_argument("--think", type=float, default=20, metavar="MS")
        self.arguments = arguments = parser.parse_args()
        if arguments.work not in kinds:
            print(f"{client} has no work '{arguments.work}', only {', '.join(kinds)}.", file=sys.stderr)
            sys.exit(2)
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # also in the threads of libraries
        self.client = client
        self.url = arguments.url.rstrip("/")
        self.work = arguments.work
        self.workers = arguments.workers
        self.over = False
        self.requests = self.failed = 0
        self.errors, self.servers = {}, {}
        self.lock = threading.Lock()

    def pause(self):
        return self.arguments.think / 1000 * random.uniform(0.5, 1.5)

    def succeed(self, server):
        with self.lock:
            self.requests += 1
            if server:
                self.servers[server] = self.servers.get(server, 0) + 1

    def fail(self, error):
        text = describe(error)
        with self.lock:
            self.requests += 1
            self.failed += 1
            if text not in self.errors and len(self.errors) >= 9:
                text = "others"
            if text not in self.errors:
                print(f"{time.strftime('%T')} {self.client}: {text}", file=sys.stderr)
            self.errors[text] = self.errors.get(text, 0) + 1

    def threads(self, request):
        """Works with threads until the time is over or SIGTERM comes, and ends the program with the report."""
        def worker():
            while not self.over:
                try:
                    self.succeed(request())
                except Exception as error:
                    self.fail(error)
                time.sleep(self.pause())

        workers = [threading.Thread(target=worker, daemon=True) for _ in range(self.workers)]
        for thread in workers:
            thread.start()
        signal.sigtimedwait(SIGNALS, self.arguments.seconds)
        self.over = True
        end = time.monotonic() + GRACE
        for thread in workers:
            thread.join(max(0, end - time.monotonic()))
        self.report(sum(thread.is_alive() for thread in workers))

    async def tasks(self, request):
        """The same with tasks."""
        stop = asyncio.Event()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

        async def worker():
            while not self.over:
                try:
                    self.succeed(await request())
                except Exception as error:
                    self.fail(error)
                await asyncio.sleep(self.pause())

        workers = [asyncio.create_task(worker()) for _ in range(self.workers)]
        try:
            await asyncio.wait_for(stop.wait(), self.arguments.seconds)
        except asyncio.TimeoutError:
            pass
        self.over = True
        _, pending = await asyncio.wait(workers, timeout=GRACE)
        self.report(len(pending))

    def report(self, unfinished):
        for _ in range(unfinished):
            self.fail(TimeoutError(f"no end {GRACE} s after the end of the work"))
        names = "client", "requests", "failed", "errors", "servers"
        print(json.dumps({name: getattr(self, name) for name in names}), flush=True)
        os._exit(0)

    def answered(self, status, server, body):
        """Returns the server's name if its answer to an HTTP request is complete and right."""
        if self.work == "chunked":
            right = "".join(f'{{"server":"{server}","part":{part}}}\n' for part in (1, 2, 3))
        else:
            right = f'{{"server":"{server}"}}\n'
        if status != 200 or not server or body != right:
            raise WrongAnswer(f"{status} from {server}: {body!r}")
        return server


def describe(error):
    """The error in one line, with the one at its root, and without what differs from time to time."""
    root = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__
    text = f"{type(error).__name__}: {error}"
    if str(root) not in text:
        text += f" <- {type(root).__name__}: {root}"
    text = re.sub(r"0x[0-9a-f]+", "0x..", text)
    return " ".join(text.split())[:200]

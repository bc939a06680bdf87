#!/usr/bin/python3 -B
"""A client of the loss matrix: requests, with one session and its pool for all threads.
The pool is as large as there are workers; all else is the library's default."""

import requests
from load import PATHS, Load

load = Load(f"python-requests {requests.__version__}", PATHS)
session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=load.workers))


def request():
    answer = session.get(load.url + PATHS[load.work])
    return load.answered(answer.status_code, answer.headers.get("x-server"), answer.text)


load.threads(request)

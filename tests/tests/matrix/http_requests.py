#!/usr/bin/python3 -B
"""A client of the loss matrix: requests, with one session and its pool for all threads.
The pool is as large as there are workers; all else is the library's default. With the work "fresh" every request (of
2 s) has a session of its own. Any certificate will do."""

import requests
import urllib3
from load import PATHS, Load

urllib3.disable_warnings()
PATHS = {**PATHS, "fresh": "/slow"}
load = Load(f"python-requests {requests.__version__}", PATHS)
session = requests.Session()
session.verify = False
for scheme in "http://", "https://":
    session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=load.workers))
get = requests.get if load.work == "fresh" else session.get


def request():
    answer = get(load.url + PATHS[load.work], verify=False)
    return load.answered(answer.status_code, answer.headers.get("x-server"), answer.text)


load.threads(request)

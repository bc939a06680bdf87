#!/usr/bin/python3 -B
"""A client of the loss matrix: psycopg, with one ConnectionPool for all threads. A transaction is a request.
The server's name is the setting cluster_name (postgres -c cluster_name=b1). There is a connection for each worker."""

import psycopg
import psycopg_pool
from load import Load, WrongAnswer

QUERIES = {
    "quick": "SELECT 1, current_setting('cluster_name')",
    "slow": "SELECT 1, current_setting('cluster_name'), pg_sleep(2)",
}

load = Load(f"psycopg {psycopg.__version__}, psycopg_pool {psycopg_pool.__version__}", QUERIES)
pool = psycopg_pool.ConnectionPool(load.url, min_size=load.workers)


def request():
    with pool.connection() as connection:
        row = connection.execute(QUERIES[load.work]).fetchone()
    if row is None or row[0] != 1 or not row[1]:
        raise WrongAnswer(f"the row is {row!r}")
    return row[1]


load.threads(request)

"""psycopg, and so its own libpq: tries each connection string on standard input, a line for each answer.

"tls" or "plain" if it comes in, else the beginning of the error. With the argument cancel: a query is cancelled, too.
"""

import sys
import threading

import psycopg


def cancels(connection):
    errors = []

    def cancel():
        try:
            connection.cancel_safe(timeout=10)
        except psycopg.Error as error:
            errors.append(error)

    timer = threading.Timer(0.5, cancel)
    timer.start()
    try:
        connection.execute("select pg_sleep(30)")
    except psycopg.errors.QueryCanceled:
        timer.join()
        if errors:
            raise errors[0]
        return True
    return False


def attempt(conninfo):
    try:
        with psycopg.connect(conninfo, connect_timeout=10) as connection:
            assert connection.execute("select 1 + 1").fetchone() == (2,)
            if "cancel" in sys.argv[1:]:
                assert cancels(connection)
            return "tls" if connection.pgconn.ssl_in_use else "plain"
    except psycopg.OperationalError as error:
        return "refused: " + " ".join(str(error).split())


print(psycopg.pq.version(), flush=True)
for line in sys.stdin:
    print(attempt(line.strip()), flush=True)

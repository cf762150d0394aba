"""The guide's way with psycopg2: the URL taken apart, its parts given one by one. Twenty threads each keep a connection so."""

import os
import threading
from urllib.parse import urlparse

import psycopg2

CLIENTS = 20
ROUNDS = 10

DATABASE_URL = os.environ["DATABASE_URL"]

# Parse connection URL
url = urlparse(DATABASE_URL)


def connect():
    return psycopg2.connect(
        database=url.path[1:],  # Remove leading '/'
        user=url.username,
        password=url.password,
        host=url.hostname,
        port=url.port,
    )


connections = [connect() for _ in range(CLIENTS)]
with connections[0] as conn, conn.cursor() as cursor:
    cursor.execute("create table orders (id serial primary key, client int, amount int)")

failures = []
together = threading.Barrier(CLIENTS)


def work(number):
    conn = connections[number]
    try:
        together.wait(15)
        for amount in range(ROUNDS):
            with conn, conn.cursor() as cursor:
                cursor.execute("insert into orders (client, amount) values (%s, %s) returning id", (number, amount))
                (order,) = cursor.fetchone()
                cursor.execute("select client, amount from orders where id = %s", (order,))
                assert cursor.fetchone() == (number, amount)
            if amount % 2:
                with conn.cursor() as cursor:
                    cursor.execute("delete from orders where client = %s", (number,))
                conn.rollback()
    except Exception as error:  # the main thread tells of it
        failures.append(repr(error))


threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
with connections[0] as conn, conn.cursor() as cursor:
    cursor.execute("select client, count(*), sum(amount) from orders group by client order by client")
    assert cursor.fetchall() == [(n, ROUNDS, sum(range(ROUNDS))) for n in range(CLIENTS)]
    # All are connected still, and the server knows of few.
    cursor.execute("select count(*) from pg_stat_activity where usename = current_user")
    (sessions,) = cursor.fetchone()
assert sum(conn.closed == 0 for conn in connections) == CLIENTS
assert sessions <= 5, sessions
for conn in connections:
    conn.close()
print(f"well: postgres {CLIENTS}")

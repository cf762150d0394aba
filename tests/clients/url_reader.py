"""What libpq and Python read in connection strings: one JSON text for each line of input, one JSON object for each of output."""

import json
import sys
from urllib.parse import unquote, urlparse

import psycopg
from psycopg import pq


def by_libpq(text):
    try:
        options = pq.Conninfo.parse(text.encode())
    except (psycopg.Error, ValueError) as error:
        return {"refusal": str(error)}
    written = ((o.keyword.decode(), o.val.decode(errors="replace")) for o in options if o.val is not None)
    return {"options": dict(written)}


def by_python(text):
    try:
        url = urlparse(text)
        return {
            "user": unquote(url.username or ""),
            "password": unquote(url.password or ""),
            "host": url.hostname,
            "port": url.port,
            "database": unquote(url.path[1:]),
        }
    except ValueError as error:
        return {"refusal": str(error)}


for line in sys.stdin:
    text = json.loads(line)
    print(json.dumps({"libpq": by_libpq(text), "python": by_python(text)}))

"""One Redis for three things that don't know of each other: Django's cache, Django's sessions, and Celery's queue. Each empties what
it takes to be its own server, and the others lose nothing."""

import os

import django
import redis
from celery import Celery
from django.conf import settings

CACHE, SESSIONS, QUEUE = (os.environ[f"{name}_REDIS_URL"] for name in ("CACHE", "SESSION", "QUEUE"))


def backend(url):
    return {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}


settings.configure(
    CACHES={"default": backend(CACHE), "sessions": backend(SESSIONS)},
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    SESSION_CACHE_ALIAS="sessions",
    SECRET_KEY="not much of one",
)
django.setup()

from django.contrib.sessions.backends.cache import SessionStore  # noqa: E402
from django.core.cache import cache, caches  # noqa: E402

app = Celery("work", broker=QUEUE)
servers = {url: redis.Redis.from_url(url) for url in (CACHE, SESSIONS, QUEUE)}


def fill():
    cache.set_many({f"page:{n}": "x" * 100 for n in range(200)})
    session = SessionStore()
    session["user"] = 7
    session.save()
    for n in range(50):
        app.send_task("work.do", (n,))
    return session.session_key


def look(key):
    return (
        sum(cache.get(f"page:{n}") is not None for n in range(200)),
        SessionStore(key).get("user"),
        servers[QUEUE].llen("celery"),
    )


key = fill()
assert look(key) == (200, 7, 50), look(key)
cache.clear()
assert look(key) == (0, 7, 50), look(key)
assert servers[CACHE].dbsize() == 0 and servers[SESSIONS].dbsize() == 1

key = fill()
assert look(key) == (200, 7, 100)
caches["sessions"].clear()
assert look(key) == (200, None, 100), look(key)

key = fill()
servers[QUEUE].flushall()
assert look(key) == (200, 7, 0), look(key)
assert servers[QUEUE].keys() == []
print("well")

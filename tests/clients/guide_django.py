"""The guide's settings for Django, word for word: its database, its cache in Redis, and its sessions in that cache.

Twenty threads do what requests do: look into the session, the cache and the database. Twenty more of the same cache's
connections wait in Redis meanwhile.
"""

import os
import sys
import threading
import time
from urllib.parse import urlparse

import django
from django.conf import settings

CLIENTS = 20
WAITING = 20
SECONDS = 15

url = urlparse(os.environ["DATABASE_URL"])

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path[1:],
        "USER": url.username,
        "PASSWORD": url.password,
        "HOST": url.hostname,
        "PORT": url.port,
    }
}

CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": os.environ.get("REDIS_URL"),
        "OPTIONS": {
            "CLIENT_CLASS": "django_redis.client.DefaultClient",
            "SOCKET_CONNECT_TIMEOUT": 5,
            "SOCKET_TIMEOUT": 5,
            "CONNECTION_POOL_KWARGS": {"max_connections": 50},
        },
    }
}

# Django sessions in Redis
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
SESSION_CACHE_ALIAS = "default"

settings.configure(
    DATABASES=DATABASES,
    CACHES=CACHES,
    SESSION_ENGINE=SESSION_ENGINE,
    SESSION_CACHE_ALIAS=SESSION_CACHE_ALIAS,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["testserver"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    SECRET_KEY="not much of one",
)
django.setup()

from django.core.cache import cache  # noqa: E402
from django.db import connection, models, transaction  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.test import Client  # noqa: E402
from django.urls import path  # noqa: E402
from django_redis import get_redis_connection  # noqa: E402


class Visitor(models.Model):
    name = models.CharField(max_length=40, unique=True)
    visits = models.IntegerField(default=0)

    class Meta:
        app_label = "guide"


def visit(request, name):
    request.session["visits"] = request.session.get("visits", 0) + 1
    with transaction.atomic():
        visitor, _ = Visitor.objects.select_for_update().get_or_create(name=name)
        visitor.visits += 1
        visitor.save()
    cache.set(f"visitor:{name}", visitor.visits, 300)
    return JsonResponse({
        "session": request.session["visits"],
        "database": visitor.visits,
        "cache": cache.get(f"visitor:{name}"),
    })


urlpatterns = [path("<name>", visit)]


def sessions_at_the_server():
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_stat_activity where usename = current_user")
        return cursor.fetchone()[0]


failures = []
there = threading.Barrier(CLIENTS + 1)
seen = threading.Event()


def guarded(work, *words):
    def run():
        try:
            work(*words)
        except Exception as error:  # the main thread tells of it
            failures.append(repr(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def browse(number):
    browser = Client()
    for n in range(1, 11):
        answer = browser.get(f"/visitor{number}").json()
        assert answer == {"session": n, "database": n, "cache": n}, answer
    # The test client closes connections as a request's end does: this one is kept until all have been counted.
    connection.ensure_connection()
    there.wait(SECONDS)
    seen.wait(SECONDS)
    connection.close()


def wait(number):
    # Shorter than SOCKET_TIMEOUT, as it must be with a server, too.
    while (found := get_redis_connection("default").blpop(f"queue:{number}", timeout=3)) is None:
        pass
    assert found[1] == b"item"


with connection.schema_editor() as editor:
    editor.create_model(Visitor)

# Use cache
cache.set("key", "value", 300)  # 5 minutes
assert cache.get("key") == "value"
assert 290 < cache.ttl("key") <= 300

waiting = [guarded(wait, number) for number in range(WAITING)]
redis = get_redis_connection("default")
deadline = time.monotonic() + SECONDS
# Each that waits keeps a connection of the cache's, and one asks.
while len(redis.client_list()) < WAITING + 1:
    assert time.monotonic() < deadline and not failures, failures
    time.sleep(0.005)
for number in range(WAITING):
    redis.rpush(f"queue:{number}", "item")

browsing = [guarded(browse, number) for number in range(CLIENTS)]
try:
    there.wait(SECONDS)
except threading.BrokenBarrierError:
    sys.exit(f"not all came: {failures}")
assert sessions_at_the_server() <= 5
seen.set()
for thread in browsing + waiting:
    thread.join(SECONDS)
assert not failures, failures
assert Visitor.objects.count() == CLIENTS
assert sum(visitor.visits for visitor in Visitor.objects.all()) == CLIENTS * 10
print(f"well: postgres {CLIENTS} redis {WAITING}")

"""django-redis as Django's cache, from many threads."""

import os
import threading

import django
from django.conf import settings

settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": os.environ["REDIS_URL"],
            "OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient"},
        }
    }
)
django.setup()

from django.core.cache import cache  # noqa: E402

failures = []


def work(n):
    try:
        key = f"k{n}"
        cache.set(key, {"n": n}, timeout=60)
        assert cache.get(key) == {"n": n}
        assert cache.add(key, "other") is False
        cache.set_many({f"{key}:{m}": m for m in range(20)})
        assert cache.get_many([f"{key}:{m}" for m in range(20)]) == {f"{key}:{m}": m for m in range(20)}
        cache.set(f"{key}:n", 1)
        assert cache.incr(f"{key}:n", 4) == 5
        assert 0 < cache.ttl(key) <= 60
        with cache.lock("one at a time", timeout=10):
            count = cache.get("count", 0)
            cache.set("count", count + 1)
        assert cache.delete_pattern(f"{key}:*") == 21
        assert cache.get(f"{key}:3") is None
    except Exception as error:  # the main thread tells of it
        failures.append(repr(error))


threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
assert cache.get("count") == 20
print("well")

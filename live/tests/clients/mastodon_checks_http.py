"""Checks: what is the same for all answers over HTTP, health and metrics."""
import re

from expect import equal, want
from mastodon_http import PREFIX, Events, bearer, fetch
from mastodon_redis import publish, standing
from mastodon_seed import account, word
from mastodon_socket import Socket, handshake
from mastodon_wait import until

SINGLE = ("pg_pool_total_connections", "pg_pool_idle_connections", "pg_pool_waiting_queries", "redis_subscriptions",
          "redis_messages_received_total")
LABELLED = {"connected_clients": {"type"}, "connected_channels": {"type", "channel"}, "messages_sent_total": {"type"}}
PATHS = ("/user", "/user/notification", "/direct", "/public", "/public/local", "/public/remote", "/hashtag",
         "/hashtag/local", "/list")

def check_health():
    for headers in ({}, bearer(word())):
        answer = fetch(PREFIX + "/health", headers)
        equal("/health", (answer.status, answer.text), (200, "OK"))

def check_event_stream_head():
    answer = fetch(PREFIX + "/public", bearer(account().token))
    want(answer.headers.get("Content-Type", "").split(";")[0] == "text/event-stream", "Content-Type: text/event-stream",
         answer.headers.items())
    equal("Cache-Control", answer.headers.get("Cache-Control"), "private, no-store")
    equal("first line", answer.text, ":)\n")

def check_event_stream_body_to_the_byte():
    who = account()
    channel = f"timeline:{who.id}"
    with Events("/user", who.token) as s:
        standing(channel)
        publish(channel, "delete", "1")
        publish(channel, "update", {"id": "2", "content": "<p>é 🦊\n</p>"})
        publish(channel, "announcement.delete", "3")
        s.wait(lambda: len(s.events) >= 3, "3 events")
        text = s.raw.decode()
        ids = r"(id: [^\r\n]+\n)?"
        expected = (rf':\)\nevent: delete\ndata: 1\n{ids}\nevent: update\ndata: (\{{[^\r\n]+\}})\n{ids}\n'
                    rf'event: announcement\.delete\ndata: 3\n{ids}\n')
        want(re.fullmatch(expected, text), f"a body like {expected}", text)

def check_request_id_on_every_answer():
    token = account().token
    for name, path, headers, method in (
            ("health", PREFIX + "/health", {}, "GET"), ("metrics", "/metrics", {}, "GET"),
            ("unknown", "/nope", {}, "GET"), ("stream", PREFIX + "/public", bearer(token), "GET"),
            ("no token", PREFIX + "/user", {}, "GET"),
            ("preflight", PREFIX + "/user", {"Origin": "http://p.example", "Access-Control-Request-Method": "GET"},
             "OPTIONS")):
        ids = [fetch(path, headers, method).headers.get("X-Request-Id") for _ in range(2)]
        want(all(ids) and ids[0] != ids[1], f"{name}: an X-Request-Id of its own", ids)
    for name, headers in (("upgrade", bearer(token)), ("refused upgrade", {})):
        answer = handshake(headers=headers)
        answer.sock.close()
        want(answer.headers.get("x-request-id"), f"{name}: X-Request-Id", answer.headers)

def check_any_origin_is_allowed():
    token = account().token
    for name, path, headers in (("health", PREFIX + "/health", {}), ("stream", PREFIX + "/public", bearer(token)),
                                ("no token", PREFIX + "/user", {}), ("unknown", PREFIX + "/nope", {})):
        for origin in ({}, {"Origin": "http://page.example"}):
            answer = fetch(path, {**headers, **origin})
            equal(f"{name} {origin}: allow-origin", answer.headers.get("Access-Control-Allow-Origin"), "*")

def check_preflight():
    for path in PATHS:
        for asked in ("authorization", "Authorization,Last-Event-ID, x-Other"):
            answer = fetch(PREFIX + path, {"Origin": "http://page.example", "Access-Control-Request-Method": "GET",
                                           "Access-Control-Request-Headers": asked}, "OPTIONS")
            came = {name: answer.headers.get(f"Access-Control-Allow-{name}")
                    for name in ("Origin", "Methods", "Headers")}
            equal(f"preflight of {path}", (answer.status, answer.text, came), (
                204, "", {"Origin": "*", "Methods": "GET,HEAD,PUT,PATCH,POST,DELETE", "Headers": asked}))

def samples():
    """{name: {labels: value}} of /metrics."""
    answer = fetch("/metrics")
    want(answer.status == 200, "/metrics: 200", (answer.status, answer.text))
    found = {}
    for line in answer.text.splitlines():
        if line and not line.startswith("#"):
            name, labels, value = re.fullmatch(r"([^{ ]+)(?:\{(.*)\})? (\S+)(?: \d+)?", line).groups()
            pairs = frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))
            found.setdefault(name, {})[pairs] = float(value)
    return found

def check_metrics():
    who = account()
    channel = f"timeline:{who.id}"
    before = samples()
    with Socket(who.token) as ws, Events("/user", who.token) as sse:
        ws.subscribe("user").settle(channel)
        sse.settle(channel)
        found = until(lambda: told(samples(), before), "metrics that tell of a socket and an event stream")
    for name in SINGLE:
        equal(f"series of {name}", list(found.get(name, {})), [frozenset()])
    for name, labels in LABELLED.items():
        for series in found[name]:
            equal(f"labels of {name}", {label for label, _ in series}, labels)
            want(dict(series)["type"] in ("websocket", "eventsource"), f"{name}: type", series)

def told(now, before):
    """The samples, once they say what a socket and an event stream on `user` must have changed."""
    def value(found, name, **labels):
        return found.get(name, {}).get(frozenset(labels.items()), 0)
    for kind in ("websocket", "eventsource"):
        if value(now, "messages_sent_total", type=kind) <= value(before, "messages_sent_total", type=kind):
            return None
        if not all([value(now, "connected_clients", type=kind),
                    value(now, "connected_channels", type=kind, channel="user"),
                    value(now, "connected_channels", type=kind, channel="system")]):
            return None
    if not value(now, "redis_messages_received_total") > value(before, "redis_messages_received_total"):
        return None
    return now if value(now, "redis_subscriptions") > 0 and value(now, "pg_pool_total_connections") > 0 else None

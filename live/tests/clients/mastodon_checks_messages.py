"""Checks: what of Redis' messages arrives, in which form and order, and what ends a connection."""
import json

from expect import equal, want
from mastodon_http import Events
from mastodon_redis import NOTHING, message, publish, publish_all, publish_raw, standing
from mastodon_seed import account, calm, new_list, token, word
from mastodon_socket import Socket
from mastodon_view import PUBLIC, Viewer, person, status
from mastodon_wait import each

NAMES = ("update", "status.update", "delete", "notification", "notifications_merged", "conversation", "announcement",
         "announcement.reaction", "announcement.delete")
DEEP = {"a": [1, -2.5, 1e3, True, None, {"b": "\u2028 \\ \" / é 🦊 <p>\n\t\0"}], "": {}, "n": 9007199254740991, "e": []}
NO_PAYLOADS = (NOTHING, None, "")

class Both:
    """A socket and an event stream on `user` of one account."""

    def __init__(self):
        self.who = account()
        self.channel = f"timeline:{self.who.id}"

    def __enter__(self):
        self.ws, self.sse = Socket(self.who.token), Events("/user", self.who.token)
        self.ws.subscribe("user").settle(self.channel)
        self.sse.settle(self.channel)
        self.sse.has(self.ws.mark(self.channel))        # so no mark is on its way any more
        self.starts = len(self.ws.messages), len(self.sse.events)
        return self

    def __exit__(self, *_):
        self.ws.close()
        self.sse.close()

    def flush(self):
        """What came on the socket and on the event stream, without the mark at the end."""
        mark = self.sse.has(self.ws.mark(self.channel))
        frames, events = self.ws.messages[self.starts[0]:], self.sse.came()[self.starts[1]:]
        return [m for m in frames if m.get("payload") != mark], [pair for pair in events if pair[1] != mark]

def check_every_event_name():
    with Both() as both:
        for name in NAMES:
            publish(both.channel, name, "1")
        frames, events = both.flush()
        equal("on the socket", frames, [{"stream": ["user"], "event": name, "payload": "1"} for name in NAMES])
        equal("on the event stream", events, [(name, "1") for name in NAMES])

def check_object_payloads_become_strings_and_strings_stay():
    texts = ("1", "116000000000000001", "plain text", '{"id": "1",  "x":1.50}', '"quoted"', "é🦊", " ", "null")
    with Both() as both:
        for text in texts:
            publish(both.channel, "update", text)
        for body in (DEEP, {}, [1, {"a": 2}], []):
            publish(both.channel, "update", body)
        frames, events = both.flush()
        equal("strings", [m["payload"] for m in frames[:len(texts)]], list(texts))
        equal("strings", [data for _, data in events[:len(texts)]], list(texts))
        for payload in [m["payload"] for m in frames[len(texts):]] + [data for _, data in events[len(texts):]]:
            want(type(payload) is str, "a string", payload)
        for came in ([m["payload"] for m in frames[len(texts):]], [data for _, data in events[len(texts):]]):
            equal("objects", [json.loads(payload) for payload in came], [DEEP, {}, [1, {"a": 2}], []])

def check_messages_without_payload_are_dropped():
    with Both() as both:
        for name in ("update", "delete", "notification", "announcement"):
            for payload in NO_PAYLOADS:
                publish(both.channel, name, payload)
        equal("what came", both.flush(), ([], []))

def check_queued_at_is_ignored():
    with Both() as both:
        publish(both.channel, "update", {"id": "5"}, queued_at=1785571200000)
        publish(both.channel, "delete", "5", queued_at=0)
        frames, events = both.flush()
        equal("keys of the frames", [sorted(m) for m in frames], [["event", "payload", "stream"]] * 2)
        equal("payloads", [json.loads(m["payload"]) for m in frames], [{"id": "5"}, 5])
        equal("events", [(name, json.loads(data)) for name, data in events], [("update", {"id": "5"}), ("delete", 5)])

def check_filters_changed_is_delivered():
    for payload in NO_PAYLOADS:
        with Both() as both:                            # Mastodon publishes it on both channels
            publish(both.channel, "filters_changed", payload)
            publish(f"timeline:system:{both.who.id}", "filters_changed", payload)
            frames, events = both.flush()
            equal("on the socket", frames, [{"stream": ["user"], "event": "filters_changed"}])
            equal("on the event stream", events, [("filters_changed", "undefined")])

def check_garbage_on_a_channel_is_survived():
    with Both() as both:
        for text in ("", "garbage", "{", "null", "5", "[]", "{}", '{"payload":"1"}', '{"event":5,"payload":"1"}',
                     '"kill"', '{"event":null,"payload":{}}', "\udcff"):
            publish_raw(both.channel, text.encode("utf-8", "surrogateescape"))
            publish_raw(f"timeline:system:{both.who.id}", text.encode("utf-8", "surrogateescape"))
        publish(f"timeline:system:{both.who.id}", "nope")
        publish(both.channel, "delete", "9")
        frames, events = both.flush()
        equal("the last ones", (frames[-1:], events[-1:]), ([{"stream": ["user"], "event": "delete", "payload": "9"}],
                                                            [("delete", "9")]))

def check_payloads_outside_public_streams_are_not_touched():
    def run(name, channel, who, event):
        with Socket(who.token) as ws:
            ws.subscribe(name, **({"list": channel.split(":")[-1]} if name == "list" else {}))
            standing(channel)
            text = json.dumps({"id": "1", "account": None, "language": "xx", "x": [1.50]}, indent=1)
            publish(channel, event, text)
            ws.mark(channel)
            equal("payload", ws.came()[0], (event, text))
    who = [account(languages=["en"]) for _ in range(4)]
    each([("user", f"timeline:{who[0].id}", who[0], "update"),
          ("direct", f"timeline:direct:{who[1].id}", who[1], "conversation"),
          ("user:notification", f"timeline:{who[2].id}:notifications", who[2], "notification"),
          ("list", f"timeline:list:{new_list(who[3])}", who[3], "status.update")], run)

def check_kill():
    def run(what, by_token, sse):
        who = account()
        other = token(who)
        channel = f"timeline:access_token:{who.token_id}" if by_token else f"timeline:system:{who.id}"
        with (Events("/user", who.token) if sse else Socket(who.token)) as s, Socket(other.token) as left:
            if not sse:
                s.subscribe("user")
            left.subscribe("user").settle(f"timeline:{who.id}")
            s.settle(f"timeline:{who.id}")
            standing(channel)
            publish(channel, "kill")
            s.ended("kill")
            if not sse:
                equal("close frame without a code", s.closing, b"")
            if by_token:
                left.mark(f"timeline:{who.id}")
            else:
                left.ended("kill of the account, with another token")
    each([(f"{'token' if by_token else 'account'} {'eventsource' if sse else 'websocket'}", by_token, sse)
          for by_token in (True, False) for sse in (True, False)], run)

def check_killed_token_with_many_streams():
    who = account()
    with Socket(who.token) as one, Socket(who.token) as two:
        for ws in (one, two):
            ws.subscribe("user").subscribe("hashtag", tag=word()).settle(f"timeline:{who.id}")
        publish(f"timeline:access_token:{who.token_id}", "kill")
        for ws in (one, two):
            ws.ended("kill")
            equal("close frame without a code", ws.closing, b"")

def check_update_then_delete_on_public_streams_50_of_50():
    who = account()
    posts = [status(person("order.example")) for _ in range(50)]
    ids = {post["id"] for post in posts}
    pairs = [pair for post in posts for pair in (("update", post), ("delete", post["id"]))]
    expected = [(name, body if name == "delete" else body["id"]) for name, body in pairs]
    with Viewer(who) as viewer, calm(), Events("/public", who.token) as sse:
        sse.settle(PUBLIC)
        for channel in viewer.channels.values():
            publish_all(channel, pairs)
            viewer.socket.mark(channel)
        sse.mark(PUBLIC)
        for came in (*(viewer.socket.came(list(stream)) for stream in viewer.channels), sse.came()):
            short = [(name, json.loads(data)["id"] if name == "update" else data) for name, data in came]
            equal("order", [pair for pair in short if pair[1] in ids], expected)

def malformed():
    post = status()
    yield from ({}, {"id": "1"}, "text", [1, 2], *({**post, "account": wrong} for wrong in (None, "x", {})))

def check_malformed_statuses_are_ignored():
    with Viewer() as viewer:
        for channel in viewer.channels.values():
            before = len(viewer.socket.messages)
            for body in malformed():
                for event in ("update", "status.update"):
                    publish(channel, event, body)
            viewer.socket.mark(channel)
            came = [m for m in viewer.socket.messages[before:] if m["event"] != "delete" and is_malformed(m["payload"])]
            equal("malformed statuses that came", came, [])
        for change in ({"mentions": None}, {"mentions": [{}]}, {"mentions": "x"}, {"language": 5}, {"content": None},
                       {"spoiler_text": None}, {"poll": {}}, {"poll": {"options": [None]}}, {"media_attachments": None},
                       {"media_attachments": [{}]}, {"account": {**person(), "id": "abc"}},
                       {"account": {**person(), "acct": 5}}):
            viewer.show(status(**change))               # whether it comes is not said
        for text in ("garbage", message("update", status())[:-9], '{"event":"update"}'):
            for channel in viewer.channels.values():
                publish_raw(channel, text)
        want(viewer.sees(status()), "a good status afterwards", False)

def is_malformed(payload):
    """Whether this is one of the statuses above (others may publish on the same channel)."""
    body = json.loads(payload) if payload[:1] in "[{" else payload
    return body in ("text", [1, 2], {}) or isinstance(body, dict) and not isinstance(body.get("account"), dict)

def flood(channel, fast):
    """40 MB on this channel, more than any bound may be; the client that reads gets everything."""
    total, text = 2000, "x" * 20_000
    for start in range(0, total, 100):
        publish_all(channel, [("update", f"{n} {text}") for n in range(start, start + 100)])
        fast.mark(channel)
    equal("numbers on the client that reads", flooded(fast), list(range(total)))
    return total

def flooded(socket):
    return [int(payload.split()[0]) for name, payload in socket.came() if name == "update"]

def check_slow_socket_is_disconnected_and_delays_nobody():
    who = account()
    channel = f"timeline:{who.id}"
    with Socket(who.token, query="?stream=user", reading=False, receive_buffer=4096) as slow, Socket(who.token) as fast:
        fast.subscribe("user").settle(channel)
        total = flood(channel, fast)
        slow.start()
        slow.ended("a client that did not read")
        came = flooded(slow)
        want(0 < len(came) < total, "the slow client cut off before it had everything", len(came))
        equal("the last words", slow.closing, (1013).to_bytes(2) + b"slow")
        equal("what it had, without a gap", came, list(range(len(came))))
    with Socket(who.token) as again:
        again.subscribe("user").settle(channel)

def check_slow_event_stream_is_disconnected_and_delays_nobody():
    who = account()
    channel = f"timeline:{who.id}"
    with Events("/user", who.token, reading=False, receive_buffer=4096) as slow, Socket(who.token) as fast:
        fast.subscribe("user").settle(channel)
        total = flood(channel, fast)
        slow.start()
        slow.ended("a client that did not read")
        came = [event for event in slow.events if event.event == "update"]
        equal("the last words", slow.goodbye, ":slow")
        want(0 < len(came) < total, "the slow client cut off before it had everything", len(came))

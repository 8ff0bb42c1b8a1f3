"""Checks: the Python library Mastodon.py, as it is, streams from the server."""
import importlib.machinery
import importlib.util
import os
import sys
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Thread

from expect import WAIT, Failed, equal
from mastodon_front import front
from mastodon_redis import publish
from mastodon_seed import account, big, calm, new_list, word
from mastodon_view import person, status, tag_channel
from mastodon_wait import each, until
from server import SERVER

def library():
    """The package `mastodon`, which has the name of this suite's entry: that one is passed over."""
    if "mastodon" not in sys.modules:
        here = os.path.dirname(os.path.abspath(__file__))
        others = [path for path in sys.path if os.path.abspath(path) != here]
        spec = importlib.machinery.PathFinder.find_spec("mastodon", others)
        if spec is None:
            raise Failed("expected the package Mastodon.py, came nothing")
        sys.modules["mastodon"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["mastodon"]

def listener():
    """A listener that keeps what its callbacks get."""
    class Listener(library().StreamListener):
        def __init__(self):
            self.calls, self.marks = Queue(), set()

        def on_any_event(self, name, data=None, for_stream=None):
            if name == "delete":
                self.marks.add(str(data))
            else:
                self.calls.put((name, data))

        def on_abort(self, err):
            self.calls.put(("abort", err))

        def on_websocket_error(self, error, for_stream=None):
            self.calls.put(("error", error))

        def next(self):
            try:
                return self.calls.get(timeout=WAIT)
            except Empty:
                raise Failed(f"expected a callback within {WAIT:g} s, came nothing") from None
    return Listener()

def api(who, address):
    return library().Mastodon(access_token=who.token, api_base_url=address, version_check_mode="none",
                              session=SERVER.session())

def hears(heard, channel):
    """Publishes marks until the listener got one."""
    marks = set()
    def one_came():
        marks.add(mark := str(big()))
        publish(channel, "delete", mark)
        return heard.marks & marks
    until(one_came, f"on_delete of an event of {channel}")

def gets(heard, channel, event, payload, expected):
    """Publishes this, and the next callback gets it."""
    publish(channel, event, payload)
    name, data = heard.next()
    equal("event", name, event)
    equal("what the callback got", expected(data), True)

def status_events(heard, channel):
    for event in ("update", "status.update"):
        post = status(person("far.example"), content="<p>é 🦊</p>")
        gets(heard, channel, event, post, lambda s: (str(s["id"]), s["content"], s["account"]["acct"])
             == (post["id"], post["content"], post["account"]["acct"]))

def user_events(heard, who):
    home = f"timeline:{who.id}"
    status_events(heard, home)
    note = {"id": str(big()), "type": "favourite", "created_at": "2026-08-01T02:03:04.567Z", "account": person(),
            "status": status()}
    gets(heard, f"{home}:notifications", "notification", note,
         lambda n: (str(n["id"]), n["type"]) == (note["id"], "favourite"))
    gets(heard, home, "announcement", {"id": "7", "content": "<p>x</p>"}, lambda a: a["content"] == "<p>x</p>")
    publish(home, "filters_changed")
    equal("filters_changed", heard.next(), ("filters_changed", None))
    gets(heard, f"{home}:notifications", "notifications_merged", "1", lambda one: str(one) in ("1", "None"))
    status_events(heard, home)                          # the library did not stumble over any of these

def direct_events(heard, channel):
    talk = {"id": str(big()), "unread": True, "accounts": [person()], "last_status": status()}
    gets(heard, channel, "conversation", talk, lambda c: str(c["id"]) == talk["id"])

@contextmanager
def streaming(name, who, scheme, *args, **kw):
    with front(scheme) as address:
        heard = listener()
        with calm():
            handle = getattr(api(who, address), name)(*args, listener=heard, run_async=True, **kw)
            try:
                yield heard
            finally:
                Thread(target=handle.close, daemon=True).start()        # it waits for the next byte

def check_mastodon_py_user_and_direct():
    for scheme in ("ws", "http"):
        who = account()
        with streaming("stream_user", who, scheme) as heard:
            hears(heard, f"timeline:{who.id}")
            user_events(heard, who)
        with streaming("stream_user_notifications", who, scheme) as heard:
            hears(heard, f"timeline:{who.id}:notifications")
        with streaming("stream_direct", who, scheme) as heard:
            hears(heard, f"timeline:direct:{who.id}")
            direct_events(heard, f"timeline:direct:{who.id}")

def check_mastodon_py_hashtag_and_list():
    who = account()
    tag, number = word(), new_list(who)
    for name, args, kw, channel in (("stream_hashtag", [tag.upper()], {}, tag_channel(tag)),
                                    ("stream_hashtag", [tag], {"local": True}, f"{tag_channel(tag)}:local"),
                                    ("stream_list", [number], {}, f"timeline:list:{number}")):
        with streaming(name, who, "ws", *args, **kw) as heard:
            hears(heard, channel)
            status_events(heard, channel)

def check_mastodon_py_public():
    def run(channel, kw):
        who, post = account(), status(person("far.example"))
        with streaming("stream_public", who, "ws", **kw) as heard:
            hears(heard, channel)
            publish(channel, "update", post)            # others may publish here too
            until(lambda: str(heard.next()[1]["id"]) == post["id"], "on_update with the status")
    each([("timeline:public", {}), ("timeline:public:local", {"local": True}),
          ("timeline:public:remote", {"remote": True}), ("timeline:public:media", {"only_media": True}),
          ("timeline:public:remote:media", {"remote": True, "only_media": True})], run)

def check_mastodon_py_healthy():
    with front("ws") as address:
        equal("stream_healthy", api(account(), address).stream_healthy(), True)

def check_mastodon_py_many_streams_on_one_websocket():
    who = account()
    tag, number, home, tagged, listed = word(), new_list(who), listener(), listener(), listener()
    with front("ws") as address, api(who, address).stream_open_websocket(listener=home) as handle:
        client = api(who, address)
        client.stream_user(home, websocket_handle=handle)
        with calm():
            client.stream_hashtag(f"É{tag}", tagged, websocket_handle=handle)
            hears(tagged, tag_channel(f"e{tag}"))
        client.stream_list(number, listed, websocket_handle=handle)
        hears(listed, f"timeline:list:{number}")
        hears(home, f"timeline:{who.id}")
        user_events(home, who)
        status_events(tagged, tag_channel(f"e{tag}"))
        status_events(listed, f"timeline:list:{number}")

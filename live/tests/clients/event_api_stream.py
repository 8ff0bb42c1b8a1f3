"""The stream of the event API: one connection to it, and what several of them must have had."""
import http.client
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

from event_api_client import fresh, insert, uid, user
from expect import WAIT, equal, want
from server import SERVER

READY = fresh("ready")

class Stream:
    """One connection to /events; a thread parses its frames. `frames` may be those of the connection before."""

    def __init__(self, last_id=None, headers=None, frames=None, timeout=30):
        self.frames = [] if frames is None else frames
        self.cond, self.done, self.reading = threading.Condition(), threading.Event(), threading.Event()
        self.reading.set()
        self.opened = time.time()
        connection = http.client.HTTPConnection(*SERVER.address, timeout=timeout)
        connection.connect()
        self.sock = connection.sock
        head = {"Accept": "text/event-stream", **({} if last_id is None else {"Last-Event-ID": last_id})}
        connection.request("GET", SERVER.url.path + "/events", headers={**head, **(headers or {})})
        self.answer = connection.getresponse()
        want(self.answer.status == 200, "GET /events: 200", self.answer.status)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        rest = b""
        try:
            while piece := (self.reading.wait() and self.answer.read1(65536)):
                *blocks, rest = (rest + piece).split(b"\n\n")
                with self.cond:
                    self.frames += [f for f in map(self._frame, blocks) if f.fields]
                    self.cond.notify_all()
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            pass                                        # the stream broke
        with self.cond:
            self.done.set()
            self.cond.notify_all()

    @staticmethod
    def _frame(block):
        lines = [line for line in block.decode().split("\n") if line and not line.startswith(":")]
        fields = [(line.partition(":")[0], line.partition(":")[2].removeprefix(" ")) for line in lines]
        got = dict(fields)
        return SimpleNamespace(lines=lines, fields=sorted(name for name, _ in fields), at=time.time(),
                               event=got.get("event"), data=got.get("data"), id=got.get("id"))

    def of(self, *names):
        return [f for f in list(self.frames) if f.event in names]

    def values(self, *names):
        return [json.loads(f.data) for f in self.of(*names)]

    def wait(self, condition, what, timeout=WAIT):
        deadline = time.time() + timeout
        with self.cond:
            while not condition():
                want(not self.done.is_set(), f"{what} on the stream", "the end of the stream")
                want(time.time() < deadline, f"{what} on the stream within {timeout} s", "nothing such")
                self.cond.wait(max(0.0, deadline - time.time()))

    def wait_count(self, count, *names, timeout=WAIT):
        self.wait(lambda: len(self.of(*names)) >= count, f"{count} events {names!r:.80}", timeout)

    def last_id(self):
        return [f.id for f in self.frames if f.id is not None][-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.reading.set()
        self.done.wait(WAIT)

def id_key(text):
    want(re.search(r"\d", text or ""), "an id that can be compared", text)
    return tuple(map(int, re.findall(r"\d+", text)))

def rising(frames, what="ids on one connection"):
    keys = [id_key(f.id) for f in frames if f.id is not None]
    bad = [(a, b) for a, b in zip(keys, keys[1:]) if a >= b]
    want(not bad, f"{what} strictly increasing", bad[:3])

def flush(streams):
    """Whatever was published before is on the streams when this returns."""
    mark = uid()
    insert(user("alice"), READY, mark)
    for stream in streams:
        stream.wait(lambda: mark in stream.values(READY), "a marker event")

def all_see(streams, what, expected, *names):
    """Each stream has had exactly these data of these events, in this order."""
    flush(streams)
    for stream in streams:
        equal(what, stream.values(*names), expected)
        rising(stream.frames)

@contextmanager
def watching(count=4):
    """Streams that have had their sync and get everything live (several, so that every node has one)."""
    streams = []
    try:
        streams += [Stream() for _ in range(count)]
        flush(streams)
        yield streams
    finally:
        for stream in streams:
            stream.__exit__()

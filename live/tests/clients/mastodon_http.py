"""Plain requests and event streams over HTTP."""
import http.client
import json
import re
import socket
import time
from types import SimpleNamespace

from expect import WAIT, Failed, equal, want
from mastodon_marks import Marked
from server import SERVER

PREFIX = "/api/v1/streaming"
BLOCK = re.compile(r":thump|:slow|event: [^\r\n]+\ndata: [^\r\n]+(\nid: [^\r\n]+)?")    # all that may be between blank lines

def bearer(token):
    return {"Authorization": f"Bearer {token}"}

def dial(timeout, receive_buffer=None):
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(timeout)
    sock.connect(SERVER.address)
    return sock

def _open(method, path, headers, timeout, receive_buffer=None):
    connection = http.client.HTTPConnection(*SERVER.address, timeout=timeout)
    connection.sock = sock = dial(timeout, receive_buffer)
    connection.request(method, SERVER.url.path + path, headers=headers)
    return sock, connection.getresponse()

def fetch(path, headers=None, method="GET"):
    """A whole answer; of an event stream its first line."""
    sock, answer = _open(method, path, headers or {}, WAIT)
    with sock, answer:
        streams = answer.headers.get("Content-Type", "").startswith("text/event-stream")
        body = answer.readline() if streams else answer.read()
        return SimpleNamespace(status=answer.status, headers=answer.headers, body=body, text=body.decode())

def refused(what, answer, status, error):
    """This status, exactly this JSON error, and an id of the request."""
    came = (answer.status, answer.text)
    want(answer.status == status, f"{what}: {status} {error}", came)
    try:
        body = json.loads(answer.text)
    except ValueError:
        raise Failed(f"{what}: expected JSON, came {came!r:.200}") from None
    equal(what, body, {"error": error})
    want(answer.headers.get("X-Request-Id"), f"{what}: X-Request-Id", dict(answer.headers))

def accepted(what, answer):
    want((answer.status, answer.text) == (200, ":)\n"), f"{what}: 200 and :)", (answer.status, answer.text))

class Events(Marked):
    """One event stream. Whatever comes must have the exact form, to the byte."""

    def __init__(self, path, token=None, headers=None, last_id=None, reading=True, receive_buffer=None):
        super().__init__()
        self.raw, self.events, self.thumps, self.goodbye = b"", [], [], None
        head = {**(bearer(token) if token else {}), **({} if last_id is None else {"Last-Event-ID": last_id})}
        self.sock, self.answer = _open("GET", PREFIX + path, {**head, **(headers or {})}, 60, receive_buffer)
        want(self.answer.status == 200, f"GET {path}: 200", (self.answer.status, self.answer.headers.items()))
        if reading:
            self.start().wait(lambda: self.raw.startswith(b":)\n"), "a first line :)")

    def read(self):
        rest, opened = b"", False
        while piece := self.answer.read1(65536):
            rest += piece
            with self.cond:
                self.raw += piece
                if not opened and len(rest) >= 3:
                    want(rest.startswith(b":)\n"), "a first line :)", rest[:80])
                    rest, opened = rest[3:], True
                *blocks, rest = rest.split(b"\n\n") if opened else [rest]
                for block in blocks:
                    self._block(block.decode())
                self.cond.notify_all()

    def _block(self, block):
        want(BLOCK.fullmatch(block), ":thump, :slow, or an event of exact form", block)
        if block == ":thump":
            self.thumps.append(time.time())
        elif block.startswith(":"):
            self.goodbye = block
        else:
            parts = dict(line.split(": ", 1) for line in block.split("\n"))
            self.events.append(SimpleNamespace(event=parts["event"], data=parts["data"], id=parts.get("id")))
            if parts["event"] == "delete":
                self.deleted.add(parts["data"])

    def came(self):
        return [(e.event, e.data) for e in list(self.events)]

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

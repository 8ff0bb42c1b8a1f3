"""A client of the CBOR publish/subscribe contract, which checks the form of whatever it gets."""
import io
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from uuid import UUID, uuid4

import cbor2
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from expect import WAIT, Failed, equal, want
from server import SERVER

class Client:
    """One connection. `text`: it writes UUIDs as text; `blob`: it writes data as byte strings."""

    def __init__(self, session=None, path=None, text=False, blob=False, tagged=False, keepalive=None,
                 patience=WAIT):
        self.session, self.text, self.blob, self.tagged = session or uuid4(), text, blob, tagged
        self.got = []                                   # every message, as an object; kind is its name
        self.ws = connect(f"ws{SERVER.base[4:]}/ws/{path or self.session}", open_timeout=patience,
                          close_timeout=patience, ping_interval=keepalive, ping_timeout=keepalive,
                          max_size=None, max_queue=None, compression=None, proxy=None)

    def form(self, value):
        """A value as this client writes it."""
        if isinstance(value, UUID):
            return str(value) if self.text else cbor2.CBORTag(37, value.bytes) if self.tagged else value.bytes
        if isinstance(value, bytes):
            return value if self.blob else list(value)
        return [self.form(v) for v in value] if isinstance(value, list) else value

    def send(self, command, **fields):
        self.ws.send(cbor2.dumps({command: {name: self.form(value) for name, value in fields.items()}}))

    def uuid(self, value):
        """Checks that a UUID came in the client's own form."""
        if self.tagged and isinstance(value, UUID):
            return value
        want(type(value) is str and str(UUID(value)) == value if self.text else
             type(value) is bytes and len(value) == 16, f"a UUID as {'text' if self.text else '16 bytes'}", value)
        return UUID(value) if self.text else UUID(bytes=value)

    def data(self, value):
        want(type(value) is bytes if self.blob else type(value) is list and set(map(type, value)) <= {int},
             "data as a byte string" if self.blob else "data as an array of integers", value)
        return bytes(value)

    def decode(self, raw):
        if isinstance(raw, str):
            return SimpleNamespace(kind="text", text=raw)
        stream = io.BytesIO(raw)
        message = cbor2.CBORDecoder(stream).decode()
        want(isinstance(message, dict) and len(message) == 1, "a map with one key", message)
        want(stream.tell() == len(raw), "no trailing bytes", raw[stream.tell():])
        (kind, body), m = *message.items(), SimpleNamespace(kind=next(iter(message)), at=time.time())
        if kind == "Issue" and len(body) == 2:
            m.sub, m.pub = map(self.uuid, body)
        elif kind == "LogIndex" and len(body) == 2:
            m.log, m.ids = self.uuid(body[0]), [self.uuid(i) for i in body[1]]
        elif kind == "LogEntry":
            for entry in body:
                equal("keys of a log entry", sorted(entry), ["data", "publication_id", "subscription_id"])
            m.entries = [(self.uuid(e["publication_id"]), self.uuid(e["subscription_id"]), self.data(e["data"]))
                         for e in body]
        elif kind == "Error":
            want({"code", "message"} <= set(body) <= {"code", "message", "about"}, "code, message, about?", body)
            want(all(isinstance(body[k], str) and body[k] for k in ("code", "message")), "texts in an Error", body)
            about = body.get("about")
            m.code, m.message, m.about = body["code"], body["message"], about if about is None else self.uuid(about)
        else:
            raise Failed(f"expected Issue, LogIndex, LogEntry or Error, came {message!r:.200}")
        return m

    def read(self, timeout):
        """The next message, None if there is none in time."""
        try:
            return self.decode(self.ws.recv(timeout=max(timeout, 0.001)))
        except TimeoutError:
            return None

    def pump(self, done, what, timeout=WAIT):
        """Receives until done() is true; gives what it returned."""
        deadline = time.time() + timeout
        while not (result := done()):
            try:
                message = self.read(deadline - time.time())
            except ConnectionClosed as error:
                raise Failed(f"expected {what}, came the end of the connection: {error}") from None
            want(message, f"{what} within {timeout:.0f} s",
                 [m.kind if m.kind != "Error" else vars(m) for m in self.got[-5:]])
            self.got.append(message)
        return result

    def take(self, kind, test=lambda m: True, timeout=WAIT):
        """Removes and gives the first message of this kind."""
        message, = self.pump(lambda: [m for m in self.got if m.kind == kind and test(m)][:1], f"a {kind}", timeout)
        self.got.remove(message)
        return message

    def issues(self, sub, count=0, timeout=WAIT):
        """The publication ids of all Issues so far, at least `count`."""
        mine = lambda: [m.pub for m in self.got if m.kind == "Issue" and m.sub == sub]
        self.pump(lambda: len(mine()) >= count, f"{count} Issues", timeout)
        return mine()

    def error(self, *ids, timeout=WAIT):
        """The next Error; where the request has ids, it is about one of them."""
        error = self.take("Error", timeout=timeout)
        want(error.about in ids or not ids, f"about: one of {ids}", vars(error))
        return error

    def settle(self):
        """All commands sent before have been handled when this returns; no Error among the answers."""
        probe = uuid4()
        self.send("GetLogIndex", log_id=probe)
        self.take("Error", lambda m: m.about == probe)
        equal("Errors", [vars(m) for m in self.got if m.kind == "Error"], [])
        return self

    def subscribe(self, *subs):
        for sub in subs:
            self.send("Subscribe", subscription_id=sub)
        return self.settle()

    def join(self, sub, group):
        self.send("SubscribeQueue", subscription_id=sub, group=group)
        return self.settle()

    def submit(self, sub, *data):
        for item in data:
            self.send("SubmitPublication", subscription_id=sub, submission=str(item).encode())
        return self

    def index(self, sub):
        self.send("GetLogIndex", log_id=sub)
        return self.take("LogIndex", lambda m: m.log == sub).ids

    def entries(self, sub, ids, timeout=WAIT):
        self.send("GetLogEntries", log_id=sub, entries=ids)
        return self.take("LogEntry", timeout=timeout).entries

    def contents(self, sub, ids):
        return [data.decode() for _, _, data in self.entries(sub, ids)]

    def ended(self):
        """The exception that ends the connection."""
        deadline = time.time() + WAIT
        while time.time() < deadline:
            try:
                self.read(0.5)
            except ConnectionClosed as error:
                return error
        raise Failed(f"expected the end of the connection within {WAIT} s, came nothing such")

    def leave(self):
        """An orderly close; what came before its end counts as received."""
        self.ws.close()
        try:
            while message := self.read(1):
                self.got.append(message)
        except ConnectionClosed:
            pass

class Room:
    """Makes clients, and closes them at the end."""

    def __init__(self):
        self.clients = []

    def __enter__(self):
        return self

    def __call__(self, *args, **kw):
        self.clients.append(Client(*args, **kw))
        return self.clients[-1]

    def __exit__(self, *_):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda c: c.ws.close(), self.clients))

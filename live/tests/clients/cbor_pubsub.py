"""Proves from outside that a server keeps the CBOR publish/subscribe contract.

conformance: every visible sentence of the contract, one line per check.
survive:     subscribers, publishers and a queue group at work while a node is killed (a line on stdin ends it).

    python3 cbor_pubsub.py conformance|survive BASE_URL        (http://...; the ws:// address is derived)

The server may be shared, not empty, and several nodes behind one address: sessions and
subscriptions are new in every check, and successive connections may land on different nodes.
"""
import base64
import io
import os
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import urlsplit
from uuid import UUID, uuid1, uuid4

import cbor2
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

BASE = ""
WAIT = 10.0                                             # seconds any wait may take
MIB = 1 << 20

class Failed(Exception):
    pass

def want(truth, expected, came):
    if not truth:
        raise Failed(f"expected {expected}, came {came!r:.400}")

def equal(what, came, expected):
    if came != expected:
        if isinstance(came, list) and isinstance(expected, list) and len(came) + len(expected) > 12:
            at = next((i for i, (x, y) in enumerate(zip(came, expected)) if x != y), min(len(came), len(expected)))
            what += f", {len(came)} instead of {len(expected)} items, from item {at} on"
            came, expected = came[at:at + 4], expected[at:at + 4]
        raise Failed(f"{what}: expected {expected!r:.300}, came {came!r:.300}")

class Client:
    """One connection. `text`: it writes UUIDs as text; `blob`: it writes data as byte strings."""

    def __init__(self, session=None, path=None, text=False, blob=False, tagged=False, keepalive=None,
                 patience=WAIT):
        self.session, self.text, self.blob, self.tagged = session or uuid4(), text, blob, tagged
        self.got = []                                   # every message, as an object; kind is its name
        self.ws = connect(f"ws{BASE[4:]}/ws/{path or self.session}", open_timeout=patience, close_timeout=patience,
                          ping_interval=keepalive, ping_timeout=keepalive, max_size=None, max_queue=None,
                          compression=None, proxy=None)

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

class Raw:
    """A WebSocket client by hand, which answers no ping by itself."""

    def __init__(self):
        url = urlsplit(BASE)
        self.socket = socket.create_connection((url.hostname, url.port or 80), WAIT)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET {url.path}/ws/{uuid4()} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\n"
                            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
                            .encode())
        self.file, self.start = self.socket.makefile("rb"), time.time()
        status = self.file.readline()
        want(b" 101 " in status, "101", status)
        while self.file.readline().strip():
            pass

    def send(self, opcode, payload=b"", fin=True):
        length = bytes([128 | len(payload)]) if len(payload) < 126 else struct.pack("!BH", 128 | 126, len(payload))
        self.socket.sendall(bytes([fin << 7 | opcode]) + length + bytes(4) + payload)   # masked with zeros

    def frame(self, timeout=WAIT):
        """(opcode, payload), None at the end of the connection."""
        self.socket.settimeout(timeout)
        try:
            head = self.file.read(2)
            if len(head) < 2:
                return None
            length = head[1] & 127
            if length > 125:
                length = int.from_bytes(self.file.read(2 if length == 126 else 8))
            return head[0] & 15, self.file.read(length)
        except ConnectionError:
            return None
        except TimeoutError:
            raise Failed(f"expected a frame within {timeout} s, came nothing") from None

# ---------------------------------------------------------------- checks: commands and answers

def check_answers_use_the_clients_form():
    with Room() as new:
        sub, everybody = uuid4(), [new(text=text, blob=blob) for text in (False, True) for blob in (False, True)]
        for client in everybody:
            client.subscribe(sub)
        data = [b"", bytes(range(256)), b"\0\xff", b"\x80\x17\x18"]
        for n, client in enumerate(everybody):
            client.send("SubmitPublication", subscription_id=sub, submission=data[n])
            for other in everybody:
                other.issues(sub, n + 1)
        ids = everybody[0].issues(sub)
        for client in everybody:
            equal("Issues", client.issues(sub), ids)
            equal("LogIndex", client.index(sub), ids)
            equal("LogEntry", client.entries(sub, ids), [(pub, sub, content) for pub, content in zip(ids, data)])
            equal("other messages", [m for m in client.got if m.kind != "Issue"], [])

def check_decoding_is_lenient_where_it_may_be():
    array = lambda name, fields: [name, list(fields.values())]
    extra = lambda name, fields: {name: {"more": {"x": [1, None]}, **fields, "other": 1.5}}
    reverse = lambda name, fields: {name: dict(reversed(fields.items()))}
    tagged = lambda name, fields: {name: fields}
    for label, shape in (("array", array), ("extra", extra), ("reverse", reverse), ("tagged", tagged)):
        with Room() as new:
            sub, queue, client = uuid4(), uuid4(), new(tagged=shape is tagged)
            new().subscribe(queue)
            def do(name, **fields):
                client.ws.send(cbor2.dumps(shape(name, {k: client.form(v) for k, v in fields.items()})))
            try:
                do("Subscribe", subscription_id=sub)
                do("SubmitPublication", subscription_id=sub, submission=b"x")
                pub, = client.issues(sub, 1)
                do("GetLogIndex", log_id=sub)
                equal("LogIndex", client.take("LogIndex").ids, [pub])
                do("GetLogEntries", log_id=sub, entries=[pub])
                equal("LogEntry", client.take("LogEntry").entries, [(pub, sub, b"x")])
                do("SubscribeQueue", subscription_id=queue, group="g")
                do("SubmitPublication", subscription_id=queue, submission=b"y")
                do("Ack", publication_id=client.issues(queue, 1)[0])
                client.settle()
                do("Unsubscribe", subscription_id=sub)
                do("SubmitPublication", subscription_id=sub, submission=b"z")
                client.error(sub)
            except Failed as error:
                raise Failed(f"{label} form: {error}") from None

def check_undecodable_messages_are_an_error():
    with Room() as new:
        client, one, sub = new(), uuid4().bytes, uuid4()
        good = cbor2.dumps({"Subscribe": {"subscription_id": sub.bytes}})
        bad = [good + b"\0", good + good, good[:-1], b"", b"\xff", b"hello", cbor2.dumps(None), cbor2.dumps({}),
               *(cbor2.dumps(value) for value in (
                   {"Nope": {}}, {"Subscribe": {}}, {"Subscribe": {"subscription_id": one[:15]}}, "Subscribe",
                   {"Subscribe": {"subscription_id": 5}}, {"Subscribe": {"subscription_id": "not a uuid"}},
                   {"SubmitPublication": {"subscription_id": one, "submission": [1, 256]}},
                   {"SubmitPublication": {"subscription_id": one, "submission": [-1]}},
                   {"GetLogEntries": {"log_id": one, "entries": 7}},
                   {"SubscribeQueue": {"subscription_id": one, "group": 7}}))]
        for raw in bad:
            client.ws.send(raw)
            try:
                client.error()
                client.settle()                         # the connection goes on, and it was one Error only
            except Failed as error:
                raise Failed(f"after {raw[:40]!r}: {error}") from None
        client.submit(sub, "x").error(sub)              # so no Subscribe with trailing bytes was carried out

def check_text_frames_are_an_error():
    with Room() as new:
        client = new()
        client.ws.send("hello")
        error = client.error()
        want("Text messages not implemented" in error.message, "Text messages not implemented", error.message)
        client.settle()

def check_unknown_things_are_errors():
    with Room() as new:
        client, a, b = new(), uuid4(), uuid4()
        for command, fields in (("GetLogIndex", {"log_id": a}), ("GetLogEntries", {"log_id": a, "entries": [b]}),
                                ("SubmitPublication", {"subscription_id": a, "submission": b"x"}),
                                ("Unsubscribe", {"subscription_id": a}), ("Ack", {"publication_id": a})):
            client.send(command, **fields)
            try:
                client.error(a, b)
                client.settle()
            except Failed as error:
                raise Failed(f"{command}: {error}") from None

def check_broadcast():
    with Room() as new:
        sub, other, outsider = uuid4(), uuid4(), new()
        members = [new().subscribe(sub) for _ in range(4)]
        idle = new().subscribe(other)
        for n, client in enumerate([*members, outsider] * 3):
            client.submit(sub, n).settle()              # handled, before the next one sends
        ids = members[0].issues(sub, 15)
        for client in members:
            client.issues(sub, 15)
            client.settle()
            equal("Issues of every subscriber", client.issues(sub), ids)
        outsider.settle(), idle.settle()
        equal("Issues elsewhere", outsider.issues(sub) + idle.issues(sub) + idle.issues(other), [])
        equal("contents in order", outsider.contents(sub, ids), [str(n) for n in range(15)])
        equal("LogIndex in order", outsider.index(sub), ids)

def check_subscription_lives_until_the_last_unsubscribe():
    with Room() as new:
        sub, a, b, outsider = uuid4(), new(), new(), new()
        outsider.submit(sub, "too early").error(sub)
        a.subscribe(sub), b.subscribe(sub)
        outsider.submit(sub, 1)
        a.issues(sub, 1), b.issues(sub, 1)
        a.send("Unsubscribe", subscription_id=sub)
        a.settle().submit(sub, 2)
        ids = b.issues(sub, 2)
        equal("Issues after Unsubscribe", a.settle().issues(sub), ids[:1])
        b.send("Unsubscribe", subscription_id=sub)
        b.settle().submit(sub, 3).error(sub)
        outsider.submit(sub, 4).error(sub)
        for client in (a, b, outsider):
            equal("the log afterwards", client.index(sub), ids)
            equal("its entries", client.contents(sub, ids), ["1", "2"])

def check_log_entries():
    with Room() as new:
        sub, client, reader = uuid4(), new(), new()
        a, b, c = client.subscribe(sub).submit(sub, "a", "b", "c").issues(sub, 3)
        equal("in request order, twice if asked twice", reader.contents(sub, [c, a, c, b, a]), list("cacba"))
        equal("empty list", reader.entries(sub, []), [])
        for missing in ([uuid4()], [uuid4(), uuid4()]):
            equal("the entries found", reader.contents(sub, [c, *missing, a]), ["c", "a"])
            error = reader.error(sub, *missing)
            named = [i for i in missing if str(i) in error.message.lower() or i == error.about]
            equal("missing ids that the Error names", named, missing)
            reader.settle()                             # one Error, not more

# ---------------------------------------------------------------- checks: amounts and sizes

def check_1000_publications_at_once():
    with Room() as new:
        sub, publisher, other = uuid4(), new(), new()
        publisher.subscribe(sub), other.subscribe(sub)
        publisher.submit(sub, *range(1000))
        publisher.issues(sub, 1000, timeout=30)
        ids = publisher.submit(sub, "last").issues(sub, 1001)
        equal("Issues at the other", other.issues(sub, 1001, timeout=30), ids)
        expected = [str(n) for n in range(1000)] + ["last"]
        equal("contents", [d.decode() for _, _, d in other.entries(sub, ids, timeout=30)], expected)
        equal("LogIndex", other.index(sub), ids)

def check_large_publications():
    with Room() as new:
        for blob in (False, True):
            sub, client, data = uuid4(), new(blob=blob), os.urandom(MIB)
            client.subscribe(sub).send("SubmitPublication", subscription_id=sub, submission=data)
            first, = client.issues(sub, 1, timeout=30)
            want(client.entries(sub, [first], timeout=30) == [(first, sub, data)], "1 MiB back", "something else")
            big = {"SubmitPublication": {"subscription_id": sub.bytes, "submission": client.form(bytes(4 * MIB))}}
            raw = cbor2.dumps(big)
            for message in (raw, (raw[i:i + 65536] for i in range(0, len(raw), 65536))):
                client.ws.send(message)
                client.error(timeout=30)
                client.settle()
            ids = client.submit(sub, "small").issues(sub, 2)
            equal("LogIndex", client.index(sub), ids)

def check_fragmented_messages():
    with Room() as new:
        sub, client, data = uuid4(), new(blob=True), os.urandom(300_000)
        command = {"SubmitPublication": {"subscription_id": sub.bytes, "submission": data}}
        raw = cbor2.dumps(command)
        client.subscribe(sub).ws.send(raw[i:i + 1000] for i in range(0, len(raw), 1000))
        first, = client.issues(sub, 1)
        want(client.entries(sub, [first]) == [(first, sub, data)], "the same 300 kB back", "something else")
    hand, raw = Raw(), cbor2.dumps({"GetLogEntries": {"log_id": sub.bytes, "entries": []}})
    hand.send(2, raw[:5], fin=False)
    hand.send(9, b"between")
    hand.send(0, raw[5:9], fin=False)
    hand.send(0, b"", fin=False)
    hand.send(0, raw[9:])
    (kind, answer), pong = sorted([hand.frame() or (0, b""), hand.frame() or (0, b"")])
    equal("the pong between, and the kind of the answer", (pong, kind), ((10, b"between"), 2))
    equal("the answer", cbor2.loads(answer), {"LogEntry": []})
    hand.socket.close()

# ---------------------------------------------------------------- checks: sessions

def check_resume_sends_missed_issues_first():
    with Room() as new:
        sub, publisher, here = uuid4(), new(), new()
        session = here.subscribe(sub).session
        witness = new().subscribe(sub)
        publisher.submit(sub, *range(5))
        here.issues(sub, 5), witness.issues(sub, 5)
        for start in (5, 25, 45):                       # three times, so on any node
            here.leave()
            publisher.submit(sub, *range(start, start + 19))
            witness.issues(sub, start + 19)
            here = new(session)
            missed = here.issues(sub, 19)
            ids = publisher.submit(sub, start + 19) and witness.issues(sub, start + 20)
            here.issues(sub, 20)
            equal("missed Issues, then the live one", here.settle().issues(sub), ids[start:])
            equal("missed ones alone", missed, ids[start:start + 19])
        equal("contents", here.contents(sub, ids), [str(n) for n in range(65)])

def check_resume_during_traffic():
    with Room() as new:
        sub, publisher, here, seen = uuid4(), new(), new(), []
        witness = new().subscribe(sub)
        session = here.subscribe(sub).session
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(lambda: [(publisher.submit(sub, n), time.sleep(0.005)) for n in range(400)])
            while not job.done():
                here.issues(sub, 20 if len(seen) < 350 else 0)
                here.leave()
                seen += here.issues(sub)
                here = new(session)
            job.result()
        ids = witness.issues(sub, 400)
        here.issues(sub, 400 - len(seen))
        equal("Issues over all connections", seen + here.settle().issues(sub), ids)

def check_newest_connection_owns_the_session():
    with Room() as new:
        sub, publisher, witness, old = uuid4(), new(), new(), new()
        session = old.subscribe(sub).session
        witness.subscribe(sub)
        for n in (1, 3, 5, 7):
            young = new(session)
            end = old.ended()
            want(end.rcvd is not None and end.rcvd.reason, "a close frame with a reason for the older", str(end))
            for count in (n, n + 1):                    # before and after the older one is gone for good
                pub = publisher.submit(sub, count) and witness.issues(sub, count)[-1]
                young.pump(lambda: pub in young.issues(sub), "the Issue at the newest connection")
                equal("number of its Issues", young.settle().issues(sub).count(pub), 1)
                old.ws.close()
            old = young

def check_session_id_forms():
    with Room() as new:
        sub, publisher, client = uuid4(), new(), new()
        text = str(client.subscribe(sub).session)
        for path in (text.upper(), text.replace("-", ""), "urn:uuid:" + text, text):
            client.leave()
            client = new(path=path)
            publisher.submit(sub, path)
            ids = client.issues(sub, 1)
            equal("the Issue of the same session", client.contents(sub, ids), [path])
        try:
            new(session=uuid1()).settle()               # not v4: accepted, or refused if so configured
        except InvalidStatus as error:
            equal("status for a session id that is not v4", error.response.status_code, 403)

def check_paths_and_upgrade():
    with Room() as new, requests.Session() as session:
        session.trust_env = False
        for path in ("not-a-uuid", str(uuid4())[:-1], "123"):
            try:
                new(path=path)
                raise Failed(f"expected 404 for /ws/{path}, came a connection")
            except InvalidStatus as error:
                equal(f"status for /ws/{path}", error.response.status_code, 404)
        status = session.get(f"{BASE}/ws/{uuid4()}", timeout=WAIT).status_code
        equal("status of a plain GET without upgrade", status, 400)

# ---------------------------------------------------------------- checks: pings

def check_server_pings_every_5_s():
    hand, last = Raw(), None
    for number in range(3):
        equal("an empty ping", hand.frame(5.5 if last is None else 6), (9, b""))
        gap, last = time.time() - (last or hand.start), time.time()
        want(gap <= 5.5 and (number == 0 or gap >= 4.5), "a ping every 5 s, the first within 5.5 s", gap)
        hand.send(10)
    hand.send(2, cbor2.dumps({"GetLogIndex": {"log_id": uuid4().bytes}}))        # alive after 15 s
    equal("kind of the answer", hand.frame()[0], 2)
    hand.socket.close()

def check_silent_client_is_cut_at_10_s():
    hand, seen = Raw(), []
    while (frame := hand.frame(12.5)) is not None:
        seen.append(frame[0])
        want(time.time() - hand.start < 12.5, "the end of the connection by about 10 s", seen)
        if frame[0] == 8:
            break
    took = time.time() - hand.start
    want(8 <= took <= 12, "the end of the connection at about 10 s", took)
    want(9 in seen, "a ping before", seen)

# ---------------------------------------------------------------- checks: queue groups

def gather(clients, done, what, timeout=WAIT):
    """Receives on all clients until done()."""
    deadline = time.time() + timeout
    while not done():
        want(time.time() < deadline, f"{what} within {timeout} s", [len(c.got) for c in clients])
        for client in clients:
            if message := client.read(0.02):
                client.got.append(message)

def check_queue_groups():
    with Room() as new:
        sub, publisher = uuid4(), new()
        listeners = [new().subscribe(sub) for _ in range(2)]
        groups = [[new().join(sub, name) for _ in range(3)] for name in ("a", "g" * 64)]
        workers = [w for group in groups for w in group]
        publisher.submit(sub, *range(30))
        ids = listeners[0].issues(sub, 30)
        for count in (30, 31):                          # 31: the last one comes after whatever was double
            for group in groups:
                gather(group, lambda: sum(len(w.issues(sub)) for w in group) >= count, f"{count} Issues in a group")
            if count == 30:
                for worker in workers:
                    for pub in worker.issues(sub):
                        worker.send("Ack", publication_id=pub)
                    worker.settle()
                ids = publisher.submit(sub, "last") and listeners[0].issues(sub, 31)
        for worker in workers:
            worker.settle()
        for group in groups:
            got = sorted(pub for w in group for pub in w.issues(sub))
            equal("each publication at one member of the group", got, sorted(ids))
        for client in listeners:
            client.issues(sub, 31)
            equal("Issues of a broadcast subscriber", client.settle().issues(sub), ids)
        equal("contents", publisher.contents(sub, ids), [*map(str, range(30)), "last"])

def check_group_names():
    with Room() as new:
        sub, client = uuid4(), new()
        new().subscribe(sub)
        for group in ("", "g" * 65, "€" * 22):
            client.send("SubscribeQueue", subscription_id=sub, group=group)
            client.error(sub)
        for group in ("g", "g" * 64, "€" * 21):
            new().join(sub, group)

def check_redelivery_after_30_s_without_ack():          # the slowest one, so the last
    with Room() as new:
        sub, publisher = uuid4(), new()
        listener, members = new().subscribe(sub), [new().join(sub, "g") for _ in range(2)]
        publisher.submit(sub, *range(8))
        ids = listener.issues(sub, 8)
        where = lambda pub: sorted((m.at, c) for c in range(2) for m in members[c].got
                                   if m.kind == "Issue" and m.pub == pub)
        gather(members, lambda: all(where(pub) for pub in ids), "8 Issues")
        acked, left = ids[::2], ids[1::2]
        for pub in acked:
            members[where(pub)[0][1]].send("Ack", publication_id=pub)
        gather([*members, listener, publisher], lambda: all(len(where(pub)) > 1 for pub in left), "redelivery", 45)
        for pub in left:
            (first, at), (second, other), *more = where(pub)
            want(other != at and not more, "one redelivery, to the other member", (at, other, more))
            want(29 <= second - first <= 40, "redelivery after 30 s", second - first)
            members[other].send("Ack", publication_id=pub)
        for member in members:
            member.settle()
        equal("deliveries of what was acked", [len(where(pub)) for pub in acked], [1] * 4)

def conformance():
    checks, failed = [(name, f) for name, f in globals().items() if name.startswith("check_")], 0
    for name, function in checks:
        name = name.removeprefix("check_").replace("_", "-")
        try:
            function()
            print("ok", name, flush=True)
        except Exception as error:
            failed += 1
            text = str(error) if isinstance(error, Failed) else f"expected no exception, came {error!r}"
            print(f"FAIL {name}: " + " ".join(text.split())[:700], flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed", flush=True)
    return failed == 0

# ---------------------------------------------------------------- survive

class Peer(threading.Thread):
    """A session that stays: when its connection breaks it reconnects with the same session id."""

    def __init__(self, acks=False):
        super().__init__(daemon=True)
        self.session, self.acks, self.client, self.over = uuid4(), acks, None, False
        self.issues, self.answers, self.probes, self.problem = [], [], set(), None
        self.ends = []                                  # when each connection broke
        self.start()

    def run(self):
        while not self.over:
            try:
                self.client = Client(self.session, keepalive=5, patience=2)
                while not self.over:
                    if message := self.client.read(0.5):
                        self.handle(message)
                self.client.ws.close()
            except (OSError, WebSocketException):
                if self.client:
                    self.ends.append(time.time())
                self.client = None
                time.sleep(0.1)
            except Exception as error:
                self.problem = repr(error)
                return

    def handle(self, message):
        if message.kind != "Issue":
            self.answers.append(message)
            return
        message.epoch = len(self.ends)
        self.issues.append(message)
        if self.acks:
            self.client.send("Ack", publication_id=message.pub)

    def send(self, command, **fields):
        """False if it could not be sent; if it could, it may be lost all the same."""
        try:
            self.client.send(command, **fields)
            return True
        except (OSError, WebSocketException, AttributeError):
            return False

    def ask(self, test, command, seconds=30, **fields):
        """The answer to a command; asks again when the connection breaks or nothing comes."""
        deadline = time.time() + seconds
        while time.time() < deadline:
            start, again = len(self.answers), time.time() + 5
            if self.send(command, **fields):
                client = self.client
                while time.time() < again and self.client is client:
                    for message in self.answers[start:]:
                        if test(message):
                            return message
                    time.sleep(0.01)
            time.sleep(0.1)
        raise Failed(f"expected an answer to {command} within {seconds} s, came {self.problem or 'none'}")

    def settle(self):
        self.probes.add(probe := uuid4())
        self.ask(lambda m: getattr(m, "about", None) == probe, "GetLogIndex", log_id=probe)

def follow(peer, label, sub, index, bad):
    """Checks the Issues of a broadcast subscriber against the log; the number of tolerated repeats."""
    last, order, repeats = {}, [], 0
    for m in [m for m in peer.issues if m.sub == sub]:
        if m.pub not in last:
            order.append(m.pub)
        else:
            before, repeats = last[m.pub], repeats + 1
            if before.epoch == m.epoch or before.at < peer.ends[before.epoch] - 10:
                bad.append(f"{label}: {m.pub} came again with no broken connection between")
        last[m.pub] = m
    try:
        equal(f"{label}: Issues without repeats, in log order", order, index)
    except Failed as error:
        bad.append(str(error))
    return repeats

def survive():
    subs, stop = [uuid4() for _ in range(4)], threading.Event()
    publishers, watchers = [Peer() for _ in subs], [Peer() for _ in range(3)]
    workers, reader = [Peer(acks=True) for _ in range(3)], Peer()
    peers = [*publishers, *watchers, *workers, reader]
    follows = [(publishers[i], f"publisher {i}", sub) for i, sub in enumerate(subs)]
    follows += [(w, f"watcher {n} on {i}", sub) for n, w in enumerate(watchers) for i, sub in enumerate(subs)]
    deadline = time.time() + WAIT
    while not all(p.client for p in peers):
        want(time.time() < deadline, "a connection for every session", [p.problem for p in peers])
        time.sleep(0.05)
    for peer, _, sub in follows:
        want(peer.send("Subscribe", subscription_id=sub), "Subscribe sent", "a broken connection")
    for peer in publishers + watchers:
        peer.settle()
    for peer in workers:                                # the queue group, beside the broadcast subscribers
        want(peer.send("SubscribeQueue", subscription_id=subs[3], group="workers"), "SubscribeQueue sent", "no")
        peer.settle()
    sent = {}                                           # content -> (publisher, connection, number)

    def publish():
        number = len(sent) // 4
        for i, peer in enumerate(publishers):
            sent[f"{i}:{number}"] = (i, len(peer.ends), number)
            peer.send("SubmitPublication", subscription_id=subs[i], submission=f"{i}:{number}".encode())

    publish()
    while not (all(any(m.sub == sub for m in p.issues) for p, _, sub in follows) and any(w.issues for w in workers)):
        want(time.time() < deadline + WAIT, "the first Issues everywhere", [len(p.issues) for p in peers])
        time.sleep(0.05)
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("ready", flush=True)
    while not stop.wait(0.03):
        publish()
    for peer in publishers:
        peer.settle()                                   # whatever is accepted is in the log now
    bad, index, repeats = [], {}, 0
    for i, sub in enumerate(subs):
        index[sub] = reader.ask(lambda m: getattr(m, "log", None) == sub, "GetLogIndex", log_id=sub).ids
        contents = []
        for start in range(0, len(index[sub]), 200):
            part = index[sub][start:start + 200]
            answer = reader.ask(lambda m: m.kind == "LogEntry" and [e[0] for e in m.entries] == part,
                                "GetLogEntries", log_id=sub, entries=part)
            contents += [data.decode() for _, _, data in answer.entries]
        if len(set(contents)) != len(contents) or not {(i, sent.get(c, [None])[0]) for c in contents} <= {(i, i)}:
            bad.append(f"log {i}: a publication twice, or one that nobody sent")
        by_connection = [sent[c][1:] for c in contents if c in sent]
        for epoch in {e for e, _ in by_connection}:
            if (numbers := [n for e, n in by_connection if e == epoch]) != sorted(numbers):
                bad.append(f"log {i}: publications of one connection not in the order they were sent")
    delivered = lambda: {m.pub for w in workers for m in w.issues}
    complete = lambda: all(set(index[s]) <= {m.pub for m in p.issues if m.sub == s} for p, _, s in follows)
    end = time.time() + 30
    while not complete() and time.time() < end:
        time.sleep(0.1)
    while not set(index[subs[3]]) <= delivered() and time.time() < end + 45:     # a lost one comes again after 30 s
        time.sleep(0.1)

    for peer, label, sub in follows:
        repeats += follow(peer, label, sub, index[sub], bad)
    breaks, calm = [at for p in peers for at in p.ends], 0
    if delivered() - set(index[subs[3]]):
        bad.append("the queue group got publications that are not in the log")
    for pub in index[subs[3]]:
        times = sorted(m.at for w in workers for m in w.issues if m.pub == pub)
        quiet = bool(times) and not any(b - 2 <= times[0] <= b + 10 for b in breaks)
        calm += quiet
        if not times or quiet and len(times) > 1:
            bad.append(f"queue item {pub} delivered {len(times)} times{' in quiet times' if quiet else ''}")
    bad += [f"a session failed: {p.problem}" for p in peers if p.problem]
    errors = sum(m.kind == "Error" and m.about not in p.probes for p in peers for m in p.answers)
    print("FAIL " + "; ".join(bad[:6]) if bad else "ok", f"({sum(map(len, index.values()))} of {len(sent)} "
          f"publications accepted, {repeats} repeats tolerated around {len(breaks)} broken connections, "
          f"{len(index[subs[3]])} queue items, {calm} of them in quiet times, {errors} Errors)", flush=True)
    for peer in peers:
        peer.over = True
    return not bad

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("conformance", "survive"):
        sys.exit(__doc__)
    BASE = sys.argv[2].rstrip("/")
    try:
        sys.exit(0 if {"conformance": conformance, "survive": survive}[sys.argv[1]]() else 1)
    except Exception as failure:
        print(f"FAIL {failure if isinstance(failure, Failed) else repr(failure)}", flush=True)
        sys.exit(1)

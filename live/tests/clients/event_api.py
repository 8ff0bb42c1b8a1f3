"""Proves from outside that a server keeps the zero-code event API.

conformance: every visible sentence of the contract, one line per check.
survive:     watchers and an inserter at work while a node is killed (a line on stdin ends it).

    python3 event_api.py conformance|survive BASE_URL

The server may be shared, not empty, and several nodes behind one address: users,
collections and event names are new in every run, every request uses a new connection.
"""
import http.client
import json
import re
import socket
import statistics
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import jwt
import requests

BASE, USERS = "", {}
WAIT, SLACK = 10.0, 0.05    # seconds any wait may take; seconds the clocks of client and server may differ
PASSWORD, ORIGIN = "correct horse battery staple", "http://page.example"
EVENT_KEYS = {"id", "user_id", "collection_id", "event", "timestamp", "published", "cancelled", "data"}

class Failed(Exception):
    pass

def equal(what, came, expected):
    if came != expected or type(came) is not type(expected):
        if isinstance(came, list) and isinstance(expected, list) and len(came) + len(expected) > 12:
            at = next((i for i, (x, y) in enumerate(zip(came, expected)) if x != y), min(len(came), len(expected)))
            what += f", {len(came)} instead of {len(expected)} items, from item {at} on"
            came, expected = came[at:at + 4], expected[at:at + 4]
        raise Failed(f"{what}: expected {expected!r:.300}, came {came!r:.300}")

def want(truth, expected, came):
    if not truth:
        raise Failed(f"expected {expected}, came {came!r:.400}")

def uid():
    return str(uuid.uuid4())

def fresh(label):
    return f"{label}-{uuid.uuid4().hex}"

READY = fresh("ready")

def now():
    return int(time.time())

def exact(text):
    """JSON with every number kept as the text it was written in."""
    return json.loads(text, parse_int=lambda s: ("number", s), parse_float=lambda s: ("number", s))

# ---------------------------------------------------------------- requests

def call(method, path, body=None, token=None, raw=None, headers=None, timeout=WAIT):
    head = {"Content-Type": "application/json"} if method == "POST" else {}
    head.update({"Authorization": "Bearer " + token} if token else {}, **(headers or {}))
    data = raw.encode() if isinstance(raw, str) else json.dumps(body).encode() if raw is None and body else raw
    with requests.Session() as session:
        session.trust_env = False
        answer = session.request(method, BASE + path, data=data, headers=head, timeout=timeout, allow_redirects=False)
    answer.encoding = "utf-8"
    return answer

def good(what, answer, *keys):
    """The body of a 200 with exactly these keys; with one key, its value."""
    want(answer.status_code == 200, f"{what}: 200", (answer.status_code, answer.text))
    want("json" in answer.headers.get("Content-Type", ""), f"{what}: a JSON content type", dict(answer.headers))
    body = answer.json()
    want(isinstance(body, dict) and set(body) == set(keys), f"{what}: an object with {sorted(keys)}", body)
    return body[keys[0]] if len(keys) == 1 else body

def refused(what, answer, *statuses):
    """The text of a JSON error."""
    came = (answer.status_code, answer.text)
    want(answer.status_code in statuses, f"{what}: status {' or '.join(map(str, statuses))}", came)
    try:
        text = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        text = None
    want(isinstance(text, str) and text, f'{what}: {{"error": text}}', came)
    return text

def sign_up(name, password=PASSWORD, collection=None):
    return call("POST", "/users", {"username": name, "password": password, "collection_id": collection or uid()})

def log_in(name, password=PASSWORD, timeout=WAIT):
    return call("POST", "/login", {"username": name, "password": password}, timeout=timeout)

def user(label):
    """A user of this run, made at the first use and shared by the checks."""
    if label not in USERS:
        try:
            name, collection = fresh(label), uid()
            new_id = good("sign-up", sign_up(name, collection=collection), "id")
            equal("id of the new user", new_id, str(uuid.UUID(new_id)))
            token = good("login", log_in(name), "jwt")
            USERS[label] = SimpleNamespace(name=name, id=new_id, collection=collection, token=token)
        except Exception as error:
            USERS[label] = error
    if isinstance(USERS[label], Exception):
        raise USERS[label]
    return USERS[label]

def insert_raw(who, name, data, ts=None, collection=None, timeout=WAIT):
    """Insert with `data` and `ts` given as JSON text."""
    head = json.dumps({"event": name, "collection_id": collection or who.collection})[:-1]
    raw = f'{head}, "timestamp": {now() if ts is None else ts}, "data": {data}}}'
    return call("POST", "/insert", raw=raw, token=who.token, timeout=timeout)

def insert(who, name, data=None, ts=None, collection=None):
    ts = now() if ts is None else ts
    event = good("insert", insert_raw(who, name, json.dumps(data), ts, collection), "event")
    want(isinstance(event, dict) and set(event) == EVENT_KEYS, f"an Event with {sorted(EVENT_KEYS)}", event)
    equal("id of the event", event["id"], str(uuid.UUID(event["id"])))
    equal("Event", event, {"id": event["id"], "user_id": who.id, "collection_id": collection or who.collection,
                           "event": name, "timestamp": ts, "published": False, "cancelled": False, "data": data})
    equal("types", [type(event[k]) for k in ("timestamp", "published", "cancelled")], [int, bool, bool])
    return event

def listed(who, collection=None):
    path = f"/events/collections/{collection}" if collection else "/events/user"
    return good(path, call("GET", path, token=who.token), *(["events"] if collection else ["info", "events"]))

def cancel(who, event_id):
    return call("GET", f"/events/{event_id}/cancel", token=who.token)

# ---------------------------------------------------------------- the stream

class Stream:
    """One connection to /events; a thread parses its frames. `frames` may be those of the connection before."""

    def __init__(self, last_id=None, headers=None, frames=None, timeout=30):
        self.frames = [] if frames is None else frames
        self.cond, self.done, self.reading = threading.Condition(), threading.Event(), threading.Event()
        self.reading.set()
        url, self.opened = urlsplit(BASE), time.time()
        connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=timeout)
        connection.connect()
        self.sock = connection.sock
        head = {"Accept": "text/event-stream", **({} if last_id is None else {"Last-Event-ID": last_id})}
        connection.request("GET", url.path + "/events", headers={**head, **(headers or {})})
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

# ---------------------------------------------------------------- checks: users, tokens, bodies

def check_stream_says_something_at_once():
    with Stream() as s:
        s.wait(lambda: s.frames, "connected, or the sync")
        want(s.frames[0].id is not None or s.frames[0].lines == ["event: internal_status", "data: connected"],
             "a published event or internal_status/connected first", s.frames[0].lines)

def check_token_is_hs256_with_three_claims():
    alice = user("alice")
    equal("alg", jwt.get_unverified_header(alice.token)["alg"], "HS256")
    claims = jwt.decode(alice.token, options={"verify_signature": False})
    equal("claims", claims, {"sub": alice.id, "company": "", "exp": claims.get("exp")})
    want(type(claims["exp"]) is int and claims["exp"] > time.time() + 60, "exp in unix seconds, ahead", claims["exp"])

def check_user_name_taken():
    equal("error", refused("second sign-up", sign_up(user("alice").name, "another"), 400), "username already taken")
    for _ in range(2):
        name, gate = fresh("race"), threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(lambda: gate.wait() is not None and sign_up(name)) for _ in range(2)]
            answers = sorted((job.result() for job in jobs), key=lambda a: a.status_code)
        equal("two sign-ups at once", [a.status_code for a in answers], [200, 400])
        equal("error", refused("the second", answers[1], 400), "username already taken")

def check_passwords_over_72_bytes():
    name = fresh("long")
    for password in ("p" * 73, "€" * 25):
        text = refused(f"password of {len(password.encode())} bytes", sign_up(name, password), 400, 422)
        want("password" in text.lower(), "an error that speaks of the password", text)
    good("72 bytes", sign_up(name, "p" * 72), "id")
    good("login with 72 bytes", log_in(name, "p" * 72), "jwt")
    refused("login with one byte more", log_in(name, "p" * 72 + "x"), 400, 401, 422)

def check_login_does_not_tell_unknown_from_wrong():
    times, texts = {True: [], False: []}, set()
    for known in (True, False) * 5:
        name, start = user("alice").name if known else fresh("nobody"), time.perf_counter()
        texts.add(refused("login", log_in(name, "wrong password"), 401))
        times[known].append(time.perf_counter() - start)
    equal("number of different errors", len(texts), 1)
    wrong, unknown = statistics.median(times[True]), statistics.median(times[False])
    want(0.4 < unknown / wrong < 2.5, "equal time for a wrong password and an unknown user", (wrong, unknown))

def check_extra_fields_and_charset():
    charset, name, coll = {"Content-Type": "application/json; charset=utf-8"}, fresh("extra"), uid()
    body = {"username": name, "password": PASSWORD, "collection_id": coll, "more": {"x": [1]}}
    good("sign-up", call("POST", "/users", body, headers=charset), "id")
    token = good("login", call("POST", "/login", body, headers=charset), "jwt")
    body = {"event": fresh("extra"), "collection_id": coll, "timestamp": now(), "data": 1, "id": "x", "more": None}
    event = good("insert", call("POST", "/insert", body, token, headers=charset), "event")
    equal("Event keys", set(event), EVENT_KEYS)

def check_bad_bodies():
    alice, fine = user("alice"), {"event": "e", "collection_id": uid(), "timestamp": 1, "data": 1}
    for path in ("/users", "/login", "/insert"):
        refused(f"{path} with half a JSON", call("POST", path, token=alice.token, raw='{"username": "x", '), 400)
        refused(f"{path} with []", call("POST", path, token=alice.token, raw="[]"), 400, 422)
    refused("/login without password", call("POST", "/login", {"username": "x"}), 400, 422)
    bad = {"username": fresh("bad"), "password": "x", "collection_id": "nope"}
    refused("/users with a bad collection_id", call("POST", "/users", bad), 400, 422)
    for field in ("event", "collection_id", "timestamp"):
        body = {k: v for k, v in fine.items() if k != field}
        refused(f"/insert without {field}", call("POST", "/insert", body, alice.token), 400, 422)
    for field, value in (("event", 5), ("collection_id", "nope"), ("timestamp", "12"), ("timestamp", None),
                         ("timestamp", 2**63), ("timestamp", -2**63 - 1)):
        refused(f"{field} {value}", call("POST", "/insert", {**fine, field: value}, alice.token), 400, 422)
    for value in ("1.5", "1.0", "1e3"):
        refused(f"timestamp {value}", insert_raw(alice, "e", "1", value), 400)

def check_control_characters_in_a_name_are_422():
    for char in "\n\r\t\0\x1b\x7f":
        refused(f"name with {char!r}", insert_raw(user("alice"), f"a{char}b", "1"), 422)

def check_no_valid_token_is_401_before_anything_else():
    claims = {"sub": user("alice").id, "company": "", "exp": now() + 3600}
    head, body, sign = user("alice").token.split(".")
    changed = f"{head}.{body}.{'B' if sign[0] == 'A' else 'A'}{sign[1:]}"
    other = jwt.encode(claims, "s" * 64, algorithm="HS256")
    none = jwt.encode(claims, None, algorithm="none")
    newline = json.dumps({"event": "a\nb", "collection_id": uid(), "timestamp": 1, "data": 1})
    routes = [("GET", f"/events/collections/{uid()}", None), ("GET", "/events/user", None),
              ("GET", f"/events/{uid()}/cancel", None), ("GET", "/events/not-a-uuid/cancel", None)]
    routes += [("POST", "/insert", raw) for raw in ("{not json", "{}", "x" * 40_000, newline)]
    for value in (None, "Bearer", "Bearer x.y.z", "Basic YTpi", *("Bearer " + t for t in (changed, other, none))):
        for method, path, raw in routes:
            answer = call(method, path, raw=raw, headers={"Authorization": value} if value else None)
            refused(f"{method} {path} {raw!r:.20} with {value!r:.40}", answer, 401)

def check_body_limit():
    alice, name, big = user("alice"), fresh("big"), {"blob": "x" * 24_000}
    with watching() as streams:
        insert(alice, name, big)
        all_see(streams, "data of 24 kB", [big], name)
    good("body of 32,000 bytes", insert_raw(alice, fresh("big"), '"' + "x" * 31_800 + '"'), "event")
    long = json.dumps({"event": fresh("big"), "collection_id": uid(), "timestamp": 1, "data": "x" * 40_000})
    refused("body of 40 kB", call("POST", "/insert", raw=long, token=alice.token), 413)
    pieces = (long[i:i + 4000].encode() for i in range(0, len(long), 4000))
    refused("chunked body of 40 kB", call("POST", "/insert", raw=pieces, token=alice.token), 413)
    refused("sign-up of 40 kB", call("POST", "/users", raw=long), 413)

# ---------------------------------------------------------------- checks: what may be in an event

def check_timestamps_over_the_whole_i64():
    alice, name, lo, hi = user("alice"), fresh("i64"), -2**63, 2**63 - 1
    with watching() as streams:
        last = [insert(alice, name, n, ts) for n, ts in enumerate((lo, -1, 0, hi))][-1]
        all_see(streams, "what fired", [0, 1, 2], name)
    stored = [e["timestamp"] for e in listed(alice)["events"] if e["event"] == name]
    equal("timestamps in the list", stored, [lo, -1, 0, hi])
    good("cancel", cancel(alice, last["id"]), "event")

def check_data_is_kept_exactly():
    alice, coll = user("alice"), uid()
    texts = [r'{"a\u0000b": "\u0000"}', "18446744073709551615", "-9223372036854775808", "123456789012345678901234",
             "-123456789012345678901234", "1234567890.12345678901234", "[" * 100 + "]" * 100,
             '{"d":' * 100 + "1" + "}" * 100, "null", "true", '"text"', "[]", "{}", "0", "-1", "0.5",
             r'"line\nend\r\n\n: data: x"', '"\u2028 \u00e9 \U0001f600"', '{\n "a": [1,\n\t2]\r\n}']
    names = [fresh("data") for _ in texts]
    with watching() as streams:
        for name, text in zip(names, texts):
            answer = insert_raw(alice, name, text, collection=coll)
            good(f"insert of {text:.40}", answer, "event")
            equal(f"answer to {text:.40}", exact(answer.text)["event"]["data"], exact(text))
        flush(streams)
        frames = [(s.of(name), text) for s in streams for name, text in zip(names, texts)]
    for got, text in frames:
        equal(f"frames of {text:.40}", [f.fields for f in got], [["data", "event", "id"]])
        equal(f"stream for {text:.40}", exact(got[0].data), exact(text))
    answer = call("GET", f"/events/collections/{coll}", token=alice.token)
    stored = {e["event"]: e["data"] for e in exact(answer.text)["events"]}
    for name, text in zip(names, texts):
        equal(f"list for {text:.40}", stored.get(name), exact(text))

def check_any_event_name_is_safe():
    tails = ("_u_", "_v_x", "a: b", " ", "data: x", '"quoted"', "%00/../?", "'; --", "\u2028\u00fc\u2603", "n" * 300)
    names = [fresh(" x") + tail for tail in tails] + ["_u_" + fresh(""), "_v_" + fresh("")]
    who = user("under_u_score_v_")
    with watching() as streams:
        for name in names:
            insert(who, name, name)
        all_see(streams, "names on the stream", names, *names)
    good("login afterwards", log_in(who.name), "jwt")
    for events in (listed(who)["events"], listed(who, who.collection)):
        equal("names in the list", sorted(e["event"] for e in events), sorted(names))

# ---------------------------------------------------------------- checks: the stream

def check_stream_framing():
    with watching(1) as (s,):
        kind = s.answer.headers.get("Content-Type", "")
        want(kind.startswith("text/event-stream"), "content type text/event-stream", kind)
        insert(user("alice"), fresh("frame"), {"a": [1, "x"]})
        flush([s])
        for f in s.frames:
            want("\r" not in "".join(f.lines), "lines that end in \\n", f.lines)
            if f.event == "internal_status":            # `connected` only while nothing has been published
                equal("a frame that is no event", f.lines, ["event: internal_status", "data: ping"])
            else:
                equal(f"parts of {f.lines}", f.fields, ["data", "event", "id"])
                json.loads(f.data)

def check_sync_then_live_exactly_once():
    alice, x, y = user("alice"), fresh("x"), fresh("y")
    with watching() as old:
        for n, name in enumerate((x, x, y, x)):
            insert(alice, name, n)
        flush(old)
        with watching() as new:
            for n in (10, 11, 12):
                insert(alice, x, n)
            all_see(old, "live", [0, 1, 2, 3, 10, 11, 12], x, y)
            all_see(new, "sync, then live", [2, 3, 10, 11, 12], x, y)
            ids = {tuple(f.id for f in s.of(x, y)[-5:]) for s in old + new}
            equal("different lists of ids on the connections", len(ids), 1)

def check_latest_is_the_one_published_last():
    alice, x, y = user("alice"), fresh("x"), fresh("y")
    with watching() as old:
        insert(alice, x, "first, high timestamp")
        insert(alice, y, "scheduled", now() + 2)
        insert(alice, y, "at once")
        flush(old)
        insert(alice, x, "second, low timestamp", -5)
        for s in old:
            s.wait_count(2, x)
            s.wait_count(2, y)
        with watching() as new:
            all_see(new, "sync", ["second, low timestamp"], x)
            all_see(new, "sync", ["scheduled"], y)

def check_sync_of_120_names_in_id_order():
    names = [fresh("many") for _ in range(120)]
    with watching() as old:
        for n, name in enumerate(names):
            insert(user("alice"), name, n)
        flush(old)
        with watching() as new:
            all_see(new, "sync", list(range(120)), *names)

def check_resume_gets_what_was_missed_and_no_sync():
    alice, x, y = user("alice"), fresh("x"), fresh("y")
    with watching() as old:
        insert(alice, x, 1)
        insert(alice, y, 2)
        flush(old)
        with Stream() as s:                             # nothing but a sync: the resume comes right after a sync
            s.wait(lambda: s.of(READY), "the sync")
            last, middle = s.last_id(), s.of(x)[0].id
        for n, name in ((3, x), (4, y), (5, x)):
            insert(alice, name, n)
        flush(old)
        for start, missed in ((last, [3, 4, 5]), (middle, [2, 3, 4, 5])) * 2:
            with Stream(start) as s:
                s.wait_count(len(missed), x, y)
                all_see([s], f"missed since {start}", missed, x, y)
                early = [f.lines for f in s.frames if f.data == "connected" or f.id and id_key(f.id) <= id_key(start)]
                equal("connected, or events up to Last-Event-ID", early, [])

def check_resume_during_traffic_has_no_gap():
    alice, x = user("alice"), fresh("x")
    with watching(1) as (s,):
        insert(alice, x, 0)
        s.wait_count(1, x)
        got, last = s.of(x), s.of(x)[0].id
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: [insert(alice, x, n) for n in range(1, 151)])
        while len(got) < 151:
            with Stream(last) as s:
                s.wait_count(min(151 - len(got), 30), x)
                part = list(s.frames)
            got, last = got + [f for f in part if f.event == x], [f.id for f in part if f.id][-1]
        job.result()
    equal("numbers over all connections", [json.loads(f.data) for f in got], list(range(151)))
    rising(got)

def check_strange_last_event_ids():
    alice, x = user("alice"), fresh("x")
    with watching() as old:
        insert(alice, x, 0)
        flush(old)
        ahead = re.sub(r"\d+", lambda m: str(int(m[0]) + 10**12), old[0].last_id(), count=1)
    for wrong in ("garbage", "12abc", "-"):
        with Stream(wrong) as s:
            s.wait_count(1, x)
            all_see([s], f"sync for {wrong!r}", [0], x)
    for far in (ahead, ahead, str(2**63 - 1), str(2**64 - 1)):
        with Stream(far) as s:
            y = fresh("y")
            insert(alice, y, 1)
            s.wait_count(1, y)
            insert(alice, y, 2)
            all_see([s], f"events after Last-Event-ID {far}", [1, 2], y)

def check_heartbeat():
    with watching(3) as streams:
        for s in streams:
            s.wait_count(2, "internal_status", timeout=22)
            first, second = s.of("internal_status")[:2]
            equal("ping", (first.lines, second.lines), (["event: internal_status", "data: ping"],) * 2)
            want(first.at - s.opened <= 10.5, "the first ping within 10.5 s", first.at - s.opened)
            want(9 <= second.at - first.at <= 11, "a ping every 10 s", second.at - first.at)

def check_slow_client_loses_nothing():
    who, x, total, got, s = user("flood"), fresh("x"), 300, [], Stream()
    flush([s])
    s.reading.clear()                                   # the client stops reading
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: insert(who, x, [n, "x" * 24_000]), range(total)))
    s.reading.set()
    deadline = time.time() + 60
    while len(got) < total:                             # it may be cut off for being slow, and then goes on by id
        s.wait(lambda: s.done.is_set() or len(got) + len(s.of(x)) >= total, "all events", deadline - time.time())
        s.__exit__()
        got, last = got + s.of(x), s.last_id() if s.frames else last
        s = Stream(last)
    s.__exit__()
    equal("numbers, sorted", sorted(json.loads(f.data)[0] for f in got), list(range(total)))
    rising(got)

# ---------------------------------------------------------------- checks: schedule, cancel, lists, CORS

def check_scheduled_events_fire_at_their_second():
    alice, x = user("alice"), fresh("x")
    flags = lambda: [e["published"] for e in listed(alice)["events"] if e["event"] == x]
    with watching() as streams:
        dues = {n: now() + n for n in (4, 2, 3)}
        for n, due in dues.items():
            event = insert(alice, x, n, due)
            equal("stored at once", [e for e in listed(alice)["events"] if e["id"] == event["id"]], [event])
        for s in streams:
            s.wait_count(3, x)
            late = [f.at - dues[json.loads(f.data)] for f in s.of(x)]
            want(-SLACK <= min(late) and max(late) <= 1, "events within 1 s after their timestamp, not before", late)
        all_see(streams, "order", [2, 3, 4], x)
    deadline = time.time() + WAIT
    while flags() != [True] * 3 and time.time() < deadline:
        time.sleep(0.1)
    equal("published, afterwards", flags(), [True] * 3)

def check_events_of_one_second_come_in_order():
    names, due = [fresh("x") for _ in range(3)], now() + 4
    with watching() as streams:
        plan = [(due + (n * 7 % 3 == 1), n) for n in range(40)]
        for ts, n in plan:
            insert(user("alice"), names[n % 3], n, ts)
        want(time.time() < due, "40 inserts within 4 s", "more time used")
        for s in streams:
            s.wait_count(40, *names)
        all_see(streams, "order (timestamp, insertion)", [n for _, n in sorted(plan)], *names)

def check_cancel_rules():
    alice, bob, x = user("alice"), user("bob"), fresh("x")
    with watching() as streams:
        due = now() + 3
        gone, kept = insert(alice, x, "gone", due), insert(alice, x, "kept", due)
        insert(alice, x, "later", due + 1)
        refused("cancel by another user", cancel(bob, kept["id"]), 403)
        equal("cancelled event", good("cancel", cancel(alice, gone["id"]), "event"), {**gone, "cancelled": True})
        refused("second cancel", cancel(alice, gone["id"]), 409)
        refused("unknown id", cancel(alice, uid()), 404)
        refused("id that is not a UUID", cancel(alice, "not-a-uuid"), 404)
        for s in streams:
            s.wait_count(2, x)
        all_see(streams, "what fired", ["kept", "later"], x)
        refused("cancel after publication", cancel(alice, kept["id"]), 409)
    stored = [e for e in listed(alice)["events"] if e["id"] == gone["id"]]
    equal("cancelled event in the list", stored, [{**gone, "cancelled": True}])

def check_lists():
    carol, bob, x, start = user("carol"), user("bob"), fresh("x"), now()
    a, b = insert(carol, x, 1, start + 1000), insert(carol, x, 2, -7)
    c, d = insert(bob, x, 3, start + 500, carol.collection), insert(carol, x, 4, start - 3, bob.collection)
    e = insert(carol, x, 5, start - 5)
    plain = lambda events: [{**event, "published": None} for event in events]
    mine, bobs = listed(carol), listed(bob)
    equal("events, by timestamp", plain(mine["events"]), plain([b, e, d, a]))
    equal("info, by timestamp", plain(mine["info"]), plain([b, e, c, a]))
    for who in (carol, bob):
        equal("collection, by timestamp", plain(listed(who, carol.collection)), plain([b, e, c, a]))
    want(d["id"] in [i["id"] for i in bobs["info"]], "in bob's info what carol put there", bobs["info"])
    want(c["id"] in [i["id"] for i in bobs["events"]], "in bob's events what he put elsewhere", bobs["events"])
    for who, event in ((carol, a), (bob, c)):
        good("cancel", cancel(who, event["id"]), "event")
    for collection in (uid(), "not-a-uuid", "123"):
        equal(f"unknown collection {collection}", listed(carol, collection), [])

def check_cors():
    split = lambda text: {word.strip().lower() for word in (text or "").split(",")}
    names = ["allow-origin", "allow-credentials", "max-age", "allow-methods", "allow-headers"]
    for method, path in (("POST", "/insert"), ("GET", "/events/user"), ("GET", "/events")):
        ask = {"Access-Control-Request-Method": method,
               "Access-Control-Request-Headers": "accept,authorization,content-type"}
        answer = call("OPTIONS", path, headers={"Origin": ORIGIN, **ask})
        want(answer.status_code in (200, 204), "preflight: 200 or 204", (answer.status_code, answer.text))
        *fixed, methods, allowed = [answer.headers.get(f"Access-Control-{name}") for name in names]
        equal("origin, credentials, max-age", fixed, [ORIGIN, "true", "3600"])
        want(method.lower() in split(methods) <= {"get", "post", "options", "head"}, "GET, POST", methods)
        want({"authorization", "accept", "content-type"} <= split(allowed), "the three allowed headers", allowed)
        other = call("OPTIONS", path, headers={"Origin": "http://evil.example", **ask})
        equal("allow-origin for another origin", other.headers.get("Access-Control-Allow-Origin"), None)
    ask = lambda origin: call("GET", "/events/user", token=user("bob").token, headers={"Origin": origin}).headers
    with Stream(headers={"Origin": ORIGIN}) as s:
        for head in (ask(ORIGIN), s.answer.headers):
            equal("origin, credentials", [head.get(f"Access-Control-{name}") for name in names[:2]], [ORIGIN, "true"])
    equal("allow-origin for another", ask("http://evil.example").get("Access-Control-Allow-Origin"), None)

def check_hammered_login_is_429_and_delays_no_event():  # must be the last one: it uses up the login limit
    name, seen, delays, x = fresh("hammer"), [], [], fresh("x")
    def hammer(_):
        if not any(a.status_code == 429 for a in seen):
            seen.append(log_in(name, "wrong", timeout=60))
    with watching() as streams, ThreadPoolExecutor(80) as pool:
        jobs = pool.map(hammer, range(400))
        for n in range(5):
            start = time.time()
            insert(user("alice"), x, n)
            for s in streams:
                s.wait_count(n + 1, x)
            delays.append(max(s.of(x)[n].at for s in streams) - start)
        list(jobs)
    equal("statuses other than 401", sorted({a.status_code for a in seen} - {401}), [429])
    refused("too many logins", next(a for a in seen if a.status_code == 429), 429)
    want(max(delays) < 2, "events within 2 s during 80 parallel logins", delays)

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

class Watcher(threading.Thread):
    """Watches /events and reconnects at once with Last-Event-ID when the stream ends or breaks."""

    def __init__(self):
        super().__init__(daemon=True)
        self.frames, self.connections, self.over = [], 0, False
        self.start()

    def run(self):
        while not self.over:
            ids = [f.id for f in self.frames if f.id is not None]
            try:
                stream = Stream(ids[-1] if ids else None, frames=self.frames, timeout=15)
                self.connections += 1
                stream.done.wait()
            except (OSError, http.client.HTTPException, Failed):
                time.sleep(0.2)

    def of(self, name):
        return [(json.loads(f.data), f) for f in list(self.frames) if f.event == name]

class Inserter:
    """Inserts 0, 1, 2, ... and keeps for each what the answers said."""

    def __init__(self, who):
        self.who, self.name, self.records, self.problems = who, fresh("survive"), [], []

    def put(self, ahead=0):
        rec = SimpleNamespace(n=len(self.records), ahead=ahead, ts=now() + ahead, tries=0, ok=False, acked=0.0)
        self.records.append(rec)
        give_up = time.time() + 30
        while not rec.ok and time.time() < give_up:
            rec.tries += 1
            try:
                answer = insert_raw(self.who, self.name, rec.n, rec.ts, timeout=5)
                rec.ok, rec.acked = answer.status_code == 200, time.time()
                if not rec.ok and answer.status_code < 500:
                    self.problems.append(f"insert {rec.n}: expected 200, came {answer.status_code} {answer.text:.100}")
                    break
            except requests.RequestException:
                pass
            if not rec.ok:
                time.sleep(0.1)
        return rec.ok and rec.tries == 1

    def verify(self, watcher):
        """What is wrong with what the watcher got."""
        got, bad = watcher.of(self.name), []
        certain = {r.n: r for r in self.records if r.ok and r.tries == 1}
        try:
            rising(watcher.frames, "ids over all connections")
        except Failed as error:
            bad.append(str(error))
        frames = {r.n: [] for r in self.records}
        for n, frame in got:
            frames.setdefault(n, []).append(frame)
        if len(frames) > len(self.records):
            bad.append("a number that was never inserted")
        for r in self.records:
            came = frames[r.n]
            low, high = (1, 1) if r.n in certain else (int(r.ok), r.tries)
            if not low <= len(came) <= high:
                bad.append(f"{r.n} came {len(came)} times, expected {low} to {high}")
            if any(f.at < r.ts - SLACK for f in came):
                bad.append(f"{r.n} came before its timestamp")
        order = [n for n, _ in got if n in certain]
        at_once = [n for n in order if not certain[n].ahead]
        later = [n for n in order if certain[n].ahead and certain[n].acked < certain[n].ts]
        if at_once != sorted(at_once):
            bad.append("immediate events out of the order of insertion")
        if later != sorted(later, key=lambda n: (certain[n].ts, n)):
            bad.append("scheduled events out of the order (timestamp, insertion)")
        return bad

def survive():
    deadline = time.time() + 90
    while isinstance(USERS.get("survivor"), Exception) or "survivor" not in USERS:
        USERS.pop("survivor", None)
        try:
            user("survivor")
        except Failed as error:                         # an earlier run may have used up the sign-up limit
            want("429" in str(error) and time.time() < deadline, "a user", error)
            time.sleep(3)
    stop, watchers, inserter = threading.Event(), [Watcher() for _ in range(5)], Inserter(user("survivor"))

    def everywhere(numbers, seconds):
        end = time.time() + seconds
        while not all(numbers <= {n for n, _ in w.of(inserter.name)} for w in watchers) and time.time() < end:
            time.sleep(0.1)

    inserter.put()
    everywhere({0}, WAIT)
    want(all(w.of(inserter.name) for w in watchers), "the first event on every stream", "nothing")
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("ready", flush=True)
    while not stop.wait(0.02):
        number = len(inserter.records)
        inserter.put(number // 5 % 3 + 1 if number % 5 == 4 else 0)
    time.sleep(max(0.0, max(r.ts for r in inserter.records) + 1.5 - time.time()))  # the last scheduled one is due
    any(inserter.put() for _ in range(20))              # until one is certainly the last of all
    certain = {r.n for r in inserter.records if r.ok and r.tries == 1}
    everywhere(certain, 30)
    bad = inserter.problems + [f"watcher {i}: {text}" for i, w in enumerate(watchers) for text in inserter.verify(w)]
    if len({tuple((f.id, n) for n, f in w.of(inserter.name)) for w in watchers}) != 1:
        bad.append("the watchers did not all get the same sequence of (id, number)")
    breaks = sum(w.connections - 1 for w in watchers)
    print("FAIL " + "; ".join(bad[:6]) if bad else "ok", f"({len(certain)} certain and "
          f"{len(inserter.records) - len(certain)} uncertain events, 5 watchers, {breaks} reconnects)", flush=True)
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

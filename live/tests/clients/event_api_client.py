"""Requests to the event API, and what a good and a refused answer must look like."""
import json
import time
import uuid
from types import SimpleNamespace

from expect import WAIT, equal, want
from server import SERVER

USERS = {}
SLACK = 0.05                                            # seconds the clocks of client and server may differ
PASSWORD = "correct horse battery staple"
EVENT_KEYS = {"id", "user_id", "collection_id", "event", "timestamp", "published", "cancelled", "data"}

def uid():
    return str(uuid.uuid4())

def fresh(label):
    return f"{label}-{uuid.uuid4().hex}"

def now():
    return int(time.time())

def call(method, path, body=None, token=None, raw=None, headers=None, timeout=WAIT):
    head = {"Content-Type": "application/json"} if method == "POST" else {}
    head.update({"Authorization": "Bearer " + token} if token else {}, **(headers or {}))
    data = raw.encode() if isinstance(raw, str) else json.dumps(body).encode() if raw is None and body else raw
    with SERVER.session() as session:
        answer = session.request(method, SERVER.base + path, data=data, headers=head, timeout=timeout,
                                 allow_redirects=False)
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

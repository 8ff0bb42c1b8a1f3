"""Checks: what a request may and must not look like - body, names, token, size."""
import json

import jwt

from event_api_client import EVENT_KEYS, PASSWORD, call, fresh, good, insert, insert_raw, now, refused, uid, user
from event_api_stream import all_see, watching
from expect import equal

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

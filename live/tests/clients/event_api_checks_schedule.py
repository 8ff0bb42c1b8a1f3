"""Checks: when and in which order events fire, and cancelling them."""
import json
import time

from event_api_client import SLACK, cancel, fresh, good, insert, listed, now, refused, uid, user
from event_api_stream import all_see, watching
from expect import WAIT, equal, want

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

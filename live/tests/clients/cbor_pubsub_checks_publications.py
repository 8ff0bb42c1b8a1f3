"""Checks: who gets a publication, how long a subscription lives, what is in its log."""
from uuid import uuid4

from cbor_pubsub_client import Room
from expect import equal

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

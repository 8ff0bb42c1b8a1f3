"""Checks: queue groups. The redelivery is the slowest check of all, so the last."""
import time
from uuid import uuid4

from cbor_pubsub_client import Room
from expect import WAIT, equal, want

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

def check_redelivery_after_30_s_without_ack():
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

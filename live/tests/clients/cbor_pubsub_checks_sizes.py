"""Checks: many publications, large ones, and messages in fragments."""
import os
from uuid import uuid4

import cbor2

from cbor_pubsub_client import Room
from cbor_pubsub_raw import Raw
from expect import equal, want

MIB = 1 << 20

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

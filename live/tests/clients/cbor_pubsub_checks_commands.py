"""Checks: how commands and answers are written, and which are an Error."""
from uuid import uuid4

import cbor2

from cbor_pubsub_client import Room
from expect import Failed, equal, want

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

"""Checks: what may be in an event - timestamps, data, names."""
import json

from event_api_client import call, cancel, fresh, good, insert, insert_raw, listed, log_in, uid, user
from event_api_stream import all_see, flush, watching
from expect import equal

def exact(text):
    """JSON with every number kept as the text it was written in."""
    return json.loads(text, parse_int=lambda s: ("number", s), parse_float=lambda s: ("number", s))

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

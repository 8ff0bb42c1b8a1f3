"""Checks: the stream - frames, sync, resume, heartbeat, slow clients."""
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

from event_api_client import fresh, insert, now, user
from event_api_stream import READY, Stream, all_see, flush, id_key, rising, watching
from expect import equal, want

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

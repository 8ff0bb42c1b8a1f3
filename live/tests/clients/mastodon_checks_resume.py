"""Checks: Last-Event-ID on event streams - what was missed in a short absence comes, in order and once."""
import json
from contextlib import ExitStack

from expect import equal, want
from mastodon_http import Events
from mastodon_redis import publish
from mastodon_seed import account, big, insert, new_list, word
from mastodon_socket import Socket
from mastodon_view import person, status, tag_channel
from mastodon_wait import each

def numbers(count):
    return [str(big()) for _ in range(count)]

def known(stream, wanted):
    """Those of these deletes that came on the stream, as they came."""
    return [data for event, data in stream.came() if data in wanted]

def first_ids(path, token, channel, events):
    """The ids of these events, read on a connection that then closes."""
    with Events(path, token) as s:
        s.settle(channel)
        for number in events:
            publish(channel, "delete", number)
        s.mark(channel)
        equal("events", known(s, set(events)), events)
        ids = [event.id for event in s.events if event.data in events]
    want(all(ids) and len(set(ids)) == len(ids), "an id of its own in every event", ids)
    return ids

def check_resume_gets_what_was_missed():
    def run(_, path, channel, who, listener):
        old, later = numbers(3), numbers(2)
        with ExitStack() as stack:
            if listener:
                stack.enter_context(Events(path, who.token)).settle(channel)
            ids = first_ids(path, who.token, channel, old)
            for number in later:
                publish(channel, "delete", number)
            for last in (2, 2, 0):
                with Events(path, who.token, last_id=ids[last]) as s:
                    s.settle(channel)
                    publish(channel, "delete", live := numbers(1)[0])
                    s.mark(channel)
                    later.append(live)
                    equal(f"events since {ids[last]}", known(s, {*old, *later}), old[last + 1:] + later)
    cases = []
    for listener in (False, True):
        who = [account() for _ in range(4)]
        number, tag = new_list(who[1]), word()
        cases += [(f"{path} {'with' if listener else 'without'} a listener", path, channel, owner, listener)
                  for path, channel, owner in (
                      ("/user", f"timeline:{who[0].id}", who[0]),
                      (f"/list?list={number}", f"timeline:list:{number}", who[1]),
                      (f"/hashtag?tag={tag}", tag_channel(tag), who[2]),
                      ("/direct", f"timeline:direct:{who[3].id}", who[3]))]
    each(cases, run)

def check_resume_of_both_channels_of_user():
    who = account()
    home, notifications = f"timeline:{who.id}", f"timeline:{who.id}:notifications"
    missed = numbers(4)
    with Socket(who.token, query="?stream=user") as listener:
        listener.settle(home).settle(notifications)
        ids = first_ids("/user", who.token, home, numbers(1))
        for number, channel in zip(missed, (home, notifications, notifications, home)):
            publish(channel, "delete", number)
        with Events("/user", who.token, last_id=ids[0]) as s:
            s.settle(home).settle(notifications)
            equal("events, sorted", sorted(known(s, set(missed))), sorted(missed))

def check_resume_obeys_the_filters():
    who, tag = account(), word()
    blocked, friend = person("blocked.example"), person("friend.example")
    insert("blocks", account_id=who.id, target_account_id=int(blocked["id"]))
    ids = first_ids(path := f"/hashtag?tag={tag}", who.token, tag_channel(tag), numbers(1))
    good = status(friend)
    for post in (status(blocked), good, status(blocked)):
        publish(tag_channel(tag), "update", post)
    with Events(path, who.token, last_id=ids[0]) as s:
        s.settle(tag_channel(tag))
        updates = [data for event, data in s.came() if event == "update"]
        equal("statuses", [json.loads(data) for data in updates], [{**good, "filtered": []}])

def check_resume_gives_nothing_of_others():
    mine, theirs = account(), account()
    with Socket(theirs.token, query="?stream=user") as listener:
        listener.settle(f"timeline:{theirs.id}")
        ids = first_ids("/user", theirs.token, f"timeline:{theirs.id}", numbers(2))
        publish(f"timeline:{theirs.id}", "delete", secret := numbers(1)[0])
        with Events("/user", mine.token, last_id=ids[0]) as s:
            s.settle(f"timeline:{mine.id}")
            want(secret not in s.raw.decode(), "no event of another account", s.raw)

def check_strange_last_event_ids():
    def run(last):
        who = account()
        with Events("/user", who.token, last_id=last) as s:
            s.settle(f"timeline:{who.id}").mark(f"timeline:{who.id}")
    each([(last,) for last in ("garbage", "0", "-1", "", str(2**63 - 1), str(2**64), "9" * 40, "a-b-c", "0-0", "1:2",
                               "%00", "x" * 2000)], run)

def check_no_replay_without_last_event_id():
    who = account()
    old = numbers(2)
    first_ids("/user", who.token, f"timeline:{who.id}", old)
    with Events("/user", who.token) as s:
        s.settle(f"timeline:{who.id}")
        equal("old events", known(s, set(old)), [])

"""Checks that take up to a minute: they are started before all others, side by side, and collected last."""
import time
from concurrent.futures import ThreadPoolExecutor

from expect import Failed, equal, want
from mastodon_http import Events
from mastodon_seed import account, execute, insert, word
from mastodon_socket import Socket
from mastodon_view import Viewer, person, status

JOBS = {}

def silent_client():
    with Socket(account().token, pongs=False) as ws:
        ws.wait(lambda: ws.pings, "a ping", 33)
        ws.ended("a client that did not answer a ping", 33)
        took = time.time() - ws.pings[0]
        want(took > 25, "the end no sooner than the next ping", took)

def answering_client():
    who = account()
    with Socket(who.token) as ws:
        ws.subscribe("user").settle(f"timeline:{who.id}")
        ws.wait(lambda: ws.pings, "a ping", 33)
        ws.wait(lambda: len(ws.pings) > 1, "the next ping", 33)
        gap = ws.pings[1] - ws.pings[0]
        want(27 < gap < 33, "a ping every 30 s", gap)
        ws.mark(f"timeline:{who.id}")

def heartbeat():
    with Events("/user", account().token) as s:
        for number in (1, 2):
            s.wait(lambda: len(s.thumps) >= number, ":thump", 17)
        gap = s.thumps[1] - s.thumps[0]
        want(13 < gap < 17, ":thump every 15 s", gap)
        equal("body", s.raw, b":)\n:thump\n\n:thump\n\n")

class Change:
    """One viewer on a hashtag and one author; what is between them changes once."""

    def __init__(self, name, change, seen_before=True):
        self.name, self.seen_before, self.took = name, seen_before, None
        who, self.domain = account(), f"{word()}.example"
        self.author = person(self.domain)
        self.me, self.other = who.id, int(self.author["id"])
        if not seen_before:                             # known before the viewer comes
            insert("blocks", account_id=self.me, target_account_id=self.other)
        self.viewer = Viewer(who).only_the_tag()
        equal(f"{name}: seen before", self.seen(), seen_before)
        change(self)
        self.start = time.time()

    def seen(self):
        return self.viewer.sees(status(self.author))

    def look(self):
        if self.seen() != self.seen_before:
            self.took = self.took or time.time() - self.start
        else:
            want(self.took is None, f"{self.name}: the change to last", "the old state again")
        return self.took

CHANGES = (
    ("block", lambda c: insert("blocks", account_id=c.me, target_account_id=c.other)),
    ("blocked by the author", lambda c: insert("blocks", account_id=c.other, target_account_id=c.me)),
    ("mute", lambda c: insert("mutes", account_id=c.me, target_account_id=c.other)),
    ("domain block", lambda c: insert("account_domain_blocks", account_id=c.me, domain=c.domain)),
    ("unblock", lambda c: execute("DELETE FROM blocks WHERE account_id = %s", c.me), False))

def changed_relationships():
    changes = [Change(*change) for change in CHANGES]
    while not all([change.look() for change in changes]):
        late = [change.name for change in changes if not change.took and time.time() - change.start > 60]
        want(not late, "changes that show within 60 s", late)
        time.sleep(1)                                   # a post of every author each second
    for change in changes:
        change.viewer.socket.close()

def start():
    pool = ThreadPoolExecutor(4)
    for function in (silent_client, answering_client, heartbeat, changed_relationships):
        JOBS[function] = pool.submit(function)

def collect(function):
    want(function in JOBS, "a check that was started first", "none")
    error = JOBS[function].exception(80)
    if error:
        raise Failed(str(error) if isinstance(error, Failed) else f"expected no exception, came {error!r}")

def check_heartbeat_every_15_s():
    collect(heartbeat)

def check_ping_every_30_s():
    collect(answering_client)

def check_client_without_pong_is_cut():
    collect(silent_client)

def check_changed_relationships_show_within_60_s():
    collect(changed_relationships)

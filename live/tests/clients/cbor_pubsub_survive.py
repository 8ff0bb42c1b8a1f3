"""Subscribers, publishers and a queue group at work while a node is killed: what was accepted arrives, in order."""
import threading
import time
from uuid import uuid4

from websockets.exceptions import WebSocketException

from cbor_pubsub_client import Client
from expect import WAIT, Failed, equal, want
from runner import ready, verdict

class Peer(threading.Thread):
    """A session that stays: when its connection breaks it reconnects with the same session id."""

    def __init__(self, acks=False):
        super().__init__(daemon=True)
        self.session, self.acks, self.client, self.over = uuid4(), acks, None, False
        self.issues, self.answers, self.probes, self.problem = [], [], set(), None
        self.ends = []                                  # when each connection broke
        self.start()

    def run(self):
        while not self.over:
            try:
                self.client = Client(self.session, keepalive=5, patience=2)
                while not self.over:
                    if message := self.client.read(0.5):
                        self.handle(message)
                self.client.ws.close()
            except (OSError, WebSocketException):
                if self.client:
                    self.ends.append(time.time())
                self.client = None
                time.sleep(0.1)
            except Exception as error:
                self.problem = repr(error)
                return

    def handle(self, message):
        if message.kind != "Issue":
            self.answers.append(message)
            return
        message.epoch = len(self.ends)
        self.issues.append(message)
        if self.acks:
            self.client.send("Ack", publication_id=message.pub)

    def send(self, command, **fields):
        """False if it could not be sent; if it could, it may be lost all the same."""
        try:
            self.client.send(command, **fields)
            return True
        except (OSError, WebSocketException, AttributeError):
            return False

    def ask(self, test, command, seconds=30, **fields):
        """The answer to a command; asks again when the connection breaks or nothing comes."""
        deadline = time.time() + seconds
        while time.time() < deadline:
            start, again = len(self.answers), time.time() + 5
            if self.send(command, **fields):
                client = self.client
                while time.time() < again and self.client is client:
                    for message in self.answers[start:]:
                        if test(message):
                            return message
                    time.sleep(0.01)
            time.sleep(0.1)
        raise Failed(f"expected an answer to {command} within {seconds} s, came {self.problem or 'none'}")

    def settle(self):
        self.probes.add(probe := uuid4())
        self.ask(lambda m: getattr(m, "about", None) == probe, "GetLogIndex", log_id=probe)

def follow(peer, label, sub, index, bad):
    """Checks the Issues of a broadcast subscriber against the log; the number of tolerated repeats."""
    last, order, repeats = {}, [], 0
    for m in [m for m in peer.issues if m.sub == sub]:
        if m.pub not in last:
            order.append(m.pub)
        else:
            before, repeats = last[m.pub], repeats + 1
            if before.epoch == m.epoch or before.at < peer.ends[before.epoch] - 10:
                bad.append(f"{label}: {m.pub} came again with no broken connection between")
        last[m.pub] = m
    try:
        equal(f"{label}: Issues without repeats, in log order", order, index)
    except Failed as error:
        bad.append(str(error))
    return repeats

def survive():
    subs = [uuid4() for _ in range(4)]
    publishers, watchers = [Peer() for _ in subs], [Peer() for _ in range(3)]
    workers, reader = [Peer(acks=True) for _ in range(3)], Peer()
    peers = [*publishers, *watchers, *workers, reader]
    follows = [(publishers[i], f"publisher {i}", sub) for i, sub in enumerate(subs)]
    follows += [(w, f"watcher {n} on {i}", sub) for n, w in enumerate(watchers) for i, sub in enumerate(subs)]
    deadline = time.time() + WAIT
    while not all(p.client for p in peers):
        want(time.time() < deadline, "a connection for every session", [p.problem for p in peers])
        time.sleep(0.05)
    for peer, _, sub in follows:
        want(peer.send("Subscribe", subscription_id=sub), "Subscribe sent", "a broken connection")
    for peer in publishers + watchers:
        peer.settle()
    for peer in workers:                                # the queue group, beside the broadcast subscribers
        want(peer.send("SubscribeQueue", subscription_id=subs[3], group="workers"), "SubscribeQueue sent", "no")
        peer.settle()
    sent = {}                                           # content -> (publisher, connection, number)

    def publish():
        number = len(sent) // 4
        for i, peer in enumerate(publishers):
            sent[f"{i}:{number}"] = (i, len(peer.ends), number)
            peer.send("SubmitPublication", subscription_id=subs[i], submission=f"{i}:{number}".encode())

    publish()
    while not (all(any(m.sub == sub for m in p.issues) for p, _, sub in follows) and any(w.issues for w in workers)):
        want(time.time() < deadline + WAIT, "the first Issues everywhere", [len(p.issues) for p in peers])
        time.sleep(0.05)
    stop = ready()
    while not stop.wait(0.03):
        publish()
    for peer in publishers:
        peer.settle()                                   # whatever is accepted is in the log now
    bad, index, repeats = [], {}, 0
    for i, sub in enumerate(subs):
        index[sub] = reader.ask(lambda m: getattr(m, "log", None) == sub, "GetLogIndex", log_id=sub).ids
        contents = []
        for start in range(0, len(index[sub]), 200):
            part = index[sub][start:start + 200]
            answer = reader.ask(lambda m: m.kind == "LogEntry" and [e[0] for e in m.entries] == part,
                                "GetLogEntries", log_id=sub, entries=part)
            contents += [data.decode() for _, _, data in answer.entries]
        if len(set(contents)) != len(contents) or not {(i, sent.get(c, [None])[0]) for c in contents} <= {(i, i)}:
            bad.append(f"log {i}: a publication twice, or one that nobody sent")
        by_connection = [sent[c][1:] for c in contents if c in sent]
        for epoch in {e for e, _ in by_connection}:
            if (numbers := [n for e, n in by_connection if e == epoch]) != sorted(numbers):
                bad.append(f"log {i}: publications of one connection not in the order they were sent")
    delivered = lambda: {m.pub for w in workers for m in w.issues}
    complete = lambda: all(set(index[s]) <= {m.pub for m in p.issues if m.sub == s} for p, _, s in follows)
    end = time.time() + 30
    while not complete() and time.time() < end:
        time.sleep(0.1)
    while not set(index[subs[3]]) <= delivered() and time.time() < end + 45:     # a lost one comes again after 30 s
        time.sleep(0.1)

    for peer, label, sub in follows:
        repeats += follow(peer, label, sub, index[sub], bad)
    breaks, calm = [at for p in peers for at in p.ends], 0
    if delivered() - set(index[subs[3]]):
        bad.append("the queue group got publications that are not in the log")
    for pub in index[subs[3]]:
        times = sorted(m.at for w in workers for m in w.issues if m.pub == pub)
        quiet = bool(times) and not any(b - 2 <= times[0] <= b + 10 for b in breaks)
        calm += quiet
        if not times or quiet and len(times) > 1:
            bad.append(f"queue item {pub} delivered {len(times)} times{' in quiet times' if quiet else ''}")
    bad += [f"a session failed: {p.problem}" for p in peers if p.problem]
    errors = sum(m.kind == "Error" and m.about not in p.probes for p in peers for m in p.answers)
    passed = verdict(bad, f"{sum(map(len, index.values()))} of {len(sent)} publications accepted, "
                          f"{repeats} repeats tolerated around {len(breaks)} broken connections, "
                          f"{len(index[subs[3]])} queue items, {calm} of them in quiet times, {errors} Errors")
    for peer in peers:
        peer.over = True
    return passed

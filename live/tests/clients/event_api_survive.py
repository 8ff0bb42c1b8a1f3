"""Watchers and an inserter at work while a node is killed: nothing is lost, doubled or out of order."""
import http.client
import json
import threading
import time
from types import SimpleNamespace

import requests

from event_api_client import SLACK, USERS, fresh, insert_raw, now, user
from event_api_stream import Stream, rising
from expect import WAIT, Failed, want
from runner import ready, verdict

class Watcher(threading.Thread):
    """Watches /events and reconnects at once with Last-Event-ID when the stream ends or breaks."""

    def __init__(self):
        super().__init__(daemon=True)
        self.frames, self.connections, self.over = [], 0, False
        self.start()

    def run(self):
        while not self.over:
            ids = [f.id for f in self.frames if f.id is not None]
            try:
                stream = Stream(ids[-1] if ids else None, frames=self.frames, timeout=15)
                self.connections += 1
                stream.done.wait()
            except (OSError, http.client.HTTPException, Failed):
                time.sleep(0.2)

    def of(self, name):
        return [(json.loads(f.data), f) for f in list(self.frames) if f.event == name]

class Inserter:
    """Inserts 0, 1, 2, ... and keeps for each what the answers said."""

    def __init__(self, who):
        self.who, self.name, self.records, self.problems = who, fresh("survive"), [], []

    def put(self, ahead=0):
        rec = SimpleNamespace(n=len(self.records), ahead=ahead, ts=now() + ahead, tries=0, ok=False, acked=0.0)
        self.records.append(rec)
        give_up = time.time() + 30
        while not rec.ok and time.time() < give_up:
            rec.tries += 1
            try:
                answer = insert_raw(self.who, self.name, rec.n, rec.ts, timeout=5)
                rec.ok, rec.acked = answer.status_code == 200, time.time()
                if not rec.ok and answer.status_code < 500:
                    self.problems.append(f"insert {rec.n}: expected 200, came {answer.status_code} {answer.text:.100}")
                    break
            except requests.RequestException:
                pass
            if not rec.ok:
                time.sleep(0.1)
        return rec.ok and rec.tries == 1

    def verify(self, watcher):
        """What is wrong with what the watcher got."""
        got, bad = watcher.of(self.name), []
        certain = {r.n: r for r in self.records if r.ok and r.tries == 1}
        try:
            rising(watcher.frames, "ids over all connections")
        except Failed as error:
            bad.append(str(error))
        frames = {r.n: [] for r in self.records}
        for n, frame in got:
            frames.setdefault(n, []).append(frame)
        if len(frames) > len(self.records):
            bad.append("a number that was never inserted")
        for r in self.records:
            came = frames[r.n]
            low, high = (1, 1) if r.n in certain else (int(r.ok), r.tries)
            if not low <= len(came) <= high:
                bad.append(f"{r.n} came {len(came)} times, expected {low} to {high}")
            if any(f.at < r.ts - SLACK for f in came):
                bad.append(f"{r.n} came before its timestamp")
        order = [n for n, _ in got if n in certain]
        at_once = [n for n in order if not certain[n].ahead]
        later = [n for n in order if certain[n].ahead and certain[n].acked < certain[n].ts]
        if at_once != sorted(at_once):
            bad.append("immediate events out of the order of insertion")
        if later != sorted(later, key=lambda n: (certain[n].ts, n)):
            bad.append("scheduled events out of the order (timestamp, insertion)")
        return bad

def survive():
    deadline = time.time() + 90
    while isinstance(USERS.get("survivor"), Exception) or "survivor" not in USERS:
        USERS.pop("survivor", None)
        try:
            user("survivor")
        except Failed as error:                         # an earlier run may have used up the sign-up limit
            want("429" in str(error) and time.time() < deadline, "a user", error)
            time.sleep(3)
    watchers, inserter = [Watcher() for _ in range(5)], Inserter(user("survivor"))

    def everywhere(numbers, seconds):
        end = time.time() + seconds
        while not all(numbers <= {n for n, _ in w.of(inserter.name)} for w in watchers) and time.time() < end:
            time.sleep(0.1)

    inserter.put()
    everywhere({0}, WAIT)
    want(all(w.of(inserter.name) for w in watchers), "the first event on every stream", "nothing")
    stop = ready()
    while not stop.wait(0.02):
        number = len(inserter.records)
        inserter.put(number // 5 % 3 + 1 if number % 5 == 4 else 0)
    time.sleep(max(0.0, max(r.ts for r in inserter.records) + 1.5 - time.time()))  # the last scheduled one is due
    any(inserter.put() for _ in range(20))              # until one is certainly the last of all
    certain = {r.n for r in inserter.records if r.ok and r.tries == 1}
    everywhere(certain, 30)
    bad = inserter.problems + [f"watcher {i}: {text}" for i, w in enumerate(watchers) for text in inserter.verify(w)]
    if len({tuple((f.id, n) for n, f in w.of(inserter.name)) for w in watchers}) != 1:
        bad.append("the watchers did not all get the same sequence of (id, number)")
    breaks = sum(w.connections - 1 for w in watchers)
    return verdict(bad, f"{len(certain)} certain and {len(inserter.records) - len(certain)} uncertain events, "
                        f"5 watchers, {breaks} reconnects")

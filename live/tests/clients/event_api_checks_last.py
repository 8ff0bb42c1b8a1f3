"""What must be checked after everything else, because it uses up the login limit."""
import time
from concurrent.futures import ThreadPoolExecutor

from event_api_client import fresh, insert, log_in, refused, user
from event_api_stream import watching
from expect import equal, want

def check_hammered_login_is_429_and_delays_no_event():
    name, seen, delays, x = fresh("hammer"), [], [], fresh("x")
    def hammer(_):
        if not any(a.status_code == 429 for a in seen):
            seen.append(log_in(name, "wrong", timeout=60))
    with watching() as streams, ThreadPoolExecutor(80) as pool:
        jobs = pool.map(hammer, range(400))
        for n in range(5):
            start = time.time()
            insert(user("alice"), x, n)
            for s in streams:
                s.wait_count(n + 1, x)
            delays.append(max(s.of(x)[n].at for s in streams) - start)
        list(jobs)
    equal("statuses other than 401", sorted({a.status_code for a in seen} - {401}), [429])
    refused("too many logins", next(a for a in seen if a.status_code == 429), 429)
    want(max(delays) < 2, "events within 2 s during 80 parallel logins", delays)

"""Waiting for what a connection brings, and tables of cases that run side by side."""
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from expect import WAIT, Failed, want

class Reader:
    """One connection that a thread reads; `bad` is what it must not have sent."""

    def __init__(self):
        self.cond, self.over, self.bad, self.broken = threading.Condition(), False, None, None
        self.opened, self.deleted = time.time(), set()  # what came in `delete`: the checks use it for their marks

    def start(self):
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def _run(self):
        try:
            self.read()
        except Failed as error:
            self.bad = str(error)
        except Exception as error:                      # of whatever kind: the connection broke
            self.broken = error
        with self.cond:
            self.over = True
            self.cond.notify_all()

    def wait(self, condition, what, timeout=WAIT):
        """Gives what the condition gave as soon as that is true."""
        deadline = time.time() + timeout
        with self.cond:
            while not (result := condition()):
                want(not self.bad, f"{what} on the connection", self.bad)
                want(not self.over, f"{what} on the connection", "the end of the connection")
                want(time.time() < deadline, f"{what} within {timeout:g} s", "nothing such")
                self.cond.wait(max(0.0, deadline - time.time()))
        return result

    def soon(self, condition, timeout=0.05):
        """What the condition gives within a moment."""
        with self.cond:
            return self.cond.wait_for(lambda: condition() or self.over, timeout) and condition()

    def ended(self, what, timeout=WAIT):
        with self.cond:
            done = self.cond.wait_for(lambda: self.over, timeout)
        want(not self.bad, f"{what}: nothing wrong before the end", self.bad)
        want(done, f"{what}: the end of the connection within {timeout:g} s", "nothing such")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

def until(condition, what, timeout=WAIT):
    """Polls what only can be asked, and gives the first true answer."""
    deadline = time.time() + timeout
    while not (result := condition()):
        want(time.time() < deadline, f"{what} within {timeout:g} s", "nothing such")
        time.sleep(0.01)
    return result

def each(cases, check, workers=8):
    """check(*case) for every case of the table; tells how many failed, and how the first three did."""
    def run(case):
        try:
            return check(*case) and None
        except Exception as error:
            text = str(error) if isinstance(error, Failed) else f"expected no exception, came {error!r}"
            return f"[{case[0]}] {text:.220}"
    cases = list(cases)
    with ThreadPoolExecutor(workers) as pool:
        bad = [text for text in pool.map(run, cases) if text]
    if bad:
        raise Failed(f"{len(bad)} of {len(cases)} cases: " + " | ".join(bad[:3]))

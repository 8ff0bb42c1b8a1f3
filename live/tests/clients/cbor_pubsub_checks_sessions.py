"""Checks: sessions - their paths, resuming them, and who owns them."""
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid1, uuid4

from websockets.exceptions import InvalidStatus

from cbor_pubsub_client import Room
from expect import WAIT, Failed, equal, want
from server import SERVER

def check_resume_sends_missed_issues_first():
    with Room() as new:
        sub, publisher, here = uuid4(), new(), new()
        session = here.subscribe(sub).session
        witness = new().subscribe(sub)
        publisher.submit(sub, *range(5))
        here.issues(sub, 5), witness.issues(sub, 5)
        for start in (5, 25, 45):                       # three times, so on any node
            here.leave()
            publisher.submit(sub, *range(start, start + 19))
            witness.issues(sub, start + 19)
            here = new(session)
            missed = here.issues(sub, 19)
            ids = publisher.submit(sub, start + 19) and witness.issues(sub, start + 20)
            here.issues(sub, 20)
            equal("missed Issues, then the live one", here.settle().issues(sub), ids[start:])
            equal("missed ones alone", missed, ids[start:start + 19])
        equal("contents", here.contents(sub, ids), [str(n) for n in range(65)])

def check_resume_during_traffic():
    with Room() as new:
        sub, publisher, here, seen = uuid4(), new(), new(), []
        witness = new().subscribe(sub)
        session = here.subscribe(sub).session
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(lambda: [(publisher.submit(sub, n), time.sleep(0.005)) for n in range(400)])
            while not job.done():
                here.issues(sub, 20 if len(seen) < 350 else 0)
                here.leave()
                seen += here.issues(sub)
                here = new(session)
            job.result()
        ids = witness.issues(sub, 400)
        here.issues(sub, 400 - len(seen))
        equal("Issues over all connections", seen + here.settle().issues(sub), ids)

def check_newest_connection_owns_the_session():
    with Room() as new:
        sub, publisher, witness, old = uuid4(), new(), new(), new()
        session = old.subscribe(sub).session
        witness.subscribe(sub)
        for n in (1, 3, 5, 7):
            young = new(session)
            end = old.ended()
            want(end.rcvd is not None and end.rcvd.reason, "a close frame with a reason for the older", str(end))
            for count in (n, n + 1):                    # before and after the older one is gone for good
                pub = publisher.submit(sub, count) and witness.issues(sub, count)[-1]
                young.pump(lambda: pub in young.issues(sub), "the Issue at the newest connection")
                equal("number of its Issues", young.settle().issues(sub).count(pub), 1)
                old.ws.close()
            old = young

def check_session_id_forms():
    with Room() as new:
        sub, publisher, client = uuid4(), new(), new()
        text = str(client.subscribe(sub).session)
        for path in (text.upper(), text.replace("-", ""), "urn:uuid:" + text, text):
            client.leave()
            client = new(path=path)
            publisher.submit(sub, path)
            ids = client.issues(sub, 1)
            equal("the Issue of the same session", client.contents(sub, ids), [path])
        try:
            new(session=uuid1()).settle()               # not v4: accepted, or refused if so configured
        except InvalidStatus as error:
            equal("status for a session id that is not v4", error.response.status_code, 403)

def check_paths_and_upgrade():
    with Room() as new, SERVER.session() as session:
        for path in ("not-a-uuid", str(uuid4())[:-1], "123"):
            try:
                new(path=path)
                raise Failed(f"expected 404 for /ws/{path}, came a connection")
            except InvalidStatus as error:
                equal(f"status for /ws/{path}", error.response.status_code, 404)
        status = session.get(f"{SERVER.base}/ws/{uuid4()}", timeout=WAIT).status_code
        equal("status of a plain GET without upgrade", status, 400)

"""Checks: the pings of the server, and what happens to who does not answer them."""
import time
from uuid import uuid4

import cbor2

from cbor_pubsub_raw import Raw
from expect import equal, want

def check_server_pings_every_5_s():
    hand, last = Raw(), None
    for number in range(3):
        equal("an empty ping", hand.frame(5.5 if last is None else 6), (9, b""))
        gap, last = time.time() - (last or hand.start), time.time()
        want(gap <= 5.5 and (number == 0 or gap >= 4.5), "a ping every 5 s, the first within 5.5 s", gap)
        hand.send(10)
    hand.send(2, cbor2.dumps({"GetLogIndex": {"log_id": uuid4().bytes}}))        # alive after 15 s
    equal("kind of the answer", hand.frame()[0], 2)
    hand.socket.close()

def check_silent_client_is_cut_at_10_s():
    hand, seen = Raw(), []
    while (frame := hand.frame(12.5)) is not None:
        seen.append(frame[0])
        want(time.time() - hand.start < 12.5, "the end of the connection by about 10 s", seen)
        if frame[0] == 8:
            break
    took = time.time() - hand.start
    want(8 <= took <= 12, "the end of the connection at about 10 s", took)
    want(9 in seen, "a ping before", seen)

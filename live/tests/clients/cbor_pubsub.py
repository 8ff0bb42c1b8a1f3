"""Proves from outside that a server keeps the CBOR publish/subscribe contract.

conformance: every visible sentence of the contract, one line per check.
survive:     subscribers, publishers and a queue group at work while a node is killed (a line on stdin ends it).

    python3 cbor_pubsub.py conformance|survive BASE_URL        (http://...; the ws:// address is derived)

The server may be shared, not empty, and several nodes behind one address: sessions and
subscriptions are new in every check, and successive connections may land on different nodes.
"""
import sys

sys.dont_write_bytecode = True                          # no __pycache__ beside the sources

import cbor_pubsub_checks_commands
import cbor_pubsub_checks_pings
import cbor_pubsub_checks_publications
import cbor_pubsub_checks_queues
import cbor_pubsub_checks_sessions
import cbor_pubsub_checks_sizes
import cbor_pubsub_survive
import runner

CHECKS = (                                              # in the order they run
    cbor_pubsub_checks_commands,
    cbor_pubsub_checks_publications,
    cbor_pubsub_checks_sizes,
    cbor_pubsub_checks_sessions,
    cbor_pubsub_checks_pings,
    cbor_pubsub_checks_queues,
)

if __name__ == "__main__":
    runner.main(__doc__, CHECKS, cbor_pubsub_survive.survive)

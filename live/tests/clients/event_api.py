"""Proves from outside that a server keeps the zero-code event API.

conformance: every visible sentence of the contract, one line per check.
survive:     watchers and an inserter at work while a node is killed (a line on stdin ends it).

    python3 event_api.py conformance|survive BASE_URL

The server may be shared, not empty, and several nodes behind one address: users,
collections and event names are new in every run, every request uses a new connection.
"""
import sys

sys.dont_write_bytecode = True                          # no __pycache__ beside the sources

import event_api_checks_accounts
import event_api_checks_content
import event_api_checks_cors
import event_api_checks_first
import event_api_checks_last
import event_api_checks_lists
import event_api_checks_requests
import event_api_checks_schedule
import event_api_checks_stream
import event_api_survive
import runner

CHECKS = (                                              # in the order they run
    event_api_checks_first,
    event_api_checks_accounts,
    event_api_checks_requests,
    event_api_checks_content,
    event_api_checks_stream,
    event_api_checks_schedule,
    event_api_checks_lists,
    event_api_checks_cors,
    event_api_checks_last,
)

if __name__ == "__main__":
    runner.main(__doc__, CHECKS, event_api_survive.survive)

"""Proves from outside that a server speaks the streaming dialect of Mastodon.

conformance: every visible sentence of the contract, one line per check.
clients:     the real libraries Mastodon.py and, if NODE_MODULES is set, masto and megalodon.

    python3 mastodon.py conformance|clients BASE_URL

Environment:
    DATABASE_URL     Mastodon's database, as the server has it; the tables of stack/src/fixtures/mastodon.sql exist
    REDIS_URL        the Redis of the server, with REDIS_NAMESPACE if the server has one
    NODE_MODULES     a folder with node_modules in it (npm install of package.json), for clients only

The database, Redis and the server may be shared, not empty, and in use by other runs: every id
is random. Only feed access is the same few rows for all: an advisory lock keeps runs apart there.
"""
import os
import sys

sys.dont_write_bytecode = True                          # no __pycache__ beside the sources

import mastodon_checks_auth
import mastodon_checks_channels
import mastodon_checks_filters
import mastodon_checks_handshake
import mastodon_checks_http
import mastodon_checks_keywords
import mastodon_checks_messages
import mastodon_checks_resume
import mastodon_checks_slow
import mastodon_checks_socket
import mastodon_node
import mastodon_py
import runner
from server import SERVER

COMMANDS = {                                            # in the order they run
    "conformance": (
        mastodon_checks_http,
        mastodon_checks_auth,
        mastodon_checks_handshake,
        mastodon_checks_channels,
        mastodon_checks_socket,
        mastodon_checks_messages,
        mastodon_checks_filters,
        mastodon_checks_keywords,
        mastodon_checks_resume,
        mastodon_checks_slow,
    ),
    "clients": (mastodon_py, *([mastodon_node] if os.environ.get("NODE_MODULES") else [])),
}

def main():
    if len(sys.argv) != 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    if missing := [name for name in ("DATABASE_URL", "REDIS_URL") if not os.environ.get(name)]:
        sys.exit(f"{' and '.join(missing)} not set\n\n{__doc__}")
    SERVER.base = sys.argv[2].rstrip("/")
    if sys.argv[1] == "conformance":
        mastodon_checks_slow.start()
    elif not os.environ.get("NODE_MODULES"):
        print("skipped node-clients: NODE_MODULES is not set", flush=True)
    sys.exit(0 if runner.conformance(COMMANDS[sys.argv[1]]) else 1)

if __name__ == "__main__":
    main()

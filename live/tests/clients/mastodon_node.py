"""Checks: the npm packages masto and megalodon, as they are, stream from the server."""
import os
import subprocess
from pathlib import Path

from expect import Failed, want
from mastodon_seed import account, calm, new_list
from server import SERVER

SCRIPT = Path(__file__).with_name("mastodon_clients.mjs")

def check_node_clients():
    """One run of the script; its own lines are printed as they are."""
    who = account()
    number = new_list(who)
    with calm():
        env = {**os.environ, "BASE_URL": SERVER.base, "TOKEN": who.token, "ACCOUNT_ID": str(who.id),
               "LIST_ID": str(number), "NO_PROXY": "*"}
        done = subprocess.run(["node", SCRIPT], env=env, timeout=120, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
    print(done.stdout, end="")
    if done.returncode:
        raise Failed(f"expected exit code 0 of {SCRIPT.name}, came {done.returncode}")
    want("ok " in done.stdout, "lines `ok NAME`", done.stdout)

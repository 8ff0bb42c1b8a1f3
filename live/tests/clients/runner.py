"""The command line of the programs, their `ok` and FAIL lines and their summaries.

A program is the check_ functions of its modules, in this order, and a function survive().
"""
import sys
import threading

from expect import Failed
from server import SERVER

def conformance(modules):
    checks = [(name, f) for module in modules for name, f in vars(module).items() if name.startswith("check_")]
    failed = 0
    for name, function in checks:
        name = name.removeprefix("check_").replace("_", "-")
        try:
            function()
            print("ok", name, flush=True)
        except Exception as error:
            failed += 1
            text = str(error) if isinstance(error, Failed) else f"expected no exception, came {error!r}"
            print(f"FAIL {name}: " + " ".join(text.split())[:700], flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed", flush=True)
    return failed == 0

def ready():
    """Says that the watchers are at work; the event is set by a line on stdin, or its end."""
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("ready", flush=True)
    return stop

def verdict(bad, details):
    """The last line of survive; true if nothing was bad."""
    print("FAIL " + "; ".join(bad[:6]) if bad else "ok", f"({details})", flush=True)
    return not bad

def main(usage, modules, survive):
    if len(sys.argv) != 3 or sys.argv[1] not in ("conformance", "survive"):
        sys.exit(usage)
    SERVER.base = sys.argv[2].rstrip("/")
    try:
        sys.exit(0 if (conformance(modules) if sys.argv[1] == "conformance" else survive()) else 1)
    except Exception as failure:
        print(f"FAIL {failure if isinstance(failure, Failed) else repr(failure)}", flush=True)
        sys.exit(1)

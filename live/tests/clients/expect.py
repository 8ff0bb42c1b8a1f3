"""What a check may expect of what came; whatever is not as expected is a Failed."""

WAIT = 10.0                                             # seconds any wait may take

class Failed(Exception):
    pass

def equal(what, came, expected):
    if came != expected or type(came) is not type(expected):
        if isinstance(came, list) and isinstance(expected, list) and len(came) + len(expected) > 12:
            at = next((i for i, (x, y) in enumerate(zip(came, expected)) if x != y), min(len(came), len(expected)))
            what += f", {len(came)} instead of {len(expected)} items, from item {at} on"
            came, expected = came[at:at + 4], expected[at:at + 4]
        raise Failed(f"{what}: expected {expected!r:.300}, came {came!r:.300}")

def want(truth, expected, came):
    if not truth:
        raise Failed(f"expected {expected}, came {came!r:.400}")

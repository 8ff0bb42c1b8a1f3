"""What can be checked only before this run has published anything."""
from event_api_stream import Stream
from expect import want

def check_stream_says_something_at_once():
    with Stream() as s:
        s.wait(lambda: s.frames, "connected, or the sync")
        want(s.frames[0].id is not None or s.frames[0].lines == ["event: internal_status", "data: connected"],
             "a published event or internal_status/connected first", s.frames[0].lines)

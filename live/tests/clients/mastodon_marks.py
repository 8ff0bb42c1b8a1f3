"""Marks: `delete` events of a random id, by which a check knows how far a connection has come."""
import time

from expect import WAIT, want
from mastodon_redis import publish
from mastodon_seed import big
from mastodon_wait import Reader

def publish_mark(channel):
    mark = str(big())
    publish(channel, "delete", mark)
    return mark

class Marked(Reader):
    """A connection on which marks arrive; order per stream is kept, so what was published before has come too."""

    def has(self, mark):
        self.wait(lambda: mark in self.deleted, "a mark")
        return mark

    def mark(self, channel):
        return self.has(publish_mark(channel))

    def settle(self, channel):
        """Publishes marks until one came: for a channel that others share, so that Redis cannot tell."""
        marks, deadline = set(), time.time() + WAIT
        while not marks & self.deleted:
            want(time.time() < deadline and not self.bad and not self.over, f"a message of {channel}",
                 self.bad or ("the end" if self.over else "nothing"))
            marks.add(publish_mark(channel))
            self.soon(lambda: marks & self.deleted)
        return self

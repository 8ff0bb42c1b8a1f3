"""Statuses, and viewers who see which of them come on the two kinds of stream that are filtered."""
import json

from expect import equal, want
from mastodon_redis import publish
from mastodon_seed import account, big, calm, word
from mastodon_socket import Socket

PUBLIC = "timeline:public"

def tag_channel(tag):
    return f"timeline:hashtag:{tag}"

def person(domain=None, number=None):
    """An account as it is in a status: local without a domain."""
    name = word()
    return {"id": str(number or big()), "username": name, "acct": f"{name}@{domain}" if domain else name,
            "display_name": "Zoë 🦊", "url": f"https://{domain or 'here.example'}/@{name}"}

def status(author=None, content="<p>some text</p>", **fields):
    """A status as Mastodon publishes it, with what matters to a streaming server and a little more."""
    return {"id": str(big()), "created_at": "2026-08-01T02:03:04.567Z", "in_reply_to_id": None, "sensitive": False,
            "spoiler_text": "", "visibility": "public", "language": "en", "content": content, "reblog": None,
            "account": author or person(), "media_attachments": [], "mentions": [], "tags": [], "emojis": [],
            "card": None, "poll": None, "replies_count": 0, "x_number": 1.5, "x_text": "\u2028 \\ \" é 🦊", **fields}

def media(*descriptions):
    return [{"id": str(big()), "type": "image", "description": text} for text in descriptions]

def poll(*titles):
    return {"id": str(big()), "expired": False, "options": [{"title": text, "votes_count": 0} for text in titles]}

def mentions(*people):
    return [{key: someone[key] for key in ("id", "username", "url", "acct")} for someone in people]

class Viewer:
    """A socket on the public stream and on a hashtag of its own."""

    def __init__(self, who=None, lock=calm):
        self.who, self.channels = who or account(), {}
        self.socket = Socket(self.who.token)
        with lock():
            self.watch("public", PUBLIC)
            self.watch_tag()

    def watch(self, name, channel, **params):
        self.socket.subscribe(name, **params).settle(channel)
        self.channels[name, *params.values()] = channel

    def watch_tag(self):
        """Instead of the hashtag before, if there was one."""
        self.channels = {stream: channel for stream, channel in self.channels.items() if stream[0] != "hashtag"}
        tag = word()
        self.watch("hashtag", tag_channel(tag), tag=tag)

    def show(self, post, event="update"):
        """What came of this post on each of the streams, [] for nothing."""
        found = []
        for stream, channel in self.channels.items():
            publish(channel, event, post)
            self.socket.mark(channel)
            texts = [payload for name, payload in self.socket.came(list(stream)) if name == event]
            found.append([body for body in map(json.loads, texts) if body.get("id") == post["id"]])
        return found

    def sees(self, post, event="update"):
        """Whether this post comes on all streams (once) or on none."""
        counts = [len(bodies) for bodies in self.show(post, event)]
        want(len(set(counts)) == 1 and counts[0] in (0, 1), f"{event} once on {list(self.channels)}, or on none", counts)
        return counts[0] == 1

    def filtered(self, post, event="update"):
        """The annotation of this post, which is otherwise unchanged, the same on all streams."""
        came = self.show(post, event)
        equal(f"how often {event} came on {list(self.channels)}", [len(bodies) for bodies in came], [1] * len(came))
        for (body,) in came:
            equal("the status but `filtered`", {**body, "filtered": 0}, {**post, "filtered": 0})
        first, *others = [body.get("filtered", "no such key") for (body,) in came]
        for other in others:
            equal("filtered on hashtag as on public", other, first)
        return first

    def only_the_tag(self):
        """For what changes while it is looked at: that happens between one stream and the next."""
        self.channels.pop(("public",))
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

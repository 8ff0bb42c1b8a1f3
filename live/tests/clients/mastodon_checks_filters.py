"""Checks: which statuses do not come on public and hashtag streams - feed access, languages, relationships."""
import json
from contextlib import nullcontext

from expect import equal
from mastodon_http import Events
from mastodon_redis import publish
from mastodon_seed import PERMISSION, account, big, calm, execute, insert, keyword_filter, settings, word
from mastodon_view import PUBLIC, Viewer, mentions, person, status, tag_channel
from mastodon_wait import each

DISABLED = "--- disabled\n"
HERE, REMOTE = None, "remote.example"
FEEDS = [f"{place}_{kind}_feed_access" for place in ("local", "remote") for kind in ("live", "topic")]

def counts(viewer, event="update"):
    """How often a local and a remote status come on public, on hashtag."""
    return [len(bodies) for domain in (HERE, REMOTE) for bodies in viewer.show(status(person(domain)), event)]

def check_feed_access():
    everything = [1, 1, 1, 1]
    table = [({name: DISABLED}, [int(FEEDS[place * 2 + kind] != name) for place in (0, 1) for kind in (0, 1)])
             for name in FEEDS]
    table += [({}, everything), ({name: DISABLED for name in FEEDS}, [0, 0, 0, 0]),
              ({name: "--- public\n" for name in FEEDS}, everything),
              ({name: "--- authenticated\n" for name in FEEDS}, everything)]
    people = (("no role", account(), False),
              ("all other permissions", account(permissions=~PERMISSION & (2**40 - 1)), False),
              ("the permission", account(permissions=PERMISSION), True),
              ("all permissions", account(permissions=2**40 - 1), True))
    for values, expected in table:
        with settings(**values):
            for name, who, allowed in people:
                with Viewer(who, nullcontext) as viewer:
                    for event in ("update", "status.update"):
                        equal(f"{event} local public, hashtag, remote public, hashtag for {name} with {values}",
                              counts(viewer, event), everything if allowed else expected)

def check_feed_access_is_read_at_each_subscribe():
    who = account()
    with settings(), Viewer(who, nullcontext) as viewer:
        equal("allowed", counts(viewer), [1, 1, 1, 1])
        for name in FEEDS:
            insert("settings", var=name, value=DISABLED)
        equal("still allowed", counts(viewer), [1, 1, 1, 1])
        viewer.watch_tag()                              # by marks: a `delete` is never hidden
        equal("a new subscription", counts(viewer), [1, 0, 1, 0])

def check_feed_access_of_every_public_stream():
    with settings(local_live_feed_access=DISABLED), Viewer(account(), nullcontext) as viewer:
        for place in (":local", ":remote", ":media", ":local:media", ":remote:media"):
            for domain, expected in ((HERE, 0), (REMOTE, 1)):
                viewer.channels.clear()
                viewer.watch(f"public{place}", PUBLIC + place)
                post = status(person(domain))
                equal(f"{domain} on public{place}", [len(bodies) for bodies in viewer.show(post)], [expected])

def check_languages():
    table = ((None, "en", True), (None, None, True), (None, "tlh", True), (["en"], "en", True), (["en"], "de", False),
             (["en"], None, False), (["de", "fr", "en"], "en", True), (["de", "fr"], "en", False),
             (["en"], "en-GB", False))
    def run(_, chosen, language, expected):
        with Viewer(account(languages=chosen)) as viewer:
            for event in ("update", "status.update"):
                equal(f"{language} for {chosen} comes", viewer.sees(status(language=language), event), expected)
    each([(f"{chosen} {language}", chosen, language, expected) for chosen, language, expected in table], run)

def check_languages_are_read_at_connection():
    who = account(languages=["en"])
    def english_and_german(viewer):
        return [viewer.sees(status(language=code)) for code in ("en", "de")]
    with Viewer(who) as viewer:
        execute("UPDATE users SET chosen_languages = %s WHERE id = %s", ["de"], who.user)
        viewer.watch_tag()
        equal("en, de on the old connection", english_and_german(viewer), [True, False])
    with Viewer(who) as viewer:
        equal("en, de on a new connection", english_and_german(viewer), [False, True])

def block(who, whom, table="blocks"):
    insert(table, account_id=int(who), target_account_id=int(whom))

def block_domain(who, domain):
    insert("account_domain_blocks", account_id=int(who), domain=domain)

def relationships():
    """what: (a function of me, author, first and second mentioned account; whether the status comes)."""
    me, author, first, second, other = range(5)
    pairs = {"no relationship": ((), True),
             "I block the author": ((me, author, "blocks"), False),
             "I mute the author": ((me, author, "mutes"), False),
             "the author blocks me": ((author, me, "blocks"), False),
             "the author mutes me": ((author, me, "mutes"), True),
             "I block the mentioned": ((me, first, "blocks"), False),
             "I mute the mentioned": ((me, first, "mutes"), False),
             "I block the second": ((me, second, "blocks"), False),
             "I mute the second": ((me, second, "mutes"), False),
             "the mentioned blocks me": ((first, me, "blocks"), True),
             "the mentioned mutes me": ((first, me, "mutes"), True), "I block another": ((me, other, "blocks"), True),
             "another blocks the author": ((other, author, "blocks"), True),
             "another mutes the mentioned": ((other, first, "mutes"), True),
             "the author blocks the mentioned": ((author, first, "blocks"), True),
             "another blocks me": ((other, me, "blocks"), True)}
    domains = {"I block the author's domain": ((me, "author"), False),
               "I block the domain of the mentioned": ((me, "first"), True),
               "I block another domain": ((me, "nobody"), True),
               "another blocks the author's domain": ((other, "author"), True)}
    return [(name, rule, expected) for name, (rule, expected) in {**pairs, **domains}.items()]

def check_relationships():
    def run(name, rule, expected):
        who, tail = account(), f"{word()}.example"
        everybody = [str(who.id), *(str(big()) for _ in range(4))]
        places = zip(("author", "first", "second"), everybody[1:])
        people = [None, *(person(f"{place}.{tail}", number) for place, number in places)]
        if len(rule) == 3:
            block(everybody[rule[0]], everybody[rule[1]], rule[2])
        elif rule:
            block_domain(everybody[rule[0]], f"{rule[1]}.{tail}")
        post = lambda: status(people[1], mentions=mentions(*people[2:]))
        with Viewer(who) as viewer:
            for event in ("update", "status.update", "update"):
                equal(f"{name}: {event} comes", viewer.sees(post(), event), expected)
            mark = viewer.socket.mark(PUBLIC)           # a `delete` comes whoever the author is
            equal("delete", mark in viewer.socket.deleted, True)
    each(relationships(), run)

def check_event_streams_are_filtered_too():
    who, tag, author, blocked = account(languages=["en"]), word(), person(REMOTE), person(REMOTE)
    block(who.id, blocked["id"])
    number = keyword_filter(who, "cat")
    good = status(author, content="a cat")
    posts = (status(blocked), status(author, language="de"), status(mentions=mentions(blocked)), good)
    for path, channel in (("/public", PUBLIC), ("/public/remote", f"{PUBLIC}:remote"),
                          (f"/hashtag?tag={tag}", tag_channel(tag)),
                          (f"/hashtag/local?tag={tag}", f"{tag_channel(tag)}:local")):
        with calm(), Events(path, who.token) as s:
            s.settle(channel)
            for post in posts:
                for event in ("update", "status.update"):
                    publish(channel, event, post)
            s.mark(channel)
        mine = [(event, data) for event, data in s.came() if any(post["id"] in data for post in posts)]
        bodies = [json.loads(data) for _, data in mine]
        equal(f"events on {path}", [event for event, _ in mine], ["update", "status.update"])
        equal("statuses", [body["id"] for body in bodies], [good["id"]] * 2)
        equal("filtered", [body["filtered"][0]["filter"]["id"] for body in bodies], [str(number)] * 2)

def check_feed_access_of_event_streams():
    with settings(local_live_feed_access=DISABLED, remote_live_feed_access=DISABLED):
        for who, expected in ((account(), 0), (account(permissions=PERMISSION), 1)):
            with Events("/public", who.token) as s:
                publish(s.settle(PUBLIC) and PUBLIC, "update", post := status())
                s.mark(PUBLIC)
                equal("statuses", len([data for _, data in s.came() if post["id"] in data]), expected)

def check_own_and_local_statuses():
    who = account()
    block_domain(who.id, "here.example")
    me = {**person(number=who.id), "username": who.username, "acct": who.username}
    with Viewer(who) as viewer:
        equal("own status", viewer.sees(status(me)), True)
        equal("own status that mentions myself", viewer.sees(status(me, mentions=mentions(me))), True)
        equal("local author", viewer.sees(status(person())), True)

def check_viewers_are_told_apart():
    author = person("shared.example")
    blocker, muter, free, other = (account() for _ in range(4))
    block(blocker.id, author["id"])
    block(muter.id, author["id"], "mutes")
    block_domain(other.id, "shared.example")
    viewers = [Viewer(who) for who in (blocker, muter, free, other)]
    try:
        for _ in range(3):
            seen = [viewer.sees(status(author)) for viewer in viewers]
            equal("who sees the status", seen, [False, False, True, False])
    finally:
        for viewer in viewers:
            viewer.socket.close()

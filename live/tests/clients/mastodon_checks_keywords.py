"""Checks: keyword filters, which annotate statuses of public and hashtag streams and never hide them."""
import json
from datetime import datetime, timedelta, timezone

from expect import equal
from mastodon_redis import publish, standing
from mastodon_seed import PAST, account, execute, insert, keyword_filter, new_list
from mastodon_socket import Socket
from mastodon_view import Viewer, media, poll, status
from mastodon_wait import each, until

PART, WHOLE = False, True
DEEP = "<p>foo <b>b<i>a</i></b>r</p>"
TEXTS = (                                               # whole word?, keyword, content in HTML, what it matches
    (PART, "cat", "<p>concatenate</p>", "cat"), (PART, "cat", "<p>CoNCaTenate</p>", "CaT"),
    (PART, "cat", "<p>dog</p>", None), (PART, "CAT", "<p>a cat</p>", "cat"),
    (PART, "two words", "<p>has two words inside</p>", "two words"), (PART, "äpfel", "<p>ÄPFEL</p>", "ÄPFEL"),
    (PART, "ПРИВЕТ", "<p>привет</p>", "привет"), (PART, "日本", "<p>日本語</p>", "日本"), (PART, "a.c", "<p>abc</p>", None),
    (PART, "a.c", "<p>xa.cx</p>", "a.c"), (PART, "(x|y)*", "<p>x</p>", None),
    (PART, "(x|y)*", "<p>my (x|y)* here</p>", "(x|y)*"), (PART, "\\d", "<p>5 \\d</p>", "\\d"),
    (PART, "[a-z", "<p>a [a-z</p>", "[a-z"), (PART, "🦊", "<p>a 🦊!</p>", "🦊"), (PART, "$5", "<p>for $5</p>", "$5"),
    (WHOLE, "cat", "<p>concatenate</p>", None), (WHOLE, "cat", "<p>a cat.</p>", "cat"),
    (WHOLE, "cat", "<p>CAT</p>", "CAT"), (WHOLE, "cat", "<p>cats</p>", None), (WHOLE, "cat", "<p>tomcat</p>", None),
    (WHOLE, "cat", "<p>cat_food</p>", None), (WHOLE, "cat", "<p>the-cat-food</p>", "cat"),
    (WHOLE, "cat", "<p>concat, a Cat</p>", "Cat"), (WHOLE, "cat", "<p>cat5</p>", None),
    (WHOLE, "#cat", "<p>a #cat</p>", "#cat"), (WHOLE, ":)", "<p>so :) yes</p>", ":)"),
    (WHOLE, "#cat", "<p>x#cat</p>", "#cat"), (WHOLE, "#cat", "<p>#cats</p>", None),
    (WHOLE, "c++", "<p>my c++11</p>", "c++"), (WHOLE, "c++", "<p>abc++</p>", None),
    (WHOLE, ":)", "<p>ok:)ok</p>", ":)"), (WHOLE, "two words", "<p>two words</p>", "two words"),
    (WHOLE, "two words", "<p>two wordsmiths</p>", None), (PART, "foo bar", DEEP, "foo bar"),
    (PART, "foobar", "<p>foo</p><p>bar</p>", None), (PART, "foo bar", "<p>foo</p><p>bar</p>", None),
    (PART, "foo\n\nbar", "<p>foo</p><p>bar</p>", "foo\n\nbar"), (PART, "foo\nbar", "<p>foo</p><p>bar</p>", None),
    (PART, "foo\nbar", "<p>foo<br>bar</p>", "foo\nbar"), (PART, "foo\nbar", "<p>foo<br/>bar</p>", "foo\nbar"),
    (PART, "foo\nbar", "<p>foo<br />bar</p>", "foo\nbar"), (PART, "foobar", "<p>foo<br />bar</p>", None),
    (WHOLE, "foo", "<p>foo<br>bar</p>", "foo"), (WHOLE, "bar", "<p>foo</p><p>bar</p>", "bar"),
    (PART, "cat", '<p><a href="https://cat.example" class="cat" title="cat">dog</a></p>', None),
    (PART, "span", "<p><span>x</span></p>", None),
    (PART, "dog", '<p><a href="https://cat.example">d<span class="invisible">og</span></a></p>', "dog"),
    (PART, "AT&T", "<p>by AT&amp;T</p>", "AT&T"), (PART, "amp", "<p>by AT&amp;T</p>", None),
    (PART, "<b>", "<p>a &lt;b&gt; c</p>", "<b>"), (PART, "it's", "<p>it&#39;s</p>", "it's"),
    (PART, 'say "x"', "<p>say &quot;x&quot;</p>", 'say "x"'), (PART, "café", "<p>caf&eacute;</p>", "café"),
    (PART, "🦊", "<p>&#x1F98A;</p>", "🦊"), (PART, "&lt;", "<p>&amp;lt;</p>", "&lt;"), (PART, "cat", "", None))
FIELDS = (                                              # keywords, fields of the status, what matches
    ("spoiler", ["cat"], {"spoiler_text": "a cat"}, "cat"), ("poll", ["cat"], {"poll": poll("dog", "Cat")}, "Cat"),
    ("first option", ["dog"], {"poll": poll("dog", "Cat")}, "dog"),
    ("media", ["cat"], {"media_attachments": media("a cat")}, "cat"),
    ("second media", ["cat"], {"media_attachments": media(None, "a cat")}, "cat"),
    ("no description", ["null"], {"media_attachments": media(None)}, None),
    ("tags, card, url", ["emu"], {"tags": [{"name": "emu"}], "url": "https://emu", "card": {"title": "emu"}}, None),
    ("several", ["one", "two", "three"], {"content": "<p>three, two, one</p>"}, "three"),
    ("several, last only", ["one", "two", "three"], {"content": "<p>a two</p>"}, "two"),
    ("spoiler before content", ["one", "two"], {"spoiler_text": "two", "content": "<p>one</p>"}, "two"),
    ("content before poll", ["one", "two"], {"content": "<p>two</p>", "poll": poll("one")}, "two"),
    ("poll before media", ["one", "two"], {"poll": poll("two"), "media_attachments": media("one")}, "two"),
    ("twice", ["cat"], {"content": "<p>Cat cat</p>"}, "Cat"), ("no keywords", [], {"content": "<p>cat</p>"}, None),
    ("apart", ["onetwo"], {"spoiler_text": "one", "content": "<p>two</p>"}, None),
    ("apart in options", ["onetwo"], {"poll": poll("one", "two")}, None))

def note(number, *matches, title="title", context=("home",), expires=None, action="warn"):
    return {"filter": {"id": str(number), "title": title, "context": list(context), "expires_at": expires,
                       "filter_action": action}, "keyword_matches": list(matches), "status_matches": None}

def by_id(notes):
    return sorted(notes, key=lambda one: one["filter"]["id"])

def check_filters_match_texts():
    def run(_, whole, keyword, content, match):
        who = account()
        number = keyword_filter(who, keyword, whole=whole)
        with Viewer(who) as viewer:
            equal("filtered", viewer.filtered(status(content=content)), [note(number, match)] if match else [])
    each([(f"{'whole ' if case[0] else ''}{case[1]!r} in {case[2]!r}", *case) for case in TEXTS], run)

def check_filters_match_fields():
    def run(_, keywords, fields, match):
        who = account()
        number = keyword_filter(who, *keywords)
        with Viewer(who) as viewer:
            for event in ("update", "status.update"):
                equal(event, viewer.filtered(status(**fields), event), [note(number, match)] if match else [])
    each(FIELDS, run)

def check_whole_and_partial_keywords_of_one_filter():
    who = account()
    number = keyword_filter(who, "cat")
    insert("custom_filter_keywords", custom_filter_id=number, keyword="dog", whole_word=True)
    with Viewer(who) as viewer:
        for content, match in (("dogs, cats", "cat"), ("dog, cats", "dog"), ("dogs", None), ("cats, dog", "cat")):
            equal(content, viewer.filtered(status(content=content)), [note(number, match)] if match else [])

def check_filter_documents():
    far, now = "2100-01-02T03:04:05.000Z", datetime(2100, 1, 2, 3, 4, 5)
    rows = (({"title": "A title é", "context": ("home", "notifications"), "expires": now, "action": 1},
             {"title": "A title é", "context": ("home", "notifications"), "expires": far, "action": "hide"}),
            ({"title": "", "context": ("public", "thread", "account"), "action": 0},
             {"title": "", "context": ("public", "thread", "account"), "action": "warn"}),
            ({"context": (), "expires": datetime(2099, 12, 31, 23, 59, 59, 678000), "action": 1},
             {"context": (), "expires": "2099-12-31T23:59:59.678Z", "action": "hide"}))
    def run(_, columns, expected):
        who = account()
        number = keyword_filter(who, "cat", **columns)
        with Viewer(who) as viewer:
            equal("filtered", viewer.filtered(status(content="a cat")), [note(number, "cat", **expected)])
    each([(str(columns), columns, expected) for columns, expected in rows], run)

def check_several_filters_and_those_of_others():
    who, other = account(), account()
    first, second = keyword_filter(who, "cat", title="first"), keyword_filter(who, "dog", title="second", action=1)
    keyword_filter(who, "cat", "dog", expires=PAST, title="expired")
    keyword_filter(other, "cat", "dog", title="of another")
    cats, dogs = note(first, "cat", title="first"), note(second, "Dog", title="second", action="hide")
    with Viewer(who) as viewer, Viewer(account()) as nobody:
        for content, expected in (("cat", [cats]), ("Dog", [dogs]), ("Dog, cat", [cats, dogs]), ("bird", [])):
            equal(content, by_id(viewer.filtered(status(content=content))), by_id(expected))
            equal(f"{content} without filters", nobody.filtered(status(content=content)), [])

def check_filtered_in_the_payload_passes():
    who = account()
    keyword_filter(who, "cat")
    with Viewer(who) as viewer:
        for already in ([note(5, "other")], []):
            equal("filtered", viewer.filtered(status(content="a cat", filtered=already)), already)

def check_other_streams_are_not_filtered():
    author = {"id": "5", "username": "x", "acct": "x@blocked.example"}
    def run(name, channel, who):
        params = {"list": channel.split(":")[-1]} if name == "list" else {}
        keyword_filter(who, "cat")
        insert("blocks", account_id=who.id, target_account_id=5)
        insert("account_domain_blocks", account_id=who.id, domain="blocked.example")
        with Socket(who.token) as ws:
            ws.subscribe(name, **params)
            standing(channel)
            for event in ("update", "status.update", "notification", "conversation"):
                for post in (status(author, content="a cat"), status(content="a cat", language="xx")):
                    publish(channel, event, post)
                    ws.mark(channel)
                    equal("the status", json.loads(ws.came()[-2][1]), post)
    who = [account(languages=["en"]) for _ in range(4)]
    each([("user", f"timeline:{who[0].id}", who[0]), ("direct", f"timeline:direct:{who[1].id}", who[1]),
          ("list", f"timeline:list:{new_list(who[2])}", who[2]),
          ("user:notification", f"timeline:{who[3].id}:notifications", who[3])], run)

def check_filter_expires_on_an_open_connection():
    who = account()
    keyword_filter(who, "cat", expires=datetime.now(timezone.utc).replace(tzinfo=None) + timedelta(seconds=2))
    with Viewer(who).only_the_tag() as viewer:
        equal("matches before", [len(viewer.filtered(status(content="a cat")))], [1])
        until(lambda: viewer.filtered(status(content="a cat")) == [], "no match after it expired", 5)

def check_changed_filters_take_effect():
    who = account()
    with Viewer(who).only_the_tag() as viewer:
        def becomes(what, expected):
            publish(f"timeline:{who.id}", "filters_changed")
            publish(f"timeline:system:{who.id}", "filters_changed")
            until(lambda: viewer.filtered(status(content="a cat")) == expected, what, 5)
        equal("before", viewer.filtered(status(content="a cat")), [])
        number = keyword_filter(who, "cat")
        becomes("a new filter", [note(number, "cat")])
        execute("UPDATE custom_filters SET phrase = 'new', action = 1 WHERE id = %s", number)
        becomes("a changed filter", [note(number, "cat", title="new", action="hide")])
        execute("DELETE FROM custom_filters WHERE id = %s", number)
        becomes("no filter", [])

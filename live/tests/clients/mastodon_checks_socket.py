"""Checks: the commands on a socket - subscribe, unsubscribe, and what is no command."""
from expect import equal, want
from mastodon_redis import publish, standing
from mastodon_seed import account, new_list, token, word
from mastodon_socket import BINARY, Socket
from mastodon_view import tag_channel
from mastodon_wait import each

def settled(ws):
    """All commands sent before have been handled when this returns: the server listens to a new tag."""
    tag = word()
    ws.subscribe("hashtag", tag=tag)
    standing(tag_channel(tag))
    return ws.mark(tag_channel(tag))

def got(ws, channel, count=1):
    """The streams of what comes on this channel, `count` times, and nothing after it."""
    before = len(ws.messages)
    publish(channel, "delete", number := word())
    last = settled(ws)
    came = [m["stream"] for m in ws.messages[before:] if m.get("payload") == number]
    equal(f"how often an event of {channel} came", len(came), count)
    equal("other messages", [m for m in ws.messages[before:] if m.get("payload") not in (number, last)], [])
    return came

def check_many_streams_on_one_socket():
    who, tags = account(), [word() for _ in range(50)]
    lists = [new_list(who) for _ in range(10)]
    expected = {tag_channel(tag): ["hashtag", tag] for tag in tags}
    expected |= {f"{tag_channel(tag)}:local": ["hashtag:local", tag] for tag in tags}
    expected |= {f"timeline:list:{number}": ["list", str(number)] for number in lists}
    expected |= {f"timeline:{who.id}": ["user"], f"timeline:direct:{who.id}": ["direct"]}
    with Socket(who.token) as ws:
        for name, *params in expected.values():
            ws.subscribe(name, **({"list" if name == "list" else "tag": params[0]} if params else {}))
        standing(*expected)
        marks = {ws.mark(channel): stream for channel, stream in expected.items()}
        equal("streams", [(m["payload"], m["stream"]) for m in ws.messages], list(marks.items()))

def check_two_sockets_of_one_account():
    who = account()
    with Socket(who.token) as one, Socket(token(who).token) as two:
        for ws in (one, two):
            ws.subscribe("user").settle(f"timeline:{who.id}")
        mark = one.mark(f"timeline:{who.id}")
        two.has(mark)
    with Socket(who.token) as three:
        three.subscribe("user").settle(f"timeline:{who.id}")

def check_duplicate_subscribes_are_ignored():
    who = account()
    number, tag = new_list(who), word()
    with Socket(who.token, query="?stream=user") as ws:
        for _ in range(3):
            ws.subscribe("user").subscribe("list", list=str(number)).subscribe("hashtag", tag=tag)
        settled(ws)
        standing(f"timeline:{who.id}")
        for channel, stream in ((f"timeline:{who.id}", ["user"]), (f"timeline:list:{number}", ["list", str(number)]),
                                (tag_channel(tag), ["hashtag", tag])):
            equal("streams", got(ws, channel), [stream])

def check_what_is_no_command_is_ignored():
    who = account()
    with Socket(who.token) as ws:
        for text in ("", " ", "{", "nonsense", '{"type":"subscribe","stream":"user"', "[]", "null", "5", "true",
                     '"subscribe"', "{}", '{"type":"nope","stream":"user"}', '{"type":null}',
                     '{"type":5,"stream":"user"}', '{"stream":"user"}', '{"type":"Subscribe","stream":"user"}',
                     "[" * 200, "\x00", '{"type":"ping"}', '[{"type":"subscribe","stream":"user"}]'):
            ws.send(text)
        mark = settled(ws)
        equal("messages", ws.unmarked(mark), [])
        publish(f"timeline:{who.id}", "delete", "1")
        equal("messages", ws.unmarked(mark, settled(ws)), [])

def check_array_in_stream_counts_its_first_element():
    who, tag = account(), word()
    with Socket(who.token) as ws:
        ws.subscribe(["user"]).subscribe(["hashtag", "direct"], tag=tag).subscribe(["user:notification", 5, None])
        settled(ws)
        equal("user", got(ws, f"timeline:{who.id}"), [["user"]])
        equal("hashtag", got(ws, tag_channel(tag)), [["hashtag", tag]])
        got(ws, f"timeline:direct:{who.id}", 0)
        ws.unsubscribe(["hashtag", tag], tag=tag)
        settled(ws)
        got(ws, tag_channel(tag), 0)
        ws.subscribe(["nope", "user"])
        ws.wait(ws.errors, "an error")
        equal("error", ws.errors(), [{"error": "Unknown stream type", "status": 400}])

def check_tag_in_another_spelling_is_the_same_subscription():
    tag = word()
    spelled = f"Café{tag.upper()}"
    with Socket(account().token) as ws:
        for spelling in (spelled, f"cafe{tag}", f"#CAFÉ{tag}", f"ｃafé{tag}"):
            ws.subscribe("hashtag", tag=spelling)
        settled(ws)
        equal("the first spelling", got(ws, tag_channel(f"cafe{tag}")), [["hashtag", spelled]])
        ws.unsubscribe("hashtag", tag=f"CAFE{tag}")
        settled(ws)
        got(ws, tag_channel(f"cafe{tag}"), 0)
        ws.subscribe("hashtag", tag=f"CAFE{tag}")
        settled(ws)
        equal("the new spelling", got(ws, tag_channel(f"cafe{tag}")), [["hashtag", f"CAFE{tag}"]])

def check_list_ids_are_echoed_as_sent():
    who = account()
    number, text, large = new_list(who, small=True), new_list(who, small=True), new_list(who)
    with Socket(who.token) as ws:
        ws.subscribe("list", list=number).subscribe("list", list=str(text)).subscribe("list", list=str(large))
        settled(ws)
        for value, expected in ((number, number), (text, str(text)), (large, str(large))):
            equal("stream", got(ws, f"timeline:list:{value}"), [["list", expected]])
        ws.unsubscribe("list", list=number)
        settled(ws)
        got(ws, f"timeline:list:{number}", 0)

def check_errors_in_band_in_the_order_of_the_commands():
    who, other = account(), account()
    number, theirs = new_list(who), new_list(other)
    table = ({"stream": "nope"}, "Unknown stream type", 400), ({"stream": "User"}, "Unknown stream type", 400), \
        ({"stream": "public:media:local"}, "Unknown stream type", 400), ({"stream": ""}, "Unknown stream type", 400), \
        ({"stream": "hashtag"}, "Missing tag name parameter", 400), \
        ({"stream": "list"}, "Missing list name parameter", 400), \
        ({"stream": "hashtag:local", "tag": ""}, "Missing tag name parameter", 400), \
        ({"stream": "list", "list": str(theirs)}, "Not authorized to stream this list", 401), \
        ({"stream": "list", "list": theirs}, "Not authorized to stream this list", 401), \
        ({"stream": "list", "list": "abc"}, "Not authorized to stream this list", 401), \
        ({"stream": "list", "list": f"{number}x"}, "Not authorized to stream this list", 401)
    with Socket(who.token) as ws:
        for command, _, _ in table * 2:
            ws.send({"type": "subscribe", **command})
        mark = settled(ws)
        equal("errors", ws.unmarked(mark), [{"error": error, "status": status} for _, error, status in table * 2])
        publish(f"timeline:list:{theirs}", "delete", "1")
        equal("messages", len(ws.unmarked(mark, settled(ws))), 2 * len(table))

def check_scopes_in_band():
    scope = {"error": "Access token does not have the required scopes", "status": 401}
    names = ["user", "direct", "public", "public:local", "public:remote:media", "hashtag", "list", "user:notification"]
    def run(scopes, allowed):
        who = account(scopes)
        params = {"hashtag": {"tag": word()}, "list": {"list": str(new_list(who))}}
        for name in names:
            with Socket(who.token) as ws:
                ws.subscribe(name, **params.get(name, {})).subscribe("nope")
                ws.wait(lambda: "Unknown stream type" in [m["error"] for m in ws.errors()], "an error")
                equal(f"{name} with {scopes!r}", ws.errors()[:-1], [] if name in allowed else [scope])
    each([("read", names), ("read:statuses", names[:-1]), ("read:notifications", names[-1:]), ("write", []), ("", []),
          ("write read:notifications read:statuses", names)], run)

def check_user_has_notifications_only_with_their_scope():
    def run(scopes, included):
        who = account(scopes)
        home, notifications = f"timeline:{who.id}", f"timeline:{who.id}:notifications"
        with Socket(who.token) as ws:
            ws.subscribe("user")
            standing(home, *([notifications] if included else []))
            settled(ws)
            publish(notifications, "notification", "{}")
            settled(ws)
            marks = [ws.mark(home) for _ in range(2)]
            want(len(marks) == 2 and ws.came(["user"]).count(("notification", "{}")) == included,
                 f"{included} notifications with {scopes}", ws.messages)
    each([("read", 1), ("read:statuses", 0), ("read:statuses read:notifications", 1), ("write read", 1)], run)

def check_user_and_notification_overlap():
    who = account()
    home, notifications = f"timeline:{who.id}", f"timeline:{who.id}:notifications"
    with Socket(who.token) as ws:
        ws.subscribe("user").subscribe("user:notification")
        standing(home, notifications)
        settled(ws)
        equal("streams of a notification", sorted(got(ws, notifications, 2)), [["user"], ["user:notification"]])
        equal("streams of an update", got(ws, home), [["user"]])
        ws.unsubscribe("user:notification")
        settled(ws)
        equal("after one unsubscribe", got(ws, notifications), [["user"]])
        ws.unsubscribe("user").subscribe("user:notification")
        settled(ws)
        equal("after the other", got(ws, notifications), [["user:notification"]])
        got(ws, home, 0)

def check_unsubscribe():
    who = account()
    number, tag = new_list(who), word()
    table = (("user", {}, f"timeline:{who.id}"), ("direct", {}, f"timeline:direct:{who.id}"),
             ("user:notification", {}, f"timeline:{who.id}:notifications"),
             ("list", {"list": str(number)}, f"timeline:list:{number}"), ("hashtag", {"tag": tag}, tag_channel(tag)),
             ("hashtag:local", {"tag": tag}, f"{tag_channel(tag)}:local"))
    with Socket(who.token) as ws:
        for name, params, channel in table:
            for _ in range(2):
                settled(ws.subscribe(name, **params))
                standing(channel)
                got(ws, channel)
                ws.unsubscribe(name, **params).unsubscribe(name, **params)
                settled(ws)
                got(ws, channel, 0)

def check_failed_and_silent_unsubscribes():
    failed, tag = {"error": "Error unsubscribing from channel"}, word()
    with Socket(account().token) as ws:
        ws.unsubscribe("user").unsubscribe("hashtag", tag=tag).unsubscribe("public:local:media").unsubscribe("direct")
        equal("what was never subscribed", ws.unmarked(settled(ws)), [])
        ws.unsubscribe("nope").unsubscribe(["nope"]).unsubscribe("USER")
        ws.wait(lambda: len(ws.errors()) == 3, "3 errors")
        equal("unknown streams", ws.errors(), [failed] * 3)

def check_commands_are_handled_in_order():
    who = account()
    for round_number in range(10):
        number, tag = new_list(who), word()
        with Socket(who.token) as ws:
            for _ in range(10):                         # a list is looked up in the database, a tag is not
                ws.subscribe("list", list=str(number)).unsubscribe("list", list=str(number))
                ws.unsubscribe("hashtag", tag=tag).subscribe("hashtag", tag=tag)
            settled(ws)
            standing(tag_channel(tag))
            got(ws, f"timeline:list:{number}", 0)
            got(ws, tag_channel(tag))

def check_binary_frame_closes_with_1003():
    for payload in (b"", b"\x00\xff", b'{"type":"subscribe","stream":"user"}'):
        with Socket(account().token) as ws:
            ws.frame(BINARY, payload)
            ws.ended("a binary frame")
            want(ws.closing and int.from_bytes(ws.closing[:2]) == 1003, "closed with 1003", ws.closing)

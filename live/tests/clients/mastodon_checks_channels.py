"""Checks: which stream listens to which channel of Redis, and the keys that say so."""
import unicodedata
from contextlib import ExitStack
from urllib.parse import quote

from expect import equal, want
from mastodon_http import Events
from mastodon_redis import key, publish, standing
from mastodon_seed import account, big, new_list, word
from mastodon_socket import Socket
from mastodon_wait import each, until

ALL_PUBLIC = [f"timeline:public{place}{media}" for place in ("", ":local", ":remote") for media in ("", ":media")]
FALSE = ("0", "f", "F", "false", "FALSE", "off", "OFF", "")
TRUE = ("1", "t", "true", "TRUE", "on", "yes", "no", "2", "False", "Off")
TAGS = (                                                # as written, as Mastodon publishes it; Z is a fresh word
    ("Z", "Z"), ("CaféZ", "cafeZ"), ("Cafe\u0301Z", "cafeZ"), ("#Z", "Z"), ("ＦＵＬＬZ", "fullZ"), ("ﬁneZ", "fineZ"),
    ("①Z", "1Z"), ("ÑANDÚZ", "nanduZ"), ("ŁódźZ", "lodzZ"), ("ŽižekØZ", "zizekoZ"), ("hello-Z!", "helloZ"),
    ("a b.Z/c", "abZc"), ("under_Z", "under_Z"), ("col·laZ", "col·laZ"), ("ПриветZ", "приветZ"), ("ΑΘΗΝΑZ", "αθηναZ"),
    ("日本語Z", "日本語Z"), ("ｶﾅZ", "カナZ"), ("スター・トレックZ", "スター・トレックZ"), ("ｽﾀｰ･ﾄﾚｯｸZ", "スター・トレックZ"),
    ("हिन्दीZ", "हिन्दीZ"), ("สวัสดีZ", "สวัสดีZ"), ("தமிழ்Z", "தமிழ்Z"), ("می\u200cخواهمZ", "می\u200cخواهمZ"),
    ("cat🐱Z", "catZ"), ("٣Z", "٣Z"), ("a+b&c=d%Z", "abcdZ"), ("𝓕ancyZ", "fancyZ"))

def private_streams(who, number, tag):
    """name of the stream, its parameters, path of the event stream, channel."""
    return (("user", {}, "/user", f"timeline:{who.id}"), ("user", {}, "/user", f"timeline:{who.id}:notifications"),
            ("user:notification", {}, "/user/notification", f"timeline:{who.id}:notifications"),
            ("direct", {}, "/direct", f"timeline:direct:{who.id}"),
            ("list", {"list": str(number)}, f"/list?list={number}", f"timeline:list:{number}"),
            ("hashtag", {"tag": tag}, f"/hashtag?tag={tag}", f"timeline:hashtag:{tag}"),
            ("hashtag:local", {"tag": tag}, f"/hashtag/local?tag={tag}", f"timeline:hashtag:{tag}:local"))

def check_private_streams_and_their_channels():
    def run(_, index, kind):
        who, tag = account(), word()
        name, params, path, channel = private_streams(who, new_list(who), tag)[index]
        with Socket(who.token) if kind == "websocket" else Events(path, who.token) as s:
            if kind == "websocket":
                s.subscribe(name, **params)
            standing(channel)
            publish(channel, "delete", "12345678901234567890")
            s.wait(lambda: s.messages if kind == "websocket" else s.events, f"an event of {channel}")
            if kind == "websocket":
                equal("message", s.messages, [{"stream": [name, *params.values()], "event": "delete",
                                               "payload": "12345678901234567890"}])
            else:
                equal("events", s.came(), [("delete", "12345678901234567890")])
    each([(f"{number} {kind}", number, kind) for number in range(7) for kind in ("websocket", "eventsource")], run)

def check_streams_do_not_hear_the_channels_of_others():
    who, other, tag = account(), account(), word()
    number, theirs = new_list(who), new_list(who)
    with Socket(who.token) as ws:
        ws.subscribe("user:notification").subscribe("direct").subscribe("list", list=str(number))
        ws.subscribe("hashtag:local", tag=tag)
        mine = (f"timeline:{who.id}:notifications", f"timeline:direct:{who.id}", f"timeline:list:{number}",
                f"timeline:hashtag:{tag}:local")
        standing(*mine)
        for channel in (f"timeline:{who.id}", f"timeline:{other.id}", f"timeline:{other.id}:notifications",
                        f"timeline:direct:{other.id}", f"timeline:list:{theirs}", f"timeline:hashtag:{tag}"):
            publish(channel, "delete", "1")
        marks = [ws.mark(channel) for channel in mine]
        equal("events of other channels", ws.unmarked(*marks), [])

def heard(readers):
    """{reader: the public channels whose events it got}, after every reader got one published when all listened."""
    ids = {}
    def publish_round():
        for channel in ALL_PUBLIC:
            ids[mark := str(big())] = channel
            publish(channel, "delete", mark)
    def found(marks):
        return {name: {ids[data] for _, data in s.came() if data in marks} for name, s in readers.items()}
    def published():
        publish_round()
        return all(found(ids).values())
    until(published, "events on all public streams")
    first = len(ids)
    publish_round()
    until(lambda: all(found(list(ids)[first:]).values()), "the last round on all public streams")
    return found(ids)

def check_public_event_streams_and_only_media():
    who, expected = account(), {}
    with ExitStack() as stack:
        readers = {}
        for place in ("", ":local", ":remote"):
            path = "/public" + place.replace(":", "/")
            expected[path] = {f"timeline:public{place}"}
            for value in (*FALSE, *TRUE) if place == "" else ("0", "", "true"):
                media = ":media" if value in TRUE else ""
                expected[f"{path}?only_media={value}"] = {f"timeline:public{place}{media}"}
        for path in expected:
            readers[path] = stack.enter_context(Events(path, who.token))
        equal("channels heard", heard(readers), expected)

def check_public_sockets():
    who = account()
    names = {channel.removeprefix("timeline:"): {channel} for channel in ALL_PUBLIC}
    with ExitStack() as stack:
        readers = {name: stack.enter_context(Socket(who.token)).subscribe(name) for name in names}
        equal("channels heard", heard(readers), names)
        for name, s in readers.items():
            equal("streams", {tuple(m["stream"]) for m in s.messages}, {(name,)})
        with Socket(who.token) as s:
            for name in names:
                s.subscribe(name).settle(f"timeline:{name}")
            marks = {name: s.mark(f"timeline:{name}") for name in names}
            for name, mark in marks.items():
                equal(f"streams of the event of {name}", [m["stream"] for m in s.messages if m["payload"] == mark],
                      [[name]])

def check_subscribed_keys():
    who, tag = account(), word()
    with Socket(who.token) as ws:
        system = (f"timeline:access_token:{who.token_id}", f"timeline:system:{who.id}")
        standing(*system)
        cases = private_streams(who, new_list(who), tag)
        for name, params, _, channel in cases:
            ws.subscribe(name, **params)
            standing(channel)
            until(lambda: key(channel)[0], f"the key of {channel}")
            value, seconds = key(channel)
            equal(f"value of the key of {channel}", value, "1")
            want(1000 <= seconds <= 1080, f"{channel}: 1000 to 1080 s to live", seconds)
        for name in ALL_PUBLIC:                         # perhaps set long ago for somebody else
            ws.subscribe(name.removeprefix("timeline:")).settle(name)
            until(lambda: key(name)[0] == "1", f"the key of {name}")
            want(0 < key(name)[1] <= 1080, f"{name}: at most 1080 s to live", key(name))
        equal("keys of system channels", [key(channel)[0] for channel in system], [None, None])

def check_subscribed_keys_of_event_streams():
    def run(path, channels, who):
        with Events(path, who.token):
            for channel in channels:
                until(lambda: key(channel)[0] == "1", f"the key of {channel}")
                want(1000 <= key(channel)[1] <= 1080, f"{channel}: 1000 to 1080 s to live", key(channel))
    who, tag = [account() for _ in range(4)], word()
    number = new_list(who[3])
    each([("/user", (f"timeline:{who[0].id}", f"timeline:{who[0].id}:notifications"), who[0]),
          ("/user/notification", (f"timeline:{who[1].id}:notifications",), who[1]),
          ("/direct", (f"timeline:direct:{who[2].id}",), who[2]),
          (f"/list?list={number}", (f"timeline:list:{number}",), who[3]),
          (f"/hashtag/local?tag={tag}", (f"timeline:hashtag:{tag}:local",), who[3])], run)

def hashtags():
    for spelling, normal in TAGS:
        fresh = word()
        yield spelling.replace("Z", fresh), unicodedata.normalize("NFC", normal).replace("Z", fresh)

def check_hashtags_on_a_socket():
    with Socket(account().token) as ws:
        def run(tag, normal, stream, tail):
            channel = f"timeline:hashtag:{normal}{tail}"
            ws.subscribe(stream, tag=tag)
            standing(channel)
            mark = ws.mark(channel)
            equal("stream", [m["stream"] for m in ws.messages if m["payload"] == mark], [[stream, tag]])
        each([(tag, normal, "hashtag", "") for tag, normal in hashtags()], run, workers=1)
        each([(tag.upper(), normal, "hashtag:local", ":local") for tag, normal in hashtags()], run, workers=1)

def check_hashtags_of_event_streams():
    who = account()
    def run(tag, normal):
        with Events(f"/hashtag?tag={quote(tag, safe='')}", who.token) as s:
            standing(f"timeline:hashtag:{normal}")
            s.mark(f"timeline:hashtag:{normal}")
    each(hashtags(), run)

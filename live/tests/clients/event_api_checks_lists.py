"""Checks: the lists of a user's and of a collection's events."""
from event_api_client import cancel, fresh, good, insert, listed, now, uid, user
from expect import equal, want

def check_lists():
    carol, bob, x, start = user("carol"), user("bob"), fresh("x"), now()
    a, b = insert(carol, x, 1, start + 1000), insert(carol, x, 2, -7)
    c, d = insert(bob, x, 3, start + 500, carol.collection), insert(carol, x, 4, start - 3, bob.collection)
    e = insert(carol, x, 5, start - 5)
    plain = lambda events: [{**event, "published": None} for event in events]
    mine, bobs = listed(carol), listed(bob)
    equal("events, by timestamp", plain(mine["events"]), plain([b, e, d, a]))
    equal("info, by timestamp", plain(mine["info"]), plain([b, e, c, a]))
    for who in (carol, bob):
        equal("collection, by timestamp", plain(listed(who, carol.collection)), plain([b, e, c, a]))
    want(d["id"] in [i["id"] for i in bobs["info"]], "in bob's info what carol put there", bobs["info"])
    want(c["id"] in [i["id"] for i in bobs["events"]], "in bob's events what he put elsewhere", bobs["events"])
    for who, event in ((carol, a), (bob, c)):
        good("cancel", cancel(who, event["id"]), "event")
    for collection in (uid(), "not-a-uuid", "123"):
        equal(f"unknown collection {collection}", listed(carol, collection), [])

"""Checks: who may open which event stream, and what is judged before what."""
from mastodon_http import PREFIX, accepted, bearer, fetch, refused
from mastodon_seed import PAST, account, big, new_list, token, word
from mastodon_wait import each
from expect import want

MISSING, INVALID = (401, "Missing access token"), (401, "Invalid access token")
SCOPES = (401, "Access token does not have the required scopes")
NO_LIST, NO_TAG = (400, "Missing list name parameter"), (400, "Missing tag name parameter")
NOT_YOURS, UNKNOWN = (401, "Not authorized to stream this list"), (400, "Unknown channel requested")
OK = None
PLAIN = ("/user", "/user/notification", "/direct", "/public", "/public/local", "/public/remote")
UNKNOWN_PATHS = (
    "/", "/nope", "/favicon.ico", "/api", "/api/v1", "/api/v1/statuses", "/api/v2/streaming/user", "/user",
    *(PREFIX + tail for tail in ("/nope", "/users", "/User", "/USER", "/user/Notification", "/user/notifications",
                                 "/user/nope", "/Public", "/public/nope", "/public/local/media", "/Hashtag", "/HEALTH",
                                 "/hashtag/remote", "/LIST", "/list/1", "/direct/1", "/metrics")),
    "/API/v1/streaming/user", "/api/V1/streaming/public", "/Metrics")

def verdict(what, path, headers, expected):
    answer = fetch(path, headers)
    if expected is OK:
        accepted(what, answer)
    else:
        refused(what, answer, *expected)

def routes(owner):
    """Every route with what it needs to be accepted."""
    return [PREFIX + path for path in PLAIN] + [
        f"{PREFIX}/hashtag?tag={word()}", f"{PREFIX}/hashtag/local?tag={word()}",
        f"{PREFIX}/list?list={new_list(owner)}"]

def with_query(path, value):
    return f"{path}{'&' if '?' in path else '?'}access_token={value}"

def check_every_route_with_a_token_in_every_place():
    good = account()
    bad = {"unknown": word(), "revoked": token(good, revoked=PAST).token, "disabled": account(disabled=True).token,
           "suspended": account(suspended=PAST).token, "part of a": good.token[:-1]}
    cases = [("NUL in query", PREFIX + "/user?access_token=%00", {}, INVALID)]
    for path in routes(good):
        cases += [(f"{path} no token", path, {}, MISSING),
                  (f"{path} header", path, bearer(good.token), OK),
                  (f"{path} query", with_query(path, good.token), {}, OK),
                  (f"{path} header over query", with_query(path, word()), bearer(good.token), OK),
                  (f"{path} wrong header over query", with_query(path, good.token), bearer(word()), INVALID)]
        cases += [(f"{path} {name} in header", path, bearer(value), INVALID) for name, value in bad.items()]
        cases += [(f"{path} {name} in query", with_query(path, value), {}, INVALID) for name, value in bad.items()]
    each(cases, verdict)

def check_bearer_is_case_sensitive():
    good = account()
    for word_before in ("bearer", "BEARER", "Basic"):
        answer = fetch(PREFIX + "/user", {"Authorization": f"{word_before} {good.token}"})
        want(answer.status == 401, f"401 for {word_before}", (answer.status, answer.text))

def check_scopes_of_every_route():
    owner = account()
    statuses = {"read": OK, "read:statuses": OK, "read:notifications": SCOPES, "write": SCOPES, "": SCOPES,
                "write read:statuses": OK, "read:notifications read:statuses": OK, "read:lists read:accounts": SCOPES,
                "reads": SCOPES, "write follow push": SCOPES, "write read": OK}
    notifications = {**statuses, "read:statuses": SCOPES, "write read:statuses": SCOPES, "read:notifications": OK}
    tokens = {scopes: token(owner, scopes).token for scopes in statuses}
    each([(f"{path} with {scopes!r}", path, bearer(tokens[scopes]), expected) for path in routes(owner)
          for scopes, expected in (notifications if path.endswith("/notification") else statuses).items()], verdict)

def check_parameters():
    good = bearer(account().token)
    each([(f"{path}", PREFIX + path, good, expected) for path, expected in (
        ("/hashtag", NO_TAG), ("/hashtag/local", NO_TAG), ("/list", NO_LIST), ("/hashtag?tag=", NO_TAG),
        ("/hashtag/local?tag=", NO_TAG), ("/list?list=", NO_LIST), ("/hashtag?list=1", NO_TAG),
        ("/list?tag=x", NO_LIST),
    )], verdict)

def check_list_ownership():
    owner, other = account(), account()
    mine = new_list(owner)
    cases = [("own list", str(mine), OK), ("nobody's", str(big()), NOT_YOURS),
             ("another's", str(new_list(other)), NOT_YOURS)]
    cases += [(f"list {text}", text, NOT_YOURS)
              for text in ("abc", f"{mine}x", f"x{mine}", "1.5", "0", "-1", "9" * 19, "9" * 30, "1%20or%201=1", "%00",
                           "%27")]
    each([(name, f"{PREFIX}/list?list={value}", bearer(owner.token), expected) for name, value, expected in cases],
         verdict)
    each([("the other's token", f"{PREFIX}/list?list={mine}", bearer(other.token), NOT_YOURS)], verdict)

def check_unknown_paths_before_the_token():
    good = account()
    heads = {"no token": {}, "good token": bearer(good.token), "wrong token": bearer(word())}
    each([(f"{path} with {name}", path, head, UNKNOWN) for path in UNKNOWN_PATHS for name, head in heads.items()],
         verdict)

def check_judged_in_order():
    good, writer = account(), account("write")
    lists = f"{PREFIX}/list?list={new_list(good)}"
    each([
        ("path before scope", PREFIX + "/nope", bearer(writer.token), UNKNOWN),
        ("token before parameter", PREFIX + "/hashtag", {}, MISSING),
        ("wrong token before parameter", PREFIX + "/list", bearer(word()), INVALID),
        ("token before list", lists, {}, MISSING),
        ("scope before parameter", PREFIX + "/hashtag", bearer(writer.token), SCOPES),
        ("scope before list parameter", PREFIX + "/list", bearer(writer.token), SCOPES),
        ("scope before list ownership", lists, bearer(writer.token), SCOPES),
        ("parameter before ownership", PREFIX + "/list?list=", bearer(account().token), NO_LIST),
    ], verdict)

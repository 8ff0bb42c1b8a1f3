"""Checks: the WebSocket handshake - where the token may be, who is refused, and how."""
from expect import equal, want
from mastodon_http import PREFIX, bearer
from mastodon_redis import publish, standing
from mastodon_seed import PAST, account, new_list, token, word
from mastodon_socket import Socket, handshake
from mastodon_wait import each

MISSING, INVALID = "Missing access token", "Invalid access token"

def protocol(value):
    return {"Sec-WebSocket-Protocol": value}

def answered(_, query, headers, expected):
    """Refused as expected, or (None) accepted, with the protocol echoed."""
    answer = handshake(PREFIX + query, headers)
    answer.sock.close()
    if expected is None:
        equal("status", answer.status, 101)
        equal("protocol", answer.headers.get("sec-websocket-protocol"), headers.get("Sec-WebSocket-Protocol"))
    else:
        equal("status, body, X-Error-Message", (answer.status, answer.body, answer.headers.get("x-error-message")),
              (401, b"", expected))

def check_handshake_with_the_token_in_every_place():
    good = account()
    bad = {"unknown": word(), "revoked": token(good, revoked=PAST).token, "disabled": account(disabled=True).token,
           "suspended": account(suspended=PAST).token}
    value = good.token
    cases = [("none", "", {}, MISSING), ("none, with a stream", "?stream=public", {}, MISSING),
             ("header", "", bearer(value), None), ("query", f"?access_token={value}", {}, None),
             ("protocol", "", protocol(value), None),
             ("header over query", f"?access_token={word()}", bearer(value), None),
             ("wrong header over query", f"?access_token={value}", bearer(word()), INVALID),
             ("query over protocol", f"?access_token={value}&stream=user", protocol(word()), None),
             ("wrong query over protocol", f"?access_token={word()}", protocol(value), INVALID),
             ("wrong header over protocol", "", {**bearer(word()), **protocol(value)}, INVALID)]
    for name, wrong in bad.items():
        cases += [(f"{name} in header", "", bearer(wrong), INVALID),
                  (f"{name} in query", f"?access_token={wrong}", {}, INVALID),
                  (f"{name} in protocol", "", protocol(wrong), INVALID)]
    each(cases, answered)

def check_bearer_is_case_sensitive_in_the_handshake():
    answer = handshake(headers={"Authorization": f"bearer {account().token}"})
    want((answer.status, answer.body) == (401, b""), "401 with an empty body", (answer.status, answer.body))

def check_every_path_of_the_handshake():
    def hears(path):
        who = account()
        with Socket(who.token, path, "?stream=user") as ws:
            standing(f"timeline:{who.id}")
            publish(f"timeline:{who.id}", "delete", "1")
            ws.wait(lambda: ws.came(["user"]) == [("delete", "1")], "an event")
    each([(path,) for path in (PREFIX, PREFIX + "/", "/", "/any/path", "/api/v1/Streaming")], hears)
    with Socket(account().token, headers={"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket"}):
        pass                                            # as browsers write it

def check_stream_in_the_handshake():
    def hears(query, stream, channel, who):
        with Socket(who.token, query=query) as ws:
            standing(channel)
            publish(channel, "delete", "7")
            ws.wait(lambda: ws.messages, "an event")
            equal("message", ws.messages, [{"stream": stream, "event": "delete", "payload": "7"}])
    who = [account() for _ in range(6)]
    number, tags = new_list(who[0]), [word() for _ in range(2)]
    upper = tags[0].upper()
    each([(f"?stream=list&list={number}", ["list", str(number)], f"timeline:list:{number}", who[0]),
          ("?stream=user", ["user"], f"timeline:{who[1].id}", who[1]),
          ("?stream=user:notification", ["user:notification"], f"timeline:{who[2].id}:notifications", who[2]),
          ("?stream=direct", ["direct"], f"timeline:direct:{who[3].id}", who[3]),
          (f"?stream=hashtag&tag={upper}", ["hashtag", upper], f"timeline:hashtag:{tags[0]}", who[4]),
          (f"?tag=%C3%89{tags[1]}&stream=hashtag:local", ["hashtag:local", f"É{tags[1]}"],
           f"timeline:hashtag:e{tags[1]}:local", who[5])], hears)

def check_wrong_stream_in_the_handshake_is_an_error_in_band():
    def told(query, error, status, who):
        with Socket(who.token, query=query) as ws:
            ws.wait(ws.errors, "an error")
            equal(query, ws.messages, [{"error": error, "status": status}])
    who = account()
    each([("?stream=nope", "Unknown stream type", 400, who),
          ("?stream=hashtag", "Missing tag name parameter", 400, who),
          ("?stream=list", "Missing list name parameter", 400, who),
          ("?stream=list&list=abc", "Not authorized to stream this list", 401, who),
          ("?stream=user", "Access token does not have the required scopes", 401, account("write"))], told)

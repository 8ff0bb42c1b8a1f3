"""Checks: what pages of which origin may do."""
from event_api_client import call, user
from event_api_stream import Stream
from expect import equal, want

ORIGIN = "http://page.example"

def check_cors():
    split = lambda text: {word.strip().lower() for word in (text or "").split(",")}
    names = ["allow-origin", "allow-credentials", "max-age", "allow-methods", "allow-headers"]
    for method, path in (("POST", "/insert"), ("GET", "/events/user"), ("GET", "/events")):
        ask = {"Access-Control-Request-Method": method,
               "Access-Control-Request-Headers": "accept,authorization,content-type"}
        answer = call("OPTIONS", path, headers={"Origin": ORIGIN, **ask})
        want(answer.status_code in (200, 204), "preflight: 200 or 204", (answer.status_code, answer.text))
        *fixed, methods, allowed = [answer.headers.get(f"Access-Control-{name}") for name in names]
        equal("origin, credentials, max-age", fixed, [ORIGIN, "true", "3600"])
        want(method.lower() in split(methods) <= {"get", "post", "options", "head"}, "GET, POST", methods)
        want({"authorization", "accept", "content-type"} <= split(allowed), "the three allowed headers", allowed)
        other = call("OPTIONS", path, headers={"Origin": "http://evil.example", **ask})
        equal("allow-origin for another origin", other.headers.get("Access-Control-Allow-Origin"), None)
    ask = lambda origin: call("GET", "/events/user", token=user("bob").token, headers={"Origin": origin}).headers
    with Stream(headers={"Origin": ORIGIN}) as s:
        for head in (ask(ORIGIN), s.answer.headers):
            equal("origin, credentials", [head.get(f"Access-Control-{name}") for name in names[:2]], [ORIGIN, "true"])
    equal("allow-origin for another", ask("http://evil.example").get("Access-Control-Allow-Origin"), None)

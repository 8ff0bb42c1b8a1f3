"""Checks: sign-up, login and the token."""
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jwt

from event_api_client import fresh, good, log_in, refused, sign_up, user
from expect import equal, want

def check_token_is_hs256_with_three_claims():
    alice = user("alice")
    equal("alg", jwt.get_unverified_header(alice.token)["alg"], "HS256")
    claims = jwt.decode(alice.token, options={"verify_signature": False})
    equal("claims", claims, {"sub": alice.id, "company": "", "exp": claims.get("exp")})
    want(type(claims["exp"]) is int and claims["exp"] > time.time() + 60, "exp in unix seconds, ahead", claims["exp"])

def check_user_name_taken():
    equal("error", refused("second sign-up", sign_up(user("alice").name, "another"), 400), "username already taken")
    for _ in range(2):
        name, gate = fresh("race"), threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(lambda: gate.wait() is not None and sign_up(name)) for _ in range(2)]
            answers = sorted((job.result() for job in jobs), key=lambda a: a.status_code)
        equal("two sign-ups at once", [a.status_code for a in answers], [200, 400])
        equal("error", refused("the second", answers[1], 400), "username already taken")

def check_passwords_over_72_bytes():
    name = fresh("long")
    for password in ("p" * 73, "€" * 25):
        text = refused(f"password of {len(password.encode())} bytes", sign_up(name, password), 400, 422)
        want("password" in text.lower(), "an error that speaks of the password", text)
    good("72 bytes", sign_up(name, "p" * 72), "id")
    good("login with 72 bytes", log_in(name, "p" * 72), "jwt")
    refused("login with one byte more", log_in(name, "p" * 72 + "x"), 400, 401, 422)

def check_login_does_not_tell_unknown_from_wrong():
    times, texts = {True: [], False: []}, set()
    for known in (True, False) * 5:
        name, start = user("alice").name if known else fresh("nobody"), time.perf_counter()
        texts.add(refused("login", log_in(name, "wrong password"), 401))
        times[known].append(time.perf_counter() - start)
    equal("number of different errors", len(texts), 1)
    wrong, unknown = statistics.median(times[True]), statistics.median(times[False])
    want(0.4 < unknown / wrong < 2.5, "equal time for a wrong password and an unknown user", (wrong, unknown))

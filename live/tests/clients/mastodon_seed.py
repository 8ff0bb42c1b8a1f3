"""Rows of Mastodon's database that the checks need. Every id is random, so that runs never meet."""
import os
import secrets
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import psycopg

FEED_ACCESS_LOCK = 0x6D6173746F646F6E                   # the feed settings are the same rows for all runs
PERMISSION = 0x100000                                   # to see feeds that are disabled
PAST = "2001-02-03 04:05:06"
_here = SimpleNamespace(connection=None, lock=threading.Lock())

def big():
    """An id as large as Mastodon's may become, and more than a double holds."""
    return secrets.randbelow(2**63 - 2**60) + 2**60

def word():
    return "x" + secrets.token_hex(7)

def connect():
    return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, connect_timeout=5)

def execute(text, *values):
    with _here.lock:
        if _here.connection is None or _here.connection.closed:
            _here.connection = connect()
        cursor = _here.connection.execute(text, values)
        return cursor.fetchall() if cursor.description else []

def insert(table, **columns):
    places = ", ".join(["%s"] * len(columns))
    execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", *columns.values())

def token(account, scopes="read", revoked=None):
    """A further token of this account."""
    new = SimpleNamespace(**{**vars(account), "token": f"{word()}-{word()}_{word()}", "token_id": big()})
    insert("oauth_access_tokens", id=new.token_id, token=new.token, resource_owner_id=new.user, scopes=scopes,
           revoked_at=revoked)
    return new

def account(scopes="read", revoked=None, disabled=False, suspended=None, permissions=None, languages=None):
    """A local account with its user and one token."""
    new = SimpleNamespace(id=big(), user=big(), username=word())
    role = None if permissions is None else big()
    if role is not None:
        insert("user_roles", id=role, permissions=permissions)
    insert("accounts", id=new.id, username=new.username, domain=None, suspended_at=suspended)
    insert("users", id=new.user, account_id=new.id, role_id=role, chosen_languages=languages, disabled=disabled)
    return token(new, scopes, revoked)

def new_list(owner, small=False):
    """The id of a new list; a small one is exact as a JSON number everywhere."""
    number = secrets.randbelow(2**53 - 2**50) + 2**50 if small else big()
    insert("lists", id=number, account_id=owner.id)
    return number

def keyword_filter(owner, *keywords, whole=False, title="title", context=("home",), expires=None, action=0):
    """The id of a new filter of this account."""
    number = big()
    insert("custom_filters", id=number, account_id=owner.id, phrase=title, context=list(context), expires_at=expires,
           action=action)
    for keyword in keywords:
        insert("custom_filter_keywords", custom_filter_id=number, keyword=keyword, whole_word=whole)
    return number

@contextmanager
def _locked(function):
    with connect() as session:
        session.execute(f"SELECT {function}(%s)", (FEED_ACCESS_LOCK,))
        yield

def calm():
    """While this is held no run changes the settings of feed access: hold it while subscribing."""
    return _locked("pg_advisory_lock_shared")

@contextmanager
def settings(**values):
    """These settings for a moment, and no others that disable a feed; all runs wait meanwhile."""
    names = [f"{place}_{kind}_feed_access" for place in ("local", "remote") for kind in ("live", "topic")]
    with _locked("pg_advisory_lock"):
        before = execute("SELECT var, value FROM settings WHERE var = ANY(%s)", names)
        execute("DELETE FROM settings WHERE var = ANY(%s)", names)
        try:
            for var, value in values.items():
                insert("settings", var=var, value=value)
            yield
        finally:
            execute("DELETE FROM settings WHERE var = ANY(%s)", names)
            for var, value in before:
                insert("settings", var=var, value=value)

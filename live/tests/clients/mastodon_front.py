"""The little of a Mastodon server that client libraries ask for before they stream."""
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from server import SERVER

def documents(streaming):
    """The instance in both versions, with this address of the streaming server."""
    both = {"title": "front", "version": "4.7.0", "description": "", "languages": ["en"], "rules": []}
    access = {feed: {"local": "public", "remote": "public"} for feed in ("live_feeds", "hashtag_feeds")}
    configuration = {"urls": {"streaming": streaming}, "statuses": {"max_characters": 500}, "timelines_access": access}
    return {"/api/v1/instance": {**both, "uri": "front.example", "urls": {"streaming_api": streaming}, "stats": {},
                                 "configuration": configuration},
            "/api/v2/instance": {**both, "domain": "front.example", "configuration": configuration,
                                 "api_versions": {"mastodon": 8}}}

@contextmanager
def front(scheme):
    """The address of a server that answers with these documents; the streaming server's has this scheme."""
    pages = documents(f"{scheme}://{SERVER.url.netloc}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path.split("?")[0].rstrip("/"))
            body = json.dumps(page or {"error": "Record not found"}).encode()
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

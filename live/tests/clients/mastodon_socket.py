"""A WebSocket client by hand: every frame and header is seen, and pongs are sent or not."""
import base64
import hashlib
import json
import os
import socket
import struct
import time
from types import SimpleNamespace

from expect import WAIT, Failed, equal, want
from mastodon_http import PREFIX, bearer, dial
from mastodon_marks import Marked
from server import SERVER

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

def handshake(path=PREFIX, headers=None, receive_buffer=None):
    """The answer to an upgrade, with its socket; for anything but 101 the body too."""
    sock = dial(WAIT, receive_buffer)
    key = base64.b64encode(os.urandom(16)).decode()
    head = {"Host": SERVER.url.netloc, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": key, **(headers or {})}
    lines = [f"GET {SERVER.url.path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    sock.sendall("\r\n".join(lines).encode())
    file = sock.makefile("rb")
    first, came = file.readline().decode().strip(), {}
    while line := file.readline().decode().strip():
        name, _, value = line.partition(":")
        came[name.strip().lower()] = value.strip()
    status = int((first.split() + ["", "0"])[1])
    body = None
    if status == 101:
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        equal("Sec-WebSocket-Accept", came.get("sec-websocket-accept"), accept)
    else:
        body = file.read(int(came["content-length"])) if "content-length" in came else file.read()
    return SimpleNamespace(status=status, headers=came, body=body, sock=sock, file=file)

class Socket(Marked):
    """One connection; `messages` are the JSON texts that came."""

    def __init__(self, token=None, path=PREFIX, query="", headers=None, pongs=True, reading=True, receive_buffer=None):
        super().__init__()
        self.messages, self.pings, self.closing, self.pongs = [], [], None, pongs
        answer = handshake(path + query, {**(bearer(token) if token else {}), **(headers or {})}, receive_buffer)
        want(answer.status == 101, f"upgrade of {path}{query}: 101", (answer.status, answer.headers))
        self.sock, self.file, self.headers = answer.sock, answer.file, answer.headers
        self.sock.settimeout(None)
        if reading:
            self.start()

    def read(self):
        text = b""
        while head := self.file.read(2):
            length = head[1] & 127
            if length > 125:
                length = int.from_bytes(self.file.read(2 if length == 126 else 8))
            body = self.file.read(length)
            if len(body) < length:
                return                                  # cut off within a frame
            want(head[1] < 128 and not head[0] & 0x70, "an unmasked frame without extensions", head)
            with self.cond:
                opcode = head[0] & 15
                if opcode in (0, TEXT):
                    text += body
                    if head[0] & 128:
                        self._message(text)
                        text = b""
                elif opcode == PING:
                    self.pings.append(time.time())
                    if self.pongs:
                        self.frame(PONG, body)
                elif opcode == CLOSE:
                    self.closing = body
                    self.cond.notify_all()
                    return
                elif opcode != PONG:
                    raise Failed(f"expected text, came a frame with opcode {opcode}")
                self.cond.notify_all()

    def _message(self, text):
        try:
            body = json.loads(text.decode())
        except ValueError:
            raise Failed(f"expected JSON, came {text!r:.200}") from None
        want(isinstance(body, dict) and ("error" in body or set(body) <= {"stream", "event", "payload"}),
             "an error, or stream, event, payload", body)
        self.messages.append(body)
        if body.get("event") == "delete":
            self.deleted.add(body.get("payload"))

    def frame(self, opcode, payload=b""):
        size = len(payload)
        length = bytes([128 | size]) if size < 126 else struct.pack("!BH", 128 | 126, size)
        self.sock.sendall(bytes([128 | opcode]) + length + bytes(4) + payload)          # masked with zeros

    def send(self, message):
        self.frame(TEXT, (message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)).encode())

    def subscribe(self, stream, **params):
        self.send({"type": "subscribe", "stream": stream, **params})
        return self

    def unsubscribe(self, stream, **params):
        self.send({"type": "unsubscribe", "stream": stream, **params})
        return self

    def errors(self):
        return [m for m in list(self.messages) if "error" in m]

    def came(self, stream=None):
        """(event, payload) of what came on this stream, or on all."""
        return [(m.get("event"), m.get("payload")) for m in list(self.messages)
                if "error" not in m and stream in (None, m.get("stream"))]

    def unmarked(self, *marks):
        """All that came, without the marks."""
        return [m for m in list(self.messages) if m.get("payload") not in marks]

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

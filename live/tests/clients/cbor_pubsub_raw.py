"""A WebSocket client by hand: single frames, and no answer to a ping by itself."""
import base64
import os
import socket
import struct
import time
from uuid import uuid4

from expect import WAIT, Failed, want
from server import SERVER

class Raw:
    """A WebSocket client by hand, which answers no ping by itself."""

    def __init__(self):
        url = SERVER.url
        self.socket = socket.create_connection(SERVER.address, WAIT)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET {url.path}/ws/{uuid4()} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\n"
                            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
                            .encode())
        self.file, self.start = self.socket.makefile("rb"), time.time()
        status = self.file.readline()
        want(b" 101 " in status, "101", status)
        while self.file.readline().strip():
            pass

    def send(self, opcode, payload=b"", fin=True):
        length = bytes([128 | len(payload)]) if len(payload) < 126 else struct.pack("!BH", 128 | 126, len(payload))
        self.socket.sendall(bytes([fin << 7 | opcode]) + length + bytes(4) + payload)   # masked with zeros

    def frame(self, timeout=WAIT):
        """(opcode, payload), None at the end of the connection."""
        self.socket.settimeout(timeout)
        try:
            head = self.file.read(2)
            if len(head) < 2:
                return None
            length = head[1] & 127
            if length > 125:
                length = int.from_bytes(self.file.read(2 if length == 126 else 8))
            return head[0] & 15, self.file.read(length)
        except ConnectionError:
            return None
        except TimeoutError:
            raise Failed(f"expected a frame within {timeout} s, came nothing") from None

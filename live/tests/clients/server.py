"""The server under test: where it is and how to reach it. The command line sets the address."""
from urllib.parse import urlsplit

import requests

class Server:
    base = ""                                           # http://host[:port][/path], without a slash at the end

    @property
    def url(self):
        return urlsplit(self.base)

    @property
    def address(self):
        return self.url.hostname, self.url.port or 80

    @staticmethod
    def session():
        """HTTP without the proxies and passwords of the environment."""
        session = requests.Session()
        session.trust_env = False
        return session

SERVER = Server()

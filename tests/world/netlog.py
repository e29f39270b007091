"""The log: one JSON object a line, flushed at once, so that a test can read it while the world runs."""

import json
import threading
import time


class NetLog:
    """Appends events to DIR/net.log. One write call a line: readers never see half of one for long."""

    def __init__(self, path):
        self._file = open(path, "a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()

    def write(self, kind, **fields):
        line = json.dumps({"t": round(time.time(), 6), "kind": kind, **fields}) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


def text(data, limit=65536):
    """Bytes as text that loses nothing: what isn't UTF-8 becomes backslash escapes."""
    return data[:limit].decode("utf-8", "backslashreplace")


def plain(address):
    """Addresses of dual-stack sockets as people write them: `::ffff:1.2.3.4` is `1.2.3.4`."""
    address = address.split("%")[0]
    return address[7:] if address.startswith("::ffff:") and "." in address else address

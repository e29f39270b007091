"""HTTP/1.1 as the world speaks it: reads requests exactly as sent, logs them, and picks who answers by name."""

import base64
import hashlib
import json
import time
import urllib.parse

import netlog

HEAD_LIMIT = 1 << 20
BODY_LOG = 65536
# What every server adds to the client's key.
WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
REASONS = {200: "OK", 201: "Created", 204: "No Content", 301: "Moved Permanently", 302: "Found", 400: "Bad Request",
           401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 413: "Too Large",
           429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable", 529: "Overloaded"}


class Connection:
    """A byte stream with a buffer, and who is at its two ends."""

    def __init__(self, sock, ends, hello, first=b""):
        self.sock = sock
        self.ends = ends
        self.hello = hello
        self._buffer = first

    def until(self, mark):
        """Bytes up to and including `mark`; None at the end of the stream."""
        while mark not in self._buffer:
            if len(self._buffer) > HEAD_LIMIT:
                return None
            try:
                data = self.sock.recv(65536)
            except OSError:
                return None
            if not data:
                return None
            self._buffer += data
        at = self._buffer.index(mark) + len(mark)
        taken, self._buffer = self._buffer[:at], self._buffer[at:]
        return taken

    def exactly(self, size):
        """`size` bytes; fewer where the stream ends, or is cut, before."""
        parts, have = [self._buffer[:size]], min(size, len(self._buffer))
        self._buffer = self._buffer[size:]
        while have < size:
            try:
                data = self.sock.recv(min(1 << 20, size - have))
            except OSError:
                break  # a cut connection has still delivered what it delivered
            if not data:
                break
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def rest(self):
        """What came and was not taken: the beginning of something that never became whole."""
        taken, self._buffer = self._buffer, b""
        return taken

    def send(self, data):
        self.sock.sendall(data)


class Request:
    def __init__(self, connection, head):
        lines = head.decode("utf-8", "backslashreplace").split("\r\n")
        parts = lines[0].split(" ")
        self.method, self.target = parts[0], parts[1] if len(parts) > 1 else ""
        self.headers = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                self.headers.append((name.strip(), value.strip()))
        url = urllib.parse.urlsplit(self.target if self.target.startswith("/") else "/" + self.target)
        self.path, self.query = url.path, urllib.parse.parse_qs(url.query, keep_blank_values=True)
        self.query_string = url.query
        self.raw_host = self.header("host") or ""
        self.host = self.raw_host.rsplit(":", 1)[0].lower() if not self.raw_host.endswith("]") else self.raw_host
        self.connection = connection
        self.body = b""

    def header(self, name):
        return next((value for key, value in self.headers if key.lower() == name), None)

    def read_body(self):
        if (self.header("expect") or "").lower() == "100-continue":
            self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in (self.header("transfer-encoding") or "").lower():
            self.body = self._chunks()
        elif (self.header("content-length") or "").isdigit():
            self.body = self.connection.exactly(int(self.header("content-length")))

    def _chunks(self):
        parts = []
        while line := self.connection.until(b"\r\n"):
            try:
                size = int(line.split(b";")[0].strip() or b"0", 16)
            except ValueError:
                parts.append(line)  # kept for the log
                break
            if size == 0:
                while (trailer := self.connection.until(b"\r\n")) and trailer != b"\r\n":
                    pass
                break
            parts.append(self.connection.exactly(size))
            self.connection.exactly(2)
        return b"".join(parts)


class Response:
    """`body` is bytes, or an iterator of bytes that is sent in chunks as they come."""

    def __init__(self, status, body=b"", headers=(), kind="text/plain"):
        self.status = status
        self.body = body.encode() if isinstance(body, str) else body
        self.headers = list(headers)
        self.kind = kind

    @staticmethod
    def json(status, value, headers=()):
        return Response(status, json.dumps(value), headers, "application/json")


class Site:
    """Every web server of the world. `hosts` maps a name to what answers it; the rest get the token page."""

    def __init__(self, config, log, hosts, everywhere):
        self._log = log
        self._hosts = hosts
        self._everywhere = everywhere
        self._evil = {config["hosts"][name] for name in config["evil"]}

    def serve(self, connection):
        """Answers request after request. What never became a whole request is logged too: it did arrive."""
        while (head := connection.until(b"\r\n\r\n")) is not None:
            request = Request(connection, head)
            request.read_body()
            answer = self._pick(request)
            if answer == self._page and (request.header("upgrade") or "").lower() == "websocket":
                self._log_request(request, head, Response(101))
                websocket(request)
                return
            response = answer(request)
            if answer == self._page:
                self._log_request(request, head, response)
            if not self._send(request, response):
                return
        if rest := connection.rest():
            self._log.write("http", **connection.ends, tls=connection.hello is not None, host=None, method=None,
                            sni=connection.hello and connection.hello["sni"], head=netlog.text(rest, 16384), status=None)

    def _pick(self, request):
        if request.connection.ends["local"] not in self._evil and request.host in self._hosts:
            return self._hosts[request.host]
        for matches, answer in self._everywhere:
            if matches(request):
                return answer
        return self._page

    def _log_request(self, request, head, response):
        hello = request.connection.hello
        self._log.write(
            "http", **request.connection.ends, tls=hello is not None, sni=hello and hello["sni"],
            host=request.raw_host, method=request.method, target=request.target, headers=request.headers,
            head=netlog.text(head, 16384), body=netlog.text(request.body, BODY_LOG), body_size=len(request.body),
            status=response.status)

    def _page(self, request):
        """The token page, and a few pages that do something: /bytes/N, /slow/SECONDS, /status/N, /redirect?to=, /echo."""
        token = f"token-{request.connection.ends['local']}-{request.host}"
        parts = request.path.strip("/").split("/")
        headers = [("X-World-Token", token)]
        number = parts[1] if len(parts) > 1 and parts[1].isdigit() else None
        if parts[0] == "bytes" and number:
            return Response(200, b"x" * int(number), headers, "application/octet-stream")
        if parts[0] == "slow" and number:
            return Response(200, dribble(token, int(number)), headers)
        if parts[0] == "status" and number:
            return Response(int(number), token + "\n", headers)
        if parts[0] == "redirect":
            return Response(302, token + "\n", headers + [("Location", request.query.get("to", ["/"])[0])])
        if parts[0] == "echo":
            return Response(200, request.body, headers, "application/octet-stream")
        return Response(200, token + "\n", headers)

    def _send(self, request, response):
        """Whether the connection may carry another request."""
        connection = request.connection
        streamed = not isinstance(response.body, bytes)
        keep = (request.header("connection") or "").lower() != "close"
        lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Status')}", "Server: world",
                 f"Content-Type: {response.kind}"]
        lines += [f"{name}: {value}" for name, value in response.headers]
        lines.append("Transfer-Encoding: chunked" if streamed else f"Content-Length: {len(response.body)}")
        lines.append("Connection: keep-alive" if keep else "Connection: close")
        connection.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        if request.method == "HEAD":
            return keep
        if streamed:
            for part in response.body:
                if part:
                    connection.send(b"%x\r\n%s\r\n" % (len(part), part))
            connection.send(b"0\r\n\r\n")
        else:
            connection.send(response.body)
        return keep


def websocket(request):
    """Greets with the token, then sends every text frame back (RFC 6455), until the client closes."""
    connection = request.connection
    accept = hashlib.sha1((request.header("sec-websocket-key") or "").encode() + WEBSOCKET).digest()
    connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n")
    text = f"token-{connection.ends['local']}-{request.host}".encode()
    while True:
        short = len(text) < 126
        connection.send(bytes([0x81, len(text) if short else 126]) + (b"" if short else len(text).to_bytes(2, "big")) + text)
        head = connection.exactly(2)
        if len(head) < 2:
            return
        size = head[1] & 127
        if size > 125:
            size = int.from_bytes(connection.exactly(2 if size == 126 else 8), "big")
        mask = connection.exactly(4) if head[1] & 128 else bytes(4)
        if head[0] & 15 == 8:
            connection.exactly(size)
            return
        text = bytes(octet ^ mask[at % 4] for at, octet in enumerate(connection.exactly(size)))[:65535]


def dribble(token, seconds):
    """One line ten times a second: a flow that is open long enough to be cut."""
    for count in range(seconds * 10):
        yield f"{token} {count}\n".encode()
        time.sleep(0.1)

"""The plainest client there can be, for the tests of the box: what it prints is what came back.

It runs on both sides: from the box's network before the box boots, to show that a request gets through, and in the
box, as the agent or as root. It knows no resolver but the one that it is told.

    dns SERVER NAME [TYPE] [udp|tcp]   the response code and the addresses or texts; SERVER may be ADDRESS@PORT, NAME may
                                       hold octets as \\DDD, TYPE may be TYPE65280
    tcp|udp ADDRESS PORT [TEXT]        what was answered. By TCP on 80 and 443, which belong to the gate, the text is said as a gate can
                                       let it pass: in a request, in TLS, under the name of that address (NAME@ADDRESS:
                                       under this one), and only the target's own token counts as an answer
    ping ADDRESS TEXT                  what was echoed
    each JSON                          several of these commands, a list of lists of words, eight at a time; a line of JSON for
                                       each: [exit status, what it would have printed]
    flow ADDRESS PORT                  connects, then sends each line of standard input and prints what comes back until that line
                                       does; on port 80 each line is a request

The last line of every failure begins with "error: "; the exit status is then 1.
"""

import concurrent.futures
import ipaddress
import json
import re
import socket
import ssl
import struct
import sys

# What is refused is told so at once; only what nobody answers waits so long.
WAIT = 5
# A gate tells who it is about before it refuses, and a server of the world may have to make a certificate first.
GATE_WAIT = 10
# For a resolver's answer, which may be asked for outside: as long as the C library waits (resolv.conf(5)).
DNS_WAIT = 5
# Whom a client means by these addresses (tests/world/addresses.json); by any other, somebody whom no policy allows.
NAMES = {"93.184.215.20": "ok.test", "93.184.215.21": "many.test", "93.184.215.22": "many.test", "2606:4700::20": "onlysix.test",
         "104.16.0.10": "cdn.test", "140.82.112.10": "codeload.github.com"}
STRANGER = "evil.test"
TYPES = {"A": 1, "NS": 2, "CNAME": 5, "NULL": 10, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "SVCB": 64, "HTTPS": 65, "ANY": 255}


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connected(kind, address, port, wait=WAIT):
    sock = socket.socket(family(address), kind)
    sock.settimeout(wait)
    sock.connect((address, int(port)))
    return sock


def label(text):
    """A label as it is sent; \\DDD is an octet (RFC 1035 section 5.1), a dot too."""
    raw = re.sub(rb"\\(\d{3})", lambda octet: bytes([int(octet[1])]), text.encode())
    return bytes([len(raw)]) + raw


def dns(server, name, kind="A", transport="udp"):
    number = TYPES[kind] if kind in TYPES else int(kind.removeprefix("TYPE"))
    labels = b"".join(label(text) for text in name.rstrip(".").split(".") if text)
    question = labels + b"\0" + struct.pack("!HH", number, 1)
    query = struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 0) + question
    address, _, port = server.partition("@")
    with connected(socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM, address, port or 53, DNS_WAIT) as sock:
        sock.sendall(struct.pack("!H", len(query)) + query if transport == "tcp" else query)
        if transport == "tcp":
            with sock.makefile("rb") as stream:
                length = stream.read(2)
                if len(length) < 2:
                    raise ConnectionError("it ended before the answer")
                answer = stream.read(int.from_bytes(length, "big"))
        else:
            answer = sock.recv(65535)
    flags, _, count = struct.unpack("!3H", answer[2:8])
    at, values = 12 + len(question), []
    for _ in range(count):
        while answer[at] and answer[at] < 192:
            at += 1 + answer[at]
        at += 2 if answer[at] else 1
        number, _, _, size = struct.unpack("!HHIH", answer[at : at + 10])
        data = answer[at + 10 : at + 10 + size]
        at += 10 + size
        if number == 1:
            values.append(socket.inet_ntop(socket.AF_INET, data))
        elif number == 28:
            values.append(socket.inet_ntop(socket.AF_INET6, data))
        elif number == 16:
            values.append(data[1:].decode())
    return " ".join([{0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}.get(flags & 15, str(flags & 15))] + values)


def plain(address):
    """As the world writes it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def gated(address, port, text):
    """The answer, if it is the target's own: anybody may answer a connection that was redirected."""
    name, _, address = address.rpartition("@")
    name = name or NAMES.get(plain(address), STRANGER)
    if not re.match("[A-Z]+ /", text):
        text = f"GET /{text.strip()} HTTP/1.0\r\n\r\n"
    if "\nHost:" not in text:
        text = text.replace("\r\n", f"\r\nHost: {name}\r\n", 1)
    with connected(socket.SOCK_STREAM, address, port) as sock:
        sock.settimeout(GATE_WAIT)
        if port == "443":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(sock, server_hostname=name)
        sock.sendall(text.encode())
        answer = sock.recv(4096).decode(errors="replace")
    if f"token-{plain(address)}-" not in answer:
        raise ConnectionRefusedError(f"not the target's answer: {answer[:300]!r}")
    return answer


def exchange(kind, address, port, text="hello"):
    if kind == socket.SOCK_STREAM and port in ("80", "443"):
        return gated(address, port, text)
    with connected(kind, address, port) as sock:
        sock.sendall(text.encode())
        return sock.recv(4096).decode(errors="replace")


def ping(address, text):
    six = ":" in address
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    try:
        sock = socket.socket(family(address), socket.SOCK_DGRAM, protocol)
        raw = False
    except PermissionError:
        sock = socket.socket(family(address), socket.SOCK_RAW, protocol)
        raw = True
    with sock:
        sock.settimeout(WAIT)
        if six and not raw:
            # IPV6_RECVERR, as ping(8) does: else nobody is told of an error who is not connected.
            sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)
        header = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 0x77, 1)
        if raw and not six:
            header = header[:2] + struct.pack("!H", checksum(header + text.encode())) + header[4:]
        sock.sendto(header + text.encode(), (address, 0))
        while True:
            answer = sock.recv(4096)
            answer = answer[20:] if raw and not six else answer
            # A raw socket sees its own request on loopback, and neighbour discovery.
            if answer[0] in (0, 129):
                return answer[8:].decode(errors="replace")


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def flow(address, port):
    with connected(socket.SOCK_STREAM, address, port) as sock:
        print("connected", flush=True)
        for line in sys.stdin:
            request = f"POST /echo HTTP/1.1\r\nHost: {NAMES.get(plain(address), STRANGER)}\r\nContent-Length: {len(line)}\r\n\r\n"
            sock.sendall((request * (port == "80") + line).encode())
            answer = ""
            while line not in answer:
                more = sock.recv(4096).decode(errors="replace")
                if not more:
                    return "closed"
                answer += more
            print(answer.splitlines()[-1], flush=True)
    return "closed"


def main(what, *rest):
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    others = {"dns": dns, "ping": ping, "flow": flow, "each": each}
    return exchange(kinds[what], *rest) if what in kinds else others[what](*rest)


def attempt(words):
    """(exit status, what is printed)"""
    try:
        return 0, main(*words)
    except (OSError, struct.error, IndexError) as error:
        return 1, f"error: {error.__class__.__name__}: {error}"


def each(commands):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return "\n".join(json.dumps(done) for done in pool.map(attempt, json.loads(commands)))


status, text = attempt(sys.argv[1:])
if status:
    sys.exit(text)
print(text)

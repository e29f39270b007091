"""ClientHellos of our own making, for the tests of the gate: what each brings back is one line.

    hello.py ADDRESS PORT CASE…     a CASE is KIND:NAME or KIND:NAME,NAME; see `CASES`; raw:TEXT sends the text (\\n \\r \\xDD)

    server-hello    a server answered with a handshake record: it has read the hello
    alert N         a fatal alert with this description
    http LINE       the first line of an HTTP answer
    closed          the end without an octet
    octets TEXT     anything else; errors by their name
"""

import os
import socket
import struct
import sys

WAIT = 8


def counted(value, width=2):
    return len(value).to_bytes(width, "big") + value


def extension(number, value):
    return struct.pack("!H", number) + counted(value)


def host_name(name, kind=0):
    return bytes([kind]) + counted(name)


def server_name(*entries):
    return extension(0, counted(b"".join(entries)))


def hello(first, more=b"", suites=b"\x13\x01\x13\x02\x13\x03", shared=True):
    """The handshake message; `first` are the extensions with the name. With no key shared a server asks again."""
    share = b"\0\x1d" + counted(os.urandom(31) + b"\x01") if shared else b""
    rest = (extension(10, counted(b"\0\x1d")) + extension(13, counted(b"\x04\x03\x08\x04\x04\x01"))
            + extension(51, counted(share)) + extension(45, b"\1\1") + extension(43, b"\2\3\4"))
    body = (b"\3\3" + os.urandom(32) + counted(os.urandom(32), 1) + counted(suites) + b"\1\0"
            + counted(first + more + rest))
    return b"\1" + counted(body, 3)


def record(payload, kind=0x16):
    return bytes([kind, 3, 1]) + counted(payload)


def plain(name, more=b"", suites=b"\x13\x01\x13\x02\x13\x03"):
    return hello(server_name(host_name(name)), more, suites)


def long_name(name):
    """300 octets that end in the name."""
    return (b"a" * 49 + b".") * 6 + name


def cut(message):
    """In as many records as it takes."""
    return [record(message[at : at + 16000]) for at in range(0, len(message), 16000)]


def extensions_of(name):
    """How long they are without any more."""
    return len(plain(name)) - 4 - 2 - 32 - 33 - 2 - 6 - 2 - 2


# The random of a ServerHello that asks again.
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
ECH_OUTER = extension(0xFE0D, b"\0\0\1\0\1\x2a" + counted(os.urandom(32)) + counted(os.urandom(144)))
GREASE = extension(0x4A4A, b"") + extension(0xDADA, b"\0")
CASES = {
    "plain": lambda name: [record(plain(name))],
    "upper": lambda name: [record(plain(name.upper()))],
    "grease": lambda name: [record(plain(name, GREASE, b"\x1a\x1a\x13\x01\x13\x02"))],
    "octets": lambda name: [bytes([octet]) for octet in record(plain(name))],
    "records": lambda name: [record(plain(name)[at : at + 40]) for at in range(0, len(plain(name)), 40)],
    "none": lambda name: [record(hello(b""))],
    "empty": lambda name: [record(hello(server_name(host_name(b""))))],
    "nolist": lambda name: [record(hello(extension(0, b"")))],
    "emptylist": lambda name: [record(hello(extension(0, counted(b""))))],
    "long": lambda name: [record(plain(long_name(name)))],
    "othertype": lambda name: [record(hello(server_name(host_name(name, 7))))],
    "two": lambda one, two: [record(hello(server_name(host_name(one), host_name(two))))],
    "twice": lambda one, two: [record(hello(server_name(host_name(one)) + server_name(host_name(two))))],
    "nul": lambda one, two: [record(plain(one + b"\0." + two))],
    "dot": lambda name: [record(plain(name + b"."))],
    "space": lambda name: [record(plain(name + b" "))],
    "wild": lambda name: [record(plain(b"*." + name))],
    "ech": lambda name: [record(plain(name, ECH_OUTER))],
    "inner": lambda name: [record(plain(name, extension(0xFE0D, b"\1")))],
    "ssl2": lambda name: [b"\x80\x2e\1\0\2\0\x15\0\0\0\x10" + bytes(21) + os.urandom(16)],
    "other": lambda name: [record(plain(name), kind=0x17)],
    "trailing": lambda name: [record(plain(name) + b"junk")],
    "large": lambda name: cut(plain(name, extension(0x4242, bytes(60000)))),
    "huge": lambda name: cut(plain(name, extension(0x4242, bytes(65535 - 4 - extensions_of(name))))),
    "half": lambda name: [record(plain(name))[:100]],
    "damaged": lambda name: [record(plain(name)[:60] + b"\xff" * 40 + plain(name)[100:])],
}


def parts(kind, argument):
    if kind == "raw":
        return [argument.encode().decode("unicode_escape").encode("latin-1")]
    return CASES[kind](*(name.encode() for name in argument.split(",")))


def told(data):
    if not data:
        return "closed"
    if data[0] == 0x15 and len(data) >= 7:
        return f"alert {data[6]}"
    if data[0] == 0x16:
        return "server-hello"
    if data.startswith(b"HTTP/1."):
        return "http " + data.split(b"\r\n")[0].decode()
    return f"octets {data[:80]!r}"


def asked_twice(sock, argument):
    """The first name in a hello without a key; the second in the hello that the server then asks for (RFC 8446 4.1.4)."""
    one, two = (name.encode() for name in argument.split(","))
    both = [server_name(host_name(name)) for name in (one, two)]
    # What the server compares must be the same in both.
    fixed = os.urandom(32)
    first = hello(both[0], shared=False)
    sock.sendall(record(first[:6] + fixed + first[38:]))
    asked = sock.recv(4096)
    if asked[:1] != b"\x16" or asked[11:43] != RETRY:
        return f"not asked again: {told(asked)}"
    second = hello(both[1])
    sock.sendall(record(second[:6] + fixed + first[38 : 38 + 33] + second[71:]))
    heard = sock.recv(65536)
    if heard[:1] == b"\x14":  # the server's compatible change of cipher
        heard = heard[6:] or sock.recv(65536)
    return told(heard)


def attempt(address, port, kind, argument):
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(WAIT)
            sock.connect((address, int(port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if kind == "retry":
                return asked_twice(sock, argument)
            try:
                for part in parts(kind, argument):
                    sock.sendall(part)
                if kind == "half":
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # what it was told is still to be read
            return told(sock.recv(4096))
    except OSError as error:
        return f"octets {error.__class__.__name__}"


for case in sys.argv[3:]:
    kind, _, argument = case.partition(":")
    print(case.split("\\")[0][:60], "->", attempt(sys.argv[1], sys.argv[2], kind, argument), flush=True)

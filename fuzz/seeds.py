#!/usr/bin/env python3
"""Writes the seeds of corpus/: small messages by hand, so that the fuzzer begins at what is well formed."""

import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def write(target, seeds):
    directory = os.path.join(HERE, "corpus", target)
    os.makedirs(directory, exist_ok=True)
    for name, data in seeds.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)


def name(text):
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".") if label) + b"\0"


def question(text, kind=1, flags=0x0100, extra=b"", counts=(1, 0, 0, 0), cls=1):
    return struct.pack("!HHHHHH", 0x4a3b, flags, *counts) + name(text) + struct.pack("!HH", kind, cls) + extra


def opt(payload=1232, version=0, options=b""):
    return b"\0" + struct.pack("!HHBBHH", 41, payload, 0, version, 0, len(options)) + options


def record(owner, kind, ttl, data):
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def answer(records, flags=0x8180, authority=0):
    counts = (1, len(records) - authority, authority, 0)
    return question("ok.test", flags=flags, counts=counts) + b"".join(records)


def frame(value):
    body = json.dumps(value).encode()
    return struct.pack("<I", len(body)) + body


SELF = b"\xc0\x0c"
SOA = name("ns.test") + name("root.test") + struct.pack("!IIIII", 1, 3600, 600, 86400, 60)

write("client_message", {
    "allowed": question("ok.test"),
    "allowed-edns": question("a.b.wild.test", 28, extra=opt(), counts=(1, 0, 0, 1)),
    "denied-cookie": question("evil.test", extra=opt(4096, 0, struct.pack("!HH8s", 10, 8, b"cookie!!")), counts=(1, 0, 0, 1)),
    "edns-version": question("ok.test", extra=opt(version=1), counts=(1, 0, 0, 1)),
    "localhost": question("LocalHost"),
    "other-type": question("ok.test", 65),
    "chaos": question("version.bind", 16, cls=3),
    "two-questions": question("ok.test", counts=(2, 0, 0, 0)) + name("evil.test") + struct.pack("!HH", 1, 1),
    "update": question("ok.test", 6, flags=0x2800),
    "answer": question("ok.test", flags=0x8180),
    "pointer-loop": struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c" + struct.pack("!HH", 1, 1),
    # Found by the fuzzer: a name in the header, which is another one in the reply.
    "pointer-into-header": struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + b"\xc0\x02" + struct.pack("!HH", 1, 1),
    "odd-label": struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + b"\x04a\0\xff.\x04test\0" + struct.pack("!HH", 1, 1),
    "long-name": question(".".join(["x" * 63] * 3 + ["y" * 50, "test"])),
    "reverse": question("1.0.0.127.in-addr.arpa", 12),
})
write("upstream_message", {
    "one": answer([record(SELF, 1, 60, bytes([93, 184, 215, 20]))]),
    "six": answer([record(SELF, 28, 0, bytes.fromhex("26064700000000000000000000000020"))]),
    "chain": answer([record(SELF, 5, 30, name("b.test")), record(name("b.test"), 5, 9, b"\x01c\xc0\x0f"),
                     record(name("c.test"), 1, 5, bytes([1, 2, 3, 4]))]),
    "loop": answer([record(SELF, 5, 30, name("b.test")), record(name("b.test"), 5, 9, SELF)]),
    "off-chain": answer([record(name("evil.test"), 1, 60, bytes([10, 0, 0, 1]))]),
    "nxdomain": answer([record(name("test"), 6, 60, SOA)], 0x8183, 1),
    "servfail": answer([], 0x8182),
    "truncated": answer([], 0x8380),
    "https": answer([record(SELF, 65, 60, struct.pack("!H", 1) + b"\0" + struct.pack("!HH", 1, 3) + b"\x02h2")]),
    "negative-ttl": answer([record(SELF, 1, 0xffffffff, bytes([1, 1, 1, 1]))]),
    "rrsig": answer([record(SELF, 46, 60, struct.pack("!HBBIIIH", 1, 8, 2, 60, 1, 1, 1) + name("test") + b"sig")]),
    "txt-edns": question("ok.test", flags=0x8180, counts=(1, 1, 0, 1)) + record(SELF, 16, 60, b"\x03abc") + opt(),
})
PLAIN = {"address": "9.9.9.53:53", "tls": None}
TLS = {"address": "[2620:fe::fe]:853", "tls": "dns.example"}
LEARNED = {"op": "learned", "id": 7, "name": "ok.test", "addresses": ["93.184.215.20", "2606:4700::20"], "ttl_s": 60, "stale": False}
write("worker_frame", {
    "serving": frame({"op": "serving"}),
    "learned": frame(LEARNED),
    "special": frame({**LEARNED, "name": "private.test", "addresses": ["10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1"]}),
    "denied-name": frame({**LEARNED, "name": "no.wild.test", "ttl_s": 4294967295}),
    "primed": frame({"op": "primed", "generation": 1}),
    "failed": frame({"op": "failed", "name": "ok.test", "cause": "no upstream DNS server answered in time"}),
    "denied": frame({"op": "denied", "what": "evil.test", "reason": "not in the allowlist", "uid": 1000, "inode": 4026, "count": 3, "id": 9}),
    "health": frame({"op": "health", "queries": 3, "allowed": 2, "denied": 1, "upstreams": [{"server": PLAIN, "healthy": True, "note": None},
                                                                                    {"server": TLS, "healthy": False, "note": "odd"}]}),
})
POLICY = {"generation": 2, "rules": ["ok.test", "*.wild.test:22,443 private"]}
write("setup_frame", {
    "setup": frame({"op": "setup", "sockets": ["udp", "tcp"], "upstreams": [PLAIN, TLS], "roots": None, "policy": POLICY,
                    "refresh_s": 300, "ipv4": True, "ipv6": True, "known": [{"name": "ok.test", "addresses": ["93.184.215.20"], "ended_s": 5}]}),
    "policy": frame({"op": "policy", **POLICY}),
    "admitted": frame({"op": "admitted", "id": 7, "addresses": ["93.184.215.20"]}),
    "forget": frame({"op": "forget", "names": ["ok.test"]}),
    "attributed": frame({"op": "attributed", "id": 9}),
})
write("control_request", {
    "status": '{"op":"status"}',
    "check": '{"op":"check","what":"https://ok.test/"}',
    "allow": '{"op":"allow","rules":["ok.test:443,22","!evil.test"],"for_s":60}',
    "revoke": '{"op":"revoke","rules":["ok.test"]}',
    "log": '{"op":"log","after":0,"denied":true}',
    "credential": '{"op":"credential","host":"github.com"}',
    "seat": '{"op":"seat","place":"session","read_only":true}',
    "hook": '{"op":"hook","turn":"ended","text":"All done."}',
    "padded": '{"op":"reload","as":"root"}',
    "pane-started": '{"news":"started","pid":40}',
    "pane-exited": '{"news":"exited","code":null,"signal":9}',
    "deep": "[" * 200,
})
write("policy_text", {
    "file": "\ufeff# names\r\napi.anthropic.com\r\ngithub.com:443,22 required\n*.githubusercontent.com # any depth\n",
    "options": "git.corp.example:7999 private by=broker telemetry\n!evil.test; ok.test.;OK.test:22,22\n",
    "refused": "*\n*.*.test\nhttp://a.test/\n10.0.0.1\n0x7f.1\n[::1]:443\na..b\nb\u00fccher.example\nok.test:0\nok.test:99999 no\n!a.test:22\n",
    "limits": "a" * 63 + ".test\n" + "b" * 64 + ".test\n-a.test\n_dns.a-.test\nxn--bcher-kva.example\n*.a.test\n",
})
write("live_policy", {
    "session": "new.test:22\n-ok.test\nok.test\n-*.wild.test:22\n!a.wild.test\nother.example\nfar.example\n",
    "partly": "good.test,far.example\n-good.test\n-nothing.test,ok.test\nno.wild.test\n",
})
write("resolv_conf", {
    "docker": "nameserver 127.0.0.11\nsearch corp\noptions edns0 ndots:0\n# ExtServers: [8.8.8.8 host(127.0.0.53) 2001:db8::1]\n",
    "kubernetes": "search ns.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
    "five": "".join(f"nameserver 192.0.2.{n}\n" for n in range(5)),
    "six": "nameserver\t2001:db8::53\n nameserver fe80::1%eth0\nnameserver junk\n",
    "ours": "# Written by innkeeper: the box's allowlisting DNS server.\nnameserver 127.0.0.53\n# innkeeper-upstream 127.0.0.11\n# innkeeper-engine [8.8.8.8]\n",
    "none": "",
})
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "  {}: {} {} {} 00000000:00000000 00:00000000 00000000  {}        0 {} 2 0 0\n"
write("socket_table", {
    "udp": HEAD + ROW.format(10, "00000000:A1B2", "00000000:0000", "07", 1001, 111)
    + ROW.format(11, "0100007F:A1B2", "3500007F:0035", "01", 1000, 222),
    "udp6": HEAD + ROW.format(1, "0000000000000000FFFF00000100007F:0400", "0:0", "01", 7, 333)
    + ROW.format(2, "00000000000000000000000001000000:0400", "0:0", "01", 8, 444),
    "odd": HEAD + "1: zz:0400\n1: 01:0400 0 0 0 0 0 1 0 1\n1: \u00e9:0400 0 0 0 0 0 1 0 1\n",
})
write("terminal", {
    "colours": b"\x1b[1;31mred\x1b[0m \x1b[38;2;1;2;3mx\x1b(B\x1b7\x1b8 \xe2\x94\x80\r\n",
    "modes": b"\x1b[?1049h\x1b[?25l\x1b[2J\x1b[H\x1b[>4;1m\x1b[?2026h\x1b[2 q",
    "link": b"\x1b]8;;https://ok.test/\x1b\\text\x1b]8;;\x07",
    "clipboard": b"a\x1b]52;c;ZXZpbA==\x07b\x1b]0;title\x1b\\c",
    "asks": b"\x1b[c\x1b[6n\x1b[>q\x1b[18t\x1bZ\x05\x1b[?u\x1b]11;?\x07",
    "strings": b"\x1bPq#0\x1b\\\x1bktitle\x1b\\\x1b_Gi=1\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\end",
    "c1": b"\xc2\x9b6n\xc2\x9d52;c;eA==\xc2\x9c\xc2\xa0\xc2\xc2\x9b",
    # Found by the fuzzer: octets that were dropped made a C1 control of those around them.
    "c1-left-over": b"a\xc2\xc2\x9b\x9b6nb",
    "c1-after-intermediate": b"\x1b(\xc2\x9b6n",
    "c1-in-link": b"\x1b]8;;\xc2\x9c\xc2\x9b6n\x1b\\",
    "tmux-frame": b"\x1b[?1049h\x1b[22;0;0t\x1b[?1h\x1b=\x1b[H\x1b[2J\x1b[?12l\x1b[?25h\x1b[?1000l\x1b[?1006h\x1b[>4;2m\x1b[?2026h"
                  b"\x1b[38;2;215;119;87mA\x1b[39m\xe2\x94\x80\x1b(0qqq\x1b(B\x1b[4:3m\x1b[1;24r\x1b[2 q\x1b[?2026l",
    "clipboards": b"a\x1b]52;c;ZXZpbA==\x07b\x1b]52;c;?\x1b\\c\x1b]52;pc0;QUJD\x1b\\d",
    "no-utf-8": b"\xe4\xb8\x9c\xc2\x9b6n\x9b6n\xc0\x9b6n\xe0\x82\x9b6n\xed\xa0\x80\xf4\x90\x80\x80\x1b%@\xc4\x9b6n",
    "questions": b"\x1b[c\x1b[?1$p\x1b[1$w\x1bP+q544e\x1b\\\x1b[?996n\x1b]10;red;?\x07\x1b[>q\x1b[?u\x1b[>0n\x1b[1;1;1;1;1;1*y"
                 b"\x1b[?2031h\x1b[?2048;25h",
    "broken-off": b"\x1b[1;\x18x\x1b]8;;\x1ay\x1b\x1b[31\x1b[mz",
})
FLOW = {"target": {"address": "192.0.2.1", "protocol": 17, "port": 443, "icmp": None}, "uid": 1000, "inode": 4026, "first": 1,
        "last": 2, "count": 3, "packets": 4}
write("watch_frame", {
    "serving": frame({"op": "serving"}),
    "refused": frame({"op": "refused", **FLOW}),
    "used": frame({"op": "used", **FLOW, "target": {"address": "2001:db8::1", "protocol": 6, "port": 22, "icmp": None}}),
    "unknown": frame({"op": "refused", **FLOW, "target": None, "uid": None, "inode": None}),
    "echo": frame({"op": "refused", **FLOW, "target": {"address": "::ffff:10.0.0.1", "protocol": 58, "port": None, "icmp": 128}}),
    "lost": frame({"op": "lost", "refused": 5, "used": 0}),
})


def ip4(protocol, payload, offset=0, options=b""):
    words = 5 + len(options) // 4
    return struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(payload), 1, offset, 64, protocol, 0,
                       bytes([172, 31, 77, 2]), bytes([192, 0, 2, 1])) + options + payload


def ip6(protocol, payload):
    return struct.pack("!IHBB16s16s", 0x60000000, len(payload), protocol, 64, bytes(15) + b"\1", bytes(15) + b"\2") + payload


def attribute(kind, value):
    raw = struct.pack("=HH", 4 + len(value), kind) + value
    return raw + bytes(-len(raw) % 4)


def logged(packet, uid=1000, number=7):
    body = struct.pack("=BBH", 2, 0, 0) + attribute(1, struct.pack("!HBx", 0x800, 3)) + attribute(10, b"refused\0") + \
        attribute(9, packet) + attribute(11, struct.pack("!I", uid)) + attribute(12, struct.pack("!I", number))
    return struct.pack("=IHHII", 16 + len(body), 4 << 8, 0, 0, 0) + body


UDP = struct.pack("!HHHH", 40000, 443, 8, 0)
TCP = struct.pack("!HHIIBBHHH", 40000, 22, 1, 0, 0x50, 2, 65535, 0, 0)
write("logged_packet", {
    "udp": logged(ip4(17, UDP)),
    "two": logged(ip4(6, TCP)) + logged(ip6(17, UDP), number=8),
    "plain4": ip4(1, struct.pack("!BBHHH", 8, 0, 0, 77, 1)),
    "options": ip4(6, TCP, options=b"\x83\x07\x04\x0a\x00\x00\x01\x00"),
    "fragment": ip4(17, UDP, offset=3),
    "plain6": ip6(0, b"\x3a\0\x05\x02\0\0\0\0" + struct.pack("!BBHHH", 128, 0, 0, 77, 1)),
    "fragment6": ip6(44, b"\x11\0\0\x08\0\0\0\1" + UDP),
    "extensions": ip6(60, b"\x3c\0\1\4\0\0\0\0" * 9 + UDP),
})


def nested(kind, value):
    return attribute(kind | 0x8000, value)


def answer_of_kernel(kind, body, flags=2):
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def element(key, left):
    return nested(1, nested(1, attribute(1, key)) + attribute(4, struct.pack("!Q", 60_000)) + attribute(5, struct.pack("!Q", left)))


NFGEN = struct.pack("=BBH", 1, 0, 0)
TABLE = attribute(1, b"innkeeper\0")
ELEMENTS = NFGEN + TABLE + attribute(2, b"open4\0") + nested(3, element(bytes([93, 184, 215, 20, 1, 187, 0, 0]), 5000)
                                                             + element(bytes([93, 184, 215, 21, 0, 22, 0, 0]), 1))
write("kernel_answer", {
    "elements": answer_of_kernel(0x0A0C, ELEMENTS),
    "elements6": answer_of_kernel(0x0A0C, NFGEN + TABLE + nested(3, element(bytes(16) + b"\1\xbb\0\0", 7))),
    "done": answer_of_kernel(0x0A0C, ELEMENTS) + answer_of_kernel(3, struct.pack("=i", 0)),
    "refused": answer_of_kernel(2, struct.pack("=i", -2) + struct.pack("=IHHII", 20, 0x0A0E, 1, 2, 0)),
    "counter": answer_of_kernel(0x0A12, NFGEN + TABLE + attribute(2, b"denied4\0")
                                + nested(4, attribute(1, struct.pack("!Q", 9)) + attribute(2, struct.pack("!Q", 3)))),
})


def short(data):
    return bytes([len(data)]) + data


def long(data):
    return struct.pack("!H", len(data)) + data


def extension(kind, data):
    return struct.pack("!H", kind) + long(data)


def names(*all):
    return extension(0, long(b"".join(b"\0" + long(one) for one in all)))


def hello(*extensions, session=bytes(32), ciphers=b"\x1a\x1a\x13\x01", size=1 << 14, version=0x0303):
    body = struct.pack("!H", version) + bytes(32) + short(session) + long(ciphers) + short(b"\0") + long(b"".join(extensions))
    handshake = b"\1" + struct.pack("!I", len(body))[1:] + body
    parts = [handshake[at:at + size] for at in range(0, len(handshake), size)]
    return b"".join(b"\x16\3\1" + long(part) for part in parts)


# What a server of TLS 1.3 wants to see beside the name.
MODERN = (extension(43, short(b"\x3a\x3a\3\4")), extension(10, long(b"\0\x1d")), extension(13, long(b"\4\3")),
          extension(51, long(b"\0\x1d" + long(bytes(32)))), extension(45, short(b"\1")))
OUTER = b"\0" + struct.pack("!HHB", 1, 1, 9) + long(bytes(32)) + long(bytes(40))
write("client_hello", {
    "modern": hello(extension(0x2a2a, b""), names(b"ok.test"), *MODERN, extension(16, long(short(b"h2")))),
    "old": hello(names(b"Ok.Test"), session=b"", ciphers=b"\xc0\x2f\0\xff", version=0x0301),
    "parted": hello(names(b"ok.test"), *MODERN, size=40),
    "octets": hello(names(b"ok.test"), *MODERN, session=b"", size=1),
    "nameless": hello(*MODERN),
    "two-names": hello(names(b"ok.test", b"evil.test"), *MODERN),
    "two-extensions": hello(names(b"ok.test"), names(b"evil.test")),
    "address": hello(names(b"192.0.2.1")),
    "final-dot": hello(names(b"ok.test."), *MODERN),
    "nul": hello(names(b"ok.test\0.evil.test")),
    "encrypted": hello(names(b"public.test"), extension(0xfe0d, OUTER), *MODERN),
    "esni": hello(extension(0xffce, bytes(9)), names(b"ok.test")),
    "early-data": hello(names(b"ok.test"), *MODERN, extension(42, b""), extension(41, bytes(9))) + b"\x17\3\3" + long(b"early"),
    "second-record": hello(names(b"ok.test"), *MODERN) + b"\x14\3\3\0\1\1",
    "ssl2": b"\x80\x2e\1\3\1\0\x15\0\0\0\x10",
    "http": b"GET / HTTP/1.1\r\n",
})
write("http_request", {
    "get": "GET /a?b HTTP/1.1\r\nHost: ok.test\r\nUser-Agent: x\r\nAccept: application/json;q=0.5, */*\r\n\r\nGET / HTTP/1.1\r\n",
    "post": "POST / HTTP/1.1\r\nHost: ok.test:8080\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhelloGET",
    "chunked": "POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\nGET",
    "absolute": "GET http://ok.test:80/a HTTP/1.1\r\nHost: ok.test\r\n\r\n",
    "options": "OPTIONS * HTTP/1.1\r\nHost: ok.test\r\n\r\n",
    "websocket": "GET / HTTP/1.1\r\nHost: ok.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n\x01",
    "h2c": "GET / HTTP/1.1\r\nHost: ok.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
    "old": "GET / HTTP/1.0\r\nHost: ok.test\r\nConnection: keep-alive\r\n\r\n",
    "connect": "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "connected": "CONNECTED / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
    "preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "both": "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two-hosts": "GET / HTTP/1.1\r\nHost: ok.test\r\nHost: evil.test\r\n\r\n",
    "folded": "GET / HTTP/1.1\r\nX: a\r\n Host: evil.test\r\nHost: ok.test\r\n\r\n",
    "bare": "GET / HTTP/1.1\nHost: ok.test\n\n",
    "address": "GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
})
write("http_response", {
    "length": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhelloHTTP",
    "chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "close": "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello",
    "interim": "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    "switch": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x01",
    "odd": "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
})

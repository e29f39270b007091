"""The upstream DNS server, and the rogue ones: answers from DIR/zone.json, misbehaves as told, logs every query."""

import ipaddress
import json
import os
import socket
import struct
import threading
import time

import netlog

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "NULL": 10, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33,
         "OPT": 41, "SVCB": 64, "HTTPS": 65, "ANY": 255}
NAMES = {number: name for name, number in TYPES.items()}
IP_PKTINFO = 8
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP = 0, 1, 2, 3, 4
MAX_CHAIN = 16


def default_zone(config):
    """The zone that DIR/zone.json starts with: the names of addresses.json, and a resolver that lies for evil."""
    records = {}
    for name, hosts in config["names"].items():
        addresses = [config["hosts"][host] for host in hosts]
        records[name] = [["AAAA" if ":" in a else "A", a, 60] for a in addresses]
    records["*.evil.test"] = records["*.evil.test"] + [["TXT", "token-txt-evil.test", 60]]
    records["ok.test"] = records["ok.test"] + [["TXT", "token-txt-ok.test", 60], ["MX", "10 mx.evil.test", 60]]
    evil = config["hosts"]["evil"]
    servers = {evil: {"fallback": [["A", evil, 60], ["TXT", "token-rogue", 60]]}}
    return {"records": records, "servers": servers, "names": {}}


class Zone:
    """DIR/zone.json, read again whenever it changes. A file that doesn't parse leaves the last good one."""

    def __init__(self, path):
        self._path = path
        self._seen = None
        self._lock = threading.Lock()
        self._data = {"records": {}, "servers": {}, "names": {}}

    def read(self):
        with self._lock:
            try:
                stat = os.stat(self._path)
                seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if seen != self._seen:
                    with open(self._path, encoding="utf-8") as file:
                        data = json.load(file)
                    for table in ("records", "names"):
                        data[table] = {key.lower(): value for key, value in data.get(table, {}).items()}
                    self._data = data
                    self._seen = seen
            except (OSError, ValueError):
                pass
            return self._data


def lookup(table, name):
    """The entry of `name`: itself, else the closest wildcard above it (any depth, never the apex)."""
    lower = name.lower()
    if lower in table:
        return table[lower]
    labels = lower.split(".")
    for at in range(1, len(labels)):
        wildcard = "*." + ".".join(labels[at:])
        if wildcard in table:
            return table[wildcard]
    return None


def encode_name(name):
    out = b""
    for label in name.rstrip(".").split("."):
        raw = label.encode("utf-8", "surrogateescape")[:63]
        if raw:
            out += bytes([len(raw)]) + raw
    return out + b"\0"


def decode_name(data, at):
    """A question's name as written, without compression (a question can't need it)."""
    labels = []
    while data[at]:
        size = data[at]
        if size > 63:
            raise ValueError("compressed or extended label in a question")
        # A dot within a label is shown as what it is, or "ok.test" as one label would look like the name.
        labels.append(data[at + 1 : at + 1 + size].decode("utf-8", "backslashreplace").replace(".", "\\046"))
        at += 1 + size
    return ".".join(labels), at + 1


def rdata(kind, value):
    """The wire form of a record's value; kinds not known here take their bytes in hex."""
    if kind in ("A", "AAAA"):
        return ipaddress.ip_address(value).packed
    if kind in ("CNAME", "NS", "PTR"):
        return encode_name(value)
    if kind == "TXT":
        raw = value.encode()
        return b"".join(bytes([len(raw[i : i + 255])]) + raw[i : i + 255] for i in range(0, max(len(raw), 1), 255))
    if kind == "MX":
        preference, host = value.split()
        return struct.pack("!H", int(preference)) + encode_name(host)
    if kind == "SRV":
        priority, weight, port, host = value.split()
        return struct.pack("!HHH", int(priority), int(weight), int(port)) + encode_name(host)
    return bytes.fromhex(value)


def type_number(kind):
    return TYPES[kind] if kind in TYPES else int(kind.removeprefix("TYPE"))


class Query:
    """What of a query is needed to answer and to log it."""

    def __init__(self, data):
        self.id, self.flags, questions, answers, authorities, additional = struct.unpack("!6H", data[:12])
        self.opcode = self.flags >> 11 & 15
        self.counts = [questions, answers, authorities, additional]
        self.name, at = decode_name(data, 12)
        number, self.qclass = struct.unpack("!HH", data[at : at + 4])
        self.kind = NAMES.get(number, f"TYPE{number}")
        self.question = data[12 : at + 4]
        self.extra = data[at + 4 :]
        self.udp_size = 512
        self.edns = False
        if additional and self.extra[:3] == b"\0\0\x29" and len(self.extra) >= 11:
            self.edns = True
            self.udp_size = max(512, struct.unpack("!H", self.extra[3:5])[0])


class Server:
    """One server that plays all of them: who was asked is read from the packet's destination."""

    def __init__(self, log, zone):
        self._log = log
        self._zone = zone
        self._lock = threading.Lock()
        self._turns = {}
        self._dropped = {}

    def start(self):
        for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            udp = socket.socket(family, socket.SOCK_DGRAM)
            tcp = socket.socket(family, socket.SOCK_STREAM)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            if family == socket.AF_INET:
                udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            else:
                for each in (udp, tcp):
                    each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            udp.bind((any_address, 53))
            tcp.bind((any_address, 53))
            tcp.listen(256)
            threading.Thread(target=self._serve_udp, args=(udp, family), daemon=True).start()
            threading.Thread(target=self._serve_tcp, args=(tcp,), daemon=True).start()

    def _serve_udp(self, udp, family):
        while True:
            data, ancillary, _, peer = udp.recvmsg(65535, 256)
            server, reply = destination(ancillary, family)

            def send(answer, peer=peer, reply=reply):
                try:
                    udp.sendmsg([answer], reply, 0, peer)
                except OSError:
                    pass  # the client is gone; its silence is its own affair

            self._dispatch(data, server, peer, "udp", send)

    def _dispatch(self, data, server, peer, transport, send):
        """Answers at once, or on a thread of its own where the answer has to wait."""
        behaviour = self._behaviour(data, server)
        delay = behaviour.get("delay_ms", 0) / 1000
        if delay:
            timer = threading.Timer(delay, self._answer, (data, server, peer, transport, send, behaviour))
            timer.daemon = True
            timer.start()
        else:
            self._answer(data, server, peer, transport, send, behaviour)

    def _serve_tcp(self, listener):
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=self._connection, args=(connection, peer), daemon=True).start()

    def _connection(self, connection, peer):
        server = netlog.plain(connection.getsockname()[0])
        connection.settimeout(30)
        try:
            with connection, connection.makefile("rb") as stream:
                while True:
                    head = stream.read(2)
                    if len(head) < 2:
                        return
                    data = stream.read(struct.unpack("!H", head)[0])

                    def send(answer):
                        try:
                            connection.sendall(struct.pack("!H", len(answer)) + answer)
                        except OSError:
                            pass

                    behaviour = self._behaviour(data, server)
                    time.sleep(behaviour.get("delay_ms", 0) / 1000)
                    self._answer(data, server, peer, "tcp", send, behaviour)
        except OSError:
            pass

    def _behaviour(self, data, server):
        """How this server treats this name: the server's entry, overlaid with the name's."""
        zone = self._zone.read()
        servers = zone.get("servers", {})
        merged = dict(servers.get("*", {}))
        merged.update(servers.get(server, {}))
        try:
            merged.update(lookup(zone.get("names", {}), Query(data).name) or {})
        except (ValueError, IndexError, struct.error):
            pass
        return merged

    def _answer(self, data, server, peer, transport, send, behaviour):
        entry = {"server": server, "transport": transport, "peer": netlog.plain(peer[0]), "peer_port": peer[1],
                 "size": len(data)}
        try:
            query = Query(data)
        except (ValueError, IndexError, struct.error):
            self._log.write("dns", **entry, name=None, type=None, answer="formerr", raw=data[:512].hex())
            if len(data) >= 2:
                send(data[:2] + struct.pack("!HHHHH", 0x8000 | FORMERR, 0, 0, 0, 0))
            return
        entry.update(name=query.name, type=query.kind, opcode=query.opcode, counts=query.counts, edns=query.edns,
                     extra=query.extra[:256].hex(), rd=bool(query.flags & 0x100))
        if self._drops(query, behaviour, server):
            self._log.write("dns", **entry, answer="dropped")
            return
        rcode, records = self._resolve(query, server, behaviour)
        records = records + [tuple(record) for record in behaviour.get("stray", [])]
        wire, truncated = build(query, rcode, records, transport, behaviour)
        shown = {NOERROR: "noerror", SERVFAIL: "servfail", NXDOMAIN: "nxdomain", NOTIMP: "notimp"}.get(rcode, rcode)
        self._log.write("dns", **entry, answer=shown, truncated=truncated,
                        records=[[owner, kind, value] for owner, kind, value, _ in records])
        for each in mangle(wire, query, behaviour):
            send(each)

    def _drops(self, query, behaviour, server):
        drop = behaviour.get("drop", False)
        if isinstance(drop, bool):
            return drop
        key = (server, query.name.lower(), query.kind)
        with self._lock:
            count = self._dropped.get(key, 0)
            self._dropped[key] = count + 1
        return count < drop

    def _resolve(self, query, server, behaviour):
        if query.opcode != 0:
            return NOTIMP, []
        if behaviour.get("servfail"):
            return SERVFAIL, []
        if "rcode" in behaviour:
            return behaviour["rcode"], []
        table = self._zone.read().get("records", {})
        owner, records = query.name, []
        for _ in range(MAX_CHAIN):
            found = lookup(table, owner)
            if found is None:
                found = behaviour.get("fallback") if not records else []
            if found is None:
                return NXDOMAIN, records
            wanted = [(owner, *record) for record in found if query.kind in (record[0], "ANY")]
            alias = next((record for record in found if record[0] == "CNAME"), None)
            if wanted or alias is None:
                return NOERROR, records + self._rotate(query, server, wanted, behaviour)
            records.append((owner, *alias))
            owner = alias[1].rstrip(".")
        return NOERROR, records

    def _rotate(self, query, server, records, behaviour):
        """The next `rotate` of the records: an address set that no client ever sees whole."""
        width = behaviour.get("rotate")
        if not width or not records:
            return records
        with self._lock:
            key = (server, query.name.lower(), query.kind)
            start = self._turns.get(key, 0)
            self._turns[key] = start + width
        return [records[(start + i) % len(records)] for i in range(min(width, len(records)))]


def destination(ancillary, family):
    """(address asked, control message that makes the answer come from it)."""
    for _, _, data in ancillary:
        if family == socket.AF_INET:
            asked = data[8:12]
            reply = [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, asked, b"\0" * 4))]
        else:
            asked = data[:16]
            reply = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16sI", asked, 0))]
        return socket.inet_ntop(family, asked), reply
    return "", []


def build(query, rcode, records, transport, behaviour):
    """(wire form, whether it was truncated)"""
    body = b""
    for owner, kind, value, ttl in records:
        data = rdata(kind, value)
        body += encode_name(owner) + struct.pack("!HHIH", type_number(kind), 1, ttl, len(data)) + data
    options = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0) if query.edns else b""
    size = 12 + len(query.question) + len(body) + len(options)
    truncated = transport == "udp" and (bool(behaviour.get("truncate")) or size > query.udp_size)
    flags = 0x8480 | (query.flags & 0x0100) | rcode | (0x0200 if truncated else 0)
    count = 0 if truncated else len(records)
    head = struct.pack("!6H", query.id, flags, 1, count, 0, 1 if query.edns else 0)
    return head + query.question + (b"" if truncated else body) + options, truncated


def mangle(wire, query, behaviour):
    """The packets to send: mostly just `wire`, else what a broken or lying server would send."""
    how = behaviour.get("mangle")
    if how == "id":
        return [struct.pack("!H", query.id ^ 1) + wire[2:]]
    if how == "spoof":
        return [struct.pack("!H", query.id ^ 1) + wire[2:], wire]
    if how == "question":
        other = encode_name("other.test") + query.question[-4:]
        return [wire[:12] + other + wire[12 + len(query.question) :]]
    if how == "short":
        return [wire[: len(wire) // 2]]
    if how == "loop":
        # A name whose compression pointer points at itself.
        loop = struct.pack("!HHHIH", 0xC000 | (12 + len(query.question)), 1, 1, 60, 4) + b"\x01\x02\x03\x04"
        return [wire[:6] + b"\0\x01\0\0\0\0" + query.question + loop]
    if how == "twice":
        return [wire, wire]
    return [wire]

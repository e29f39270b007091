"""The packet sink: logs every IP packet that arrives on the interface. What leaked is read here.

Runs as a process of its own, so that a busy HTTP server can't make it miss a packet. A line on stdin comes back on
stdout once everything that arrived before it is in the log. Ends when its stdin closes.
"""

import json
import os
import select
import socket
import struct
import sys
import time

SOL_PACKET = 263
PACKET_STATISTICS = 6
SO_RCVBUFFORCE = 33
ETH_P_ALL = 3
PACKET_OUTGOING = 4
NAMES = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 58: "icmp6", 132: "sctp", 136: "udplite"}
# Router and neighbour discovery, MLD: the link's own housekeeping, which no firewall should stop.
HOUSEKEEPING = {130, 131, 132, 133, 134, 135, 136, 137, 143}
# IPv6 extension headers that only stand before the real one.
EXTENSIONS = {0, 43, 60}


def ipv4(packet):
    """(protocol, source, destination, payload) of an IPv4 packet."""
    header = (packet[0] & 15) * 4
    source, destination = (socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16))
    fragment = struct.unpack("!H", packet[6:8])[0] & 0x1FFF
    return packet[9], source, destination, packet[header:], fragment != 0


def ipv6(packet):
    """The same of an IPv6 packet, past its extension headers."""
    source, destination = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
    protocol, rest = packet[6], packet[40:]
    while protocol in EXTENSIONS and len(rest) >= 8:
        protocol, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    if protocol == 44 and len(rest) >= 8:
        return rest[0], source, destination, rest[8:], struct.unpack("!H", rest[2:4])[0] & 0xFFF8 != 0
    return protocol, source, destination, rest, False


def describe(packet):
    """The log line of one packet, or None where it is only housekeeping."""
    version = packet[0] >> 4
    protocol, source, destination, rest, later_fragment = ipv4(packet) if version == 4 else ipv6(packet)
    if protocol == 58 and rest and rest[0] in HOUSEKEEPING:
        return None
    if protocol == 2 or (protocol == 0 and version == 6):
        return None
    line = {"t": round(time.time(), 6), "proto": NAMES.get(protocol, str(protocol)), "src": source, "dst": destination}
    payload = rest
    if protocol in (6, 17, 33, 132, 136) and len(rest) >= 8 and not later_fragment:
        line["sport"], line["dport"] = struct.unpack("!HH", rest[:4])
        payload = rest[8:]
        if protocol == 6 and len(rest) >= 20:
            line["flags"] = "".join(name for bit, name in enumerate("FSRPAU") if rest[13] >> bit & 1)
            payload = rest[(rest[12] >> 4) * 4 :]
    elif protocol in (1, 58) and len(rest) >= 8:
        line["type"], line["code"] = rest[0], rest[1]
        payload = rest[8:]
    if later_fragment:
        line["fragment"] = True
    line["length"] = len(payload)
    line["payload"] = payload[:64].hex()
    return line


def drain(sniffer, log):
    """Logs what has arrived by now."""
    while True:
        try:
            packet, origin = sniffer.recvfrom(70000, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if origin[2] != PACKET_OUTGOING and origin[1] in (0x0800, 0x86DD) and len(packet) >= 20:
            line = describe(packet)
            if line is not None:
                log.write(json.dumps(line) + "\n")


def main():
    iface, path = sys.argv[1:3]
    # The network namespace is private, so "everything on one interface" is exactly what the box sent.
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    try:
        sniffer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    except OSError:
        pass
    sniffer.bind((iface, ETH_P_ALL))
    with open(path, "a", encoding="utf-8", buffering=1) as log:
        print("sniffing", flush=True)
        while True:
            ready, _, _ = select.select([sniffer, 0], [], [])
            drain(sniffer, log)
            if 0 in ready:
                mark = os.read(0, 4096)
                if not mark:
                    break
                drain(sniffer, log)
                os.write(1, mark)
        _, dropped = struct.unpack("II", sniffer.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if dropped:
            log.write(json.dumps({"t": time.time(), "proto": "lost", "count": dropped}) + "\n")


if __name__ == "__main__":
    main()

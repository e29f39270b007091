"""Runs in a box's network namespace, from outside the box.

    prober.py egress          sends UDP packets until the kernel refuses one; prints when (CLOCK_MONOTONIC and
                              CLOCK_REALTIME in nanoseconds) the last one passed and the first one was refused
    prober.py round SERVER    asks for A and AAAA of all names at once; prints the milliseconds until the last answer
"""

import os
import socket
import struct
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def egress():
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # 198.18.0.0/15 is for benches (RFC 2544) and leads to an interface that swallows everything.
    target = ("198.18.0.1", 9)
    out.sendto(b"x", target)
    print("open", flush=True)
    passed = (time.monotonic_ns(), time.time_ns())
    while True:
        before = (time.monotonic_ns(), time.time_ns())
        try:
            out.sendto(b"x", target)
        except OSError:
            print(*passed, *before, flush=True)
            return
        passed = before
        time.sleep(0.0001)


def ask(number, name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", number, 0x100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def parallel(server):
    with open(os.path.join(HERE, "names"), encoding="utf-8") as file:
        questions = [(name, kind) for name in file.read().split() for kind in (1, 28)]
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.settimeout(5)
    out.connect((server, 53))
    started = time.monotonic()
    for number, (name, kind) in enumerate(questions):
        out.send(ask(number, name, kind))
    missing = set(range(len(questions)))
    while missing:
        missing.discard(struct.unpack("!H", out.recv(4096)[:2])[0])
    print((time.monotonic() - started) * 1e3)


if __name__ == "__main__":
    egress() if sys.argv[1] == "egress" else parallel(sys.argv[2])

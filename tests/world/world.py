#!/usr/bin/env python3
"""The tests' fake internet. Run it inside a network namespace that has no uplink; see README.md beside it.

Prints `ready` when everything listens, and ends when its standard input closes. A line on standard input comes back on
standard output once every packet that arrived before it is in packets.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys

sys.dont_write_bytecode = True  # the source tree may be read-only, and stays clean

import forge
import link
import messages
import nameserver
import netlog
import registries
import sockets
import tls
import web

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", required=True, help="where the zone, the script, the CA and the logs are")
    parser.add_argument("--iface", help="interface that leads to the box (default: the one of addresses.json)")
    parser.add_argument("--addresses", default=os.path.join(HERE, "addresses.json"))
    parser.add_argument("--only-listed", action="store_true", help="answer the listed addresses only, not every one")
    return parser.parse_args()


def write_zone(path, config):
    if not os.path.exists(path):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(nameserver.default_zone(config), file, indent=1)


def start_packets(iface, path):
    """The packet sink; its stdin is a pipe that closes with us, whatever ends us."""
    sink = subprocess.Popen([sys.executable, os.path.join(HERE, "packets.py"), iface, path],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if sink.stdout.readline() != b"sniffing\n":
        raise link.LinkError("the packet sink did not start")
    return sink


def main():
    options = arguments()
    with open(options.addresses, encoding="utf-8") as file:
        config = json.load(file)
    iface = options.iface or config["interface"]
    os.makedirs(options.dir, exist_ok=True)

    def at(name):
        return os.path.join(options.dir, name)

    try:
        link.set_up(config, iface, not options.only_listed)
        sink = start_packets(iface, at("packets.jsonl"))
    except link.LinkError as error:
        sys.exit(f"world: {error}")
    write_zone(at("zone.json"), config)
    log = netlog.NetLog(at("net.log"))
    github = forge.Forge(options.dir, log)
    hosts = {"github.com": github.github, "api.github.com": github.api,
             "api.anthropic.com": messages.Messages(options.dir, log).answer, **registries.Registries(log).hosts()}
    site = web.Site(config, log, hosts, [(forge.Forge.is_git, github.anywhere)])
    nameserver.Server(log, nameserver.Zone(at("zone.json"))).start()
    sockets.Doors(config, log, tls.Authority(options.dir), site).start()
    print("ready", flush=True)
    for line in iter(sys.stdin.buffer.readline, b""):
        sink.stdin.write(line)
        sink.stdin.flush()
        sys.stdout.buffer.write(sink.stdout.readline())
        sys.stdout.buffer.flush()
    sink.stdin.close()
    sink.wait()
    # Threads that serve somebody still are daemons; nothing they do is worth waiting for.
    os._exit(0)


if __name__ == "__main__":
    main()

"""The world's side of the link: addresses, routes and the promise that no packet goes further."""

import ipaddress
import json
import subprocess


class LinkError(Exception):
    pass


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LinkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def refuse_uplink(iface):
    """The world pretends to be other people's addresses: it must never do so beside a way out."""
    links = {link["ifname"] for link in json.loads(run("ip", "-j", "link"))}
    if iface not in links:
        raise LinkError(f"no interface {iface} in this network namespace")
    for family in ("-4", "-6"):
        if run("ip", family, "route", "show", "default").strip():
            raise LinkError("this network namespace has a default route; the world wants one without uplink")


def sysctl(key, value):
    try:
        with open("/proc/sys/" + key, "w", encoding="ascii") as file:
            file.write(value)
    except OSError:
        pass  # a key that this kernel lacks; what matters shows in the tests


def set_up(config, iface, any_address):
    """Adds the gateway and host addresses; with `any_address` every other address is answered too (AnyIP)."""
    link = config["link"]
    refuse_uplink(iface)
    for key in ("all", "default", iface):
        sysctl(f"net/ipv4/conf/{key}/rp_filter", "0")
        sysctl(f"net/ipv6/conf/{key}/accept_dad", "0")
        sysctl(f"net/ipv6/conf/{key}/disable_ipv6", "0")
    # World servers answer floods of probes; a limit on ICMP would make refusals look like drops.
    sysctl("net/ipv4/icmp_ratelimit", "0")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "set", iface, "up")
    run("ip", "addr", "replace", f"{link['world_v4']}/{link['prefix_v4']}", "dev", iface)
    run("ip", "addr", "replace", f"{link['world_v6']}/{link['prefix_v6']}", "dev", iface, "nodad")
    dead = set(config["blackholes"])
    for name, address in config["hosts"].items():
        if name in dead:
            family = "-6" if ":" in address else "-4"
            run("ip", family, "route", "replace", "blackhole", address, "table", "local")
        elif ":" in address:
            run("ip", "addr", "replace", f"{address}/128", "dev", iface, "nodad")
        else:
            run("ip", "addr", "replace", f"{address}/32", "dev", iface)
    if any_address:
        answer_any(link, iface)


def answer_any(link, iface):
    """AnyIP: a default route of type local. The link itself needs a more specific route in the same table."""
    box_v4 = ipaddress.ip_interface(f"{link['box_v4']}/{link['prefix_v4']}").network.with_prefixlen
    box_v6 = ipaddress.ip_interface(f"{link['box_v6']}/{link['prefix_v6']}").network.with_prefixlen
    run("ip", "-4", "route", "replace", box_v4, "dev", iface, "table", "local")
    run("ip", "-6", "route", "replace", box_v6, "dev", iface, "table", "local")
    run("ip", "-6", "route", "replace", "fe80::/64", "dev", iface, "table", "local")
    run("ip", "-4", "route", "replace", "local", "default", "dev", "lo", "table", "local")
    run("ip", "-6", "route", "replace", "local", "default", "dev", "lo", "table", "local")

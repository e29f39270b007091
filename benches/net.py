"""`bench net`: the resolver and the firewall beside dnsmasq, unbound, bare nft sets and the five-minute refresh."""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time

import ground
import rig
from ground import NAMES, Ground, median, table
from rig import BenchError, run

PARTS = ("dns", "admission", "connect", "refresh", "packet", "memory")
ROUNDS = 3
# So many questions in flight: enough to keep a core busy, few enough for every socket buffer.
WINDOW = 100
FAR_WINDOW = 1000
PACED = 10_000


def rate(result):
    return result["good"] / result["seconds"]


def oddities(results):
    wrong, lost = sum(each["wrong"] for each in results), sum(each["lost"] for each in results)
    return f"{wrong:,} wrong, {lost:,} lost" if wrong or lost else ""


def spread(values, scale=1.0, digits=1):
    """median (least–most)"""
    values = sorted(value / scale for value in values)
    return f"{median(values):,.{digits}f} ({values[0]:,.{digits}f}–{values[-1]:,.{digits}f})"


def dns(world):
    """Questions a second, one thread each, on a core that nobody else of the bench uses."""
    kinds = [("cached", "cached"), ("denied", "denied"), ("fresh", "uncached, upstream 0 ms away")]
    results = {}
    with Ground(world, world.NEAR, boxed=True, peers=("echo", "dnsmasq", "unbound")) as place:
        floor = [place.flood("echo", "cached", WINDOW, 1) for _ in range(ROUNDS)]
        for kind, label in kinds:
            results[label] = compete(place, kind, WINDOW, 1)
        paced = {}
        for kind in ("cached", "denied"):
            paced[kind] = compete(place, kind, WINDOW * 10, 1, PACED)
    with Ground(world, world.FAR, boxed=True, peers=("dnsmasq", "unbound")) as place:
        results["uncached, upstream 20 ms away"] = compete(place, "fresh", FAR_WINDOW, 1)

    print(f"\n**Questions a second** (thousands), {WINDOW} in flight ({FAR_WINDOW} where the upstream is far), one core;"
          f" the generator's own\nlimit, against an echo: {spread([rate(r) for r in floor], 1e3)}. *CPU*: microseconds of"
          " processor time a question,\nInnkeeper's with PID 1's.\n")
    servers = ("innkeeper", "dnsmasq", "unbound")
    rows = [["", *servers, "/ dnsmasq", "/ unbound", *(f"CPU {name}" for name in servers), "CPU: dnsmasq / it",
             "CPU: unbound / it", ""]]
    for label, found in results.items():
        rates = {name: median([rate(each) for each in found[name]]) for name in servers}
        cpu = {name: median([each["cpu_us"] for each in found[name]]) for name in servers}
        odd = "; ".join(f"{name}: {oddities(found[name])}" for name in servers if oddities(found[name]))
        rows.append([label, *(spread([rate(r) for r in found[name]], 1e3) for name in servers),
                     *(f"{rates['innkeeper'] / rates[name]:.2f} ×" for name in servers[1:]),
                     *(f"{cpu[name]:.1f}" for name in servers),
                     *(f"{cpu[name] / cpu['innkeeper']:.2f} ×" for name in servers[1:]), odd])
    table(rows)
    print(f"\n**Latency at {PACED:,} questions a second**, microseconds p50 / p99, from when each was due.\n")
    rows = [["", *servers, ""]]
    for kind, found in paced.items():
        odd = "; ".join(f"{name}: {oddities(found[name])}" for name in servers if oddities(found[name]))
        rows.append([kind, *(f"{median([r['p50_us'] for r in found[n]]):,.0f} / "
                             f"{median([r['p99_us'] for r in found[n]]):,.0f}" for n in servers), odd])
    table(rows)


def compete(place, kind, window, seconds, pace=0):
    """Every server in turns, so that a busy moment of the machine hits all of them."""
    found = {name: [] for name in ("innkeeper", "dnsmasq", "unbound")}
    for _ in range(ROUNDS):
        for name, results in found.items():
            results.append(place.flood(name, kind, window, seconds, pace))
    return found


def admission(world):
    """One question at a time, each for a name and an address that nobody has seen."""
    servers = ("innkeeper", "dnsmasq", "dnsmasq --ipset", "dnsmasq --nftset")
    first = {name: [] for name in servers}
    none = {name: [] for name in servers}
    with Ground(world, world.NEAR, boxed=True, peers=servers[1:]) as place:
        for _ in range(ROUNDS):
            for name in servers:
                none[name].append(place.flood(name, "none:1500", 1, 5))
                first[name].append(place.flood(name, "own:1500", 1, 5))
    print("\n**A first answer**, one question in flight, upstream 0 ms away, microseconds (p50, medians of"
          f" {ROUNDS} rounds of 1,500).\n*Without an address*: a name that has none, so that nothing is admitted.\n")
    rows = [["", "with a new address", "p99", "without an address", "difference", "CPU with", "CPU without", ""]]
    for name in servers:
        with_p50, without = (median([r["p50_us"] for r in found[name]]) for found in (first, none))
        rows.append([name, f"{with_p50:.1f}", f"{median([r['p99_us'] for r in first[name]]):.1f}", f"{without:.1f}",
                     f"{with_p50 - without:+.1f}", f"{median([r['cpu_us'] for r in first[name]]):.1f}",
                     f"{median([r['cpu_us'] for r in none[name]]):.1f}", oddities(first[name] + none[name])])
    table(rows)
    base = median([r["p50_us"] for r in first["dnsmasq"]])
    print("\nOver plain dnsmasq's first answer: " + ", ".join(
        f"{name} {median([r['p50_us'] for r in first[name]]) - base:+.1f}" for name in servers if name != "dnsmasq"))
    alone()


def alone():
    """`admit` in the process that owns the firewall, where cargo can build it."""
    manifest = os.path.join(rig.HERE, "admit", "Cargo.toml")
    build = ["cargo", "build", "--quiet", "--release", "--manifest-path", manifest]
    try:
        subprocess.run(build, check=True, capture_output=True, text=True, timeout=900)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        print(f"\n`admit` alone: left out, it could not be built ({said[-1] if said else error}).")
        return
    found = json.loads(run(os.path.join(rig.HERE, "admit", "target", "release", "admit")))
    print("\n**`admit` alone**, from the order to the kernel's acknowledgement, through the firewall's thread, microseconds.\n")
    rows = [["", "p50", "p99"]]
    for key, label in (("new", "10,000 new addresses, one after the other"), ("again", "the same again"),
                       ("spaced", "500 new ones, 2 ms apart")):
        rows.append([label, f"{found[key]['p50']:.1f}", f"{found[key]['p99']:.1f}"])
    table(rows)


def connect(world):
    count = 10_000
    with Ground(world, world.NEAR, boxed=True) as place:
        world.counters()
        fresh = place.connect("innkeeper", "connect", count)
        seen = world.counters()
    if place.reachable["reached"] != place.reachable["asked"]:
        raise BenchError(f"the denied addresses did not answer before the box closed: {place.reachable}")
    with Ground(world, world.NEAR, boxed=True, peers=("dnsmasq",), rotating=NAMES) as place:
        place.start_scheme()
        ours, theirs = place.rotate(21)
    print(f"\n**Resolve, then connect at once**, port {ground.PORT} (not gated), 4 clients. Each of {count:,} fresh names has 64"
          " addresses, of which\nthe upstream tells the next 4 at every question; success is the server's token read back."
          f" Between them {count:,} denied\nnames, whose addresses are connected to all the same. Before the box booted"
          f" {place_note(place)} of those answered.\n")
    table([["", "of", "right", "failed", "not resolved", "connections that the server saw"],
           ["allowed", f"{count:,}", f"{fresh['reached']:,}", str(fresh["failed"]), str(fresh["unresolved"]),
            f"{seen['connections'] - seen['evil']:,}"],
           ["denied: refused", f"{count:,}", f"{fresh['refused']:,}", str(fresh["not_refused"]), "",
            f"{seen['evil']:,}"]])
    print(f"\nA refusal takes {fresh['refusal_us']} µs (median); the whole {fresh['seconds']:.1f} s.")
    causes(fresh)
    print(f"\n**Beside a list that is refreshed every five minutes**, {NAMES} names with 64 addresses each, 4 at a time, drawn anew"
          " every 30 s\n(TTL 30): time runs 30 times as fast, so TTL 1 s and a refresh every 10 s. The scheme is dnsmasq, one"
          " dig after the\nother and a plain nft set (`benches/net/scheme.sh`); its loop takes as long as it does without"
          " compression of time.\n")
    rows = [["", "connects", "right", "failed", "not resolved", "failed, %"]]
    for name, found in (("Innkeeper", ours), ("refresh scheme", theirs)):
        total = found["reached"] + found["failed"] + found["unresolved"]
        rows.append([name, f"{total:,}", f"{found['reached']:,}", f"{found['failed']:,}", f"{found['unresolved']:,}",
                     f"{100 * (total - found['reached']) / max(total, 1):.1f}"])
    table(rows)
    causes(ours)


def place_note(place):
    return f"all {place.reachable['asked']:,} that were tried"


def causes(found):
    for cause in found["causes"]:
        print(f"  {cause}")


def refresh(world):
    rows = [["names", "Innkeeper, step `firewall`", "the upstream's first to last question", "questions", "serial dig",
             "ratio"]]
    dug = {}
    for count in (22, 200, 2000):
        steps, spans, asked = [], [], 0
        for number in range(3 if count < 2000 else 1):
            with Ground(world, world.FAR, boxed=True, exact=count, peers=("dnsmasq",) if not number else ()) as place:
                steps.append(place.step("firewall"))
                spans.append(place.seen["span_ms"])
                asked = place.seen["questions"]
                if not number:
                    dug[count] = place.dig(count) if count <= 200 else dug[200] * count / 200
        label = f"{dug[count]:,.0f}" + (" (10 × that of 200)" if count > 200 else "")
        rows.append([f"{count:,}", spread(steps), spread(spans), f"{asked:,}", label,
                     f"{dug[count] / median(steps):.0f} ×"])
    print("\n**The whole allowlist resolved and opened**, upstream 20 ms away, milliseconds. Measured at a boot, when no name"
          " is\nknown: the step `firewall` holds the worker's start, the rule set, A and AAAA of every name and the opening."
          " `dig`\nasks for A alone.\n")
    table(rows)


def packet(world):
    counts, sets = (10, 1000, 10_000), ("no table", "bare nft set", "bare nft set, conntrack")
    syns, established = {}, {}
    for count in counts:
        with Ground(world, world.NEAR, boxed=True) as place, place.bare() as bare:
            opened = place.flood("innkeeper", f"own:{count}", 20, 20)
            if opened["good"] < count:
                raise BenchError(f"only {opened['good']} of {count} were opened: {opened}")
            for _ in range(ROUNDS):
                for rules in (*sets, "Innkeeper"):
                    syn, later = place.packets(count) if rules == "Innkeeper" else bare.packets(rules, count)
                    syns.setdefault((rules, count), []).append(syn)
                    established.setdefault((rules, count), []).append(later)
    print("\n**A packet through OUTPUT**, nanoseconds (medians of thousands, over"
          f" {ROUNDS} rounds). *SYN*: from a raw socket to each open address in\nturn, into a device that drops them; each"
          " connection is known to the kernel from a first round that is not counted, and\nstill new, so that the set is"
          " asked, and what is logged of a new connection is logged, for every packet. *Established*:\nof a connection"
          " that a server has accepted, sent by the raw socket into the same device. What Innkeeper opens is TCP, so UDP would"
          "\nmeasure its refusal.\n")
    rows = [["open addresses", *(f"{what} {count:,}" for what in ("SYN", "established") for count in counts)]]
    for rules in (*sets, "Innkeeper"):
        cells = []
        for found in (syns, established):
            for count in counts:
                refused = sum(each["refused"] for each in found[(rules, count)])
                cells.append(spread([each["ns"] for each in found[(rules, count)]], 1, 0)
                             + (f", {refused} refused" if refused else ""))
        rows.append([rules, *cells])
    for rules in sets[1:]:
        rows.append([f"Innkeeper / {rules}, least rounds", *(f"{ns(found, 'Innkeeper', count) / ns(found, rules, count):.2f} ×"
                                               for found in (syns, established) for count in counts)])
    table(rows)


def ns(found, rules, count):
    """The least round's: a busy machine only adds."""
    return min(each["ns"] for each in found[(rules, count)])


def memory(world):
    rows = [["kB, proportional", "names", "at rest", "after the floods", "of it", "questions in the floods"]]
    for count in (22, 10_000):
        with Ground(world, world.NEAR, boxed=True, peers=("dnsmasq", "unbound"), exact=count) as place:
            for name in ("innkeeper", "dnsmasq", "unbound"):
                rig.settle()
                rest = place.memory(name)
                asked = 0
                for kind in ("denied", "own"):
                    done = place.flood(name, kind, WINDOW, 2)
                    asked += done["good"] + done["wrong"]
                rig.settle()
                after = place.memory(name)
                rows.append([name, f"{count:,}", f"{sum(rest.values()):,}", f"{sum(after.values()):,}",
                             ", ".join(f"{what} {kb:,}" for what, kb in after.items()), f"{asked:,}"])
    print("\n**Memory**, two seconds each of denied and of allowed names that are asked for once. dnsmasq and unbound have the"
          " names as\nzones and no firewall. Innkeeper's is PID 1 and its workers, without the session.\n")
    table(rows)


def options(arguments):
    parser = argparse.ArgumentParser(prog="bench net", description=__doc__)
    parser.add_argument("part", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is given")
    parser.add_argument("--keep-image", action="store_true", help="leave the peers' image for the next run")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.part) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return chosen


def main(arguments):
    chosen = options(arguments)
    if os.geteuid() != 0:
        sys.exit("bench: run it as root: it makes network namespaces and reads other users' memory figures")
    # Ends through the cleaning up, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    image = "innkeeper-bench-net:latest"
    world = ground.Net(f"innkeeper-bench-{os.getpid()}", image)
    begin, status = time.monotonic(), 0
    try:
        print(f"bench: apt installs bind9-dnsutils, dnsmasq-base, ipset, nftables and unbound, and cargo builds the load"
              f" generator, in the image {image}", file=sys.stderr)
        run("docker", "build", "--quiet", "--tag", image, "--build-arg", f"IMAGE={rig.IMAGE}",
            "--file", os.path.join(rig.HERE, "net", "Dockerfile"), rig.HERE)
        begin = time.monotonic()
        world.start()
        print(f"\n{os.cpu_count()} cores, kernel {platform.release().split('-')[0]}; {world.versions()}. The server under test"
              " has one core, generator\nand upstream the other; medians (least–most).")
        for part in PARTS:
            if part in (chosen.part or PARTS):
                print(f"bench: {part}, {time.monotonic() - begin:.0f} s so far", file=sys.stderr)
                globals()[part](world)
                sys.stdout.flush()
        print(f"\nbench: took {time.monotonic() - begin:.0f} s; {world.busy()}", file=sys.stderr)
    except (BenchError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        status = 1
    finally:
        world.stop()
        if not chosen.keep_image:
            run("docker", "rmi", "--force", image, check=False)
    return status

"""`bench session`: from the signal to the session's end, and 20,000 orphans at once; beside tini and dumb-init."""

import argparse
import os
import select
import signal
import statistics
import sys
import time

import boot
import rig
from rig import BenchError, run

ORPHANS = 20_000
# Ends at once when it is told to: what is measured is the way of the signal to it, and of its end to the box's.
PROGRAM = "$SIG{TERM} = sub { exit 0 }; sleep 1000 while 1"


def program(pid):
    """The session's program as the host sees it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [each for each, command in boot.inside(pid) if command.startswith(("perl -e", "/usr/bin/perl -e"))]
        if found:
            return found[0]
        time.sleep(0.05)
    raise BenchError("no program in the session")


def end(pid):
    """Milliseconds from SIGTERM to the end of the session's program, and to PID 1's."""
    session = program(pid)
    # It has set its handler by then.
    rig.settle()
    ends = {os.pidfd_open(session): "session", os.pidfd_open(pid): "box"}
    poll, took = select.poll(), {}
    for descriptor in ends:
        poll.register(descriptor, select.POLLIN)
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    while len(took) < 2:
        ready = poll.poll(20_000)
        if not ready:
            raise BenchError("it does not end")
        for descriptor, _ in ready:
            took[ends[descriptor]] = (time.monotonic() - started) * 1e3
            poll.unregister(descriptor)
            os.close(descriptor)
    return took


def small(world, image, init, number):
    name = f"{world.tag}-{init}{number}"
    world.containers.append(name)
    run("docker", "run", "--detach", "--name", name, "--network", "none", "--no-healthcheck", "--ulimit", "nproc=-1",
        "--entrypoint", init, image, "--", "perl", "-e", PROGRAM)
    return name, int(run("docker", "inspect", "--format", "{{.State.Pid}}", name))


def measure(world, image, rounds):
    inits = ("innkeeper", "dumb-init", "tini")
    ends, orphans = ({init: [] for init in inits} for _ in range(2))
    for number in range(rounds):
        for init in inits:
            if init == "innkeeper":
                _, box, network = boot.innkeeper(world, rig.IMAGE, number, command="/usr/bin/perl\n-e\n" + PROGRAM)
                name, pid, gone = box.name, box.pid(), (box.name, network)
            else:
                name, pid = small(world, image, init, number)
                gone = (name,)
            program(pid)
            orphans[init].append(boot.orphans(name, pid, ORPHANS))
            ends[init].append(end(pid))
            world.remove(*gone)
    return ends, orphans


def report(ends, orphans, rounds):
    def spread(values):
        return f"{statistics.median(values):.1f}", f"{min(values):.1f}–{max(values):.1f}"

    print(f"{rounds} rounds, in turns; milliseconds\n")
    rows = [["SIGTERM to", "median", "least–most", "Innkeeper / it"]]
    for what, name in (("session", "the end of the session's program"), ("box", "PID 1's own end")):
        mine = statistics.median(each[what] for each in ends["innkeeper"])
        for init, values in ends.items():
            values = [each[what] for each in values]
            rows.append([f"{name}: {init}", *spread(values), f"{mine / statistics.median(values):.2f} ×"])
    boot.table(rows)
    print()
    rows = [[f"{ORPHANS:,} orphans at once, until none is a zombie", "median", "least–most", "PID 1's processor time",
             "Innkeeper / it"]]
    mine = statistics.median(used for _, used in orphans["innkeeper"])
    for init, values in orphans.items():
        used = statistics.median(used for _, used in values)
        rows.append([init, *spread([took for took, _ in values]), f"{used:.1f}", f"{mine / used:.2f} ×"])
    boot.table(rows)
    worst = max(took for took, _ in orphans["innkeeper"])
    print(f"\ntarget: within 2 s: {'met' if worst <= 2000 else 'MISSED'} (worst {worst:.0f} ms)")


def main(arguments):
    parser = argparse.ArgumentParser(prog="bench session", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep-image", action="store_true", help="leave the peers' image for the next run")
    chosen = parser.parse_args(arguments)
    if os.geteuid() != 0:
        sys.exit("bench: run it as root: it makes network namespaces and signals processes in containers")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    image = "innkeeper-bench:latest"
    world = rig.World(f"innkeeper-bench-{os.getpid()}")
    try:
        run("docker", "build", "--quiet", "--tag", image, "--build-arg", f"IMAGE={rig.IMAGE}", rig.HERE)
        world.start()
        report(*measure(world, image, chosen.rounds), chosen.rounds)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        world.stop()
        if not chosen.keep_image:
            run("docker", "rmi", "--force", image, check=False)
    return 0

"""`bench boot`: from the first instruction to closed egress and to readiness; memory and orphans of PID 1."""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time

import rig
from rig import BenchError, Watched, run

TOKEN = "sk-ant-oat01-" + "a1B2c3D4" * 12 + "-" + "a1B2c3D4" * 2 + "-AAAA"
CAPABILITIES = ["--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN"]
# Base images of some workplaces name certificates of their own, which Innkeeper would add to the box's.
PLAIN = ["--env", "NODE_EXTRA_CA_CERTS="]
ORPHANS = 10_000

# The children are zombies of a process of ours; when that one ends, all of them are PID 1's at once. The first
# process stays until it is told, so that the number of tasks comes to rest one above where it was.
MAKE_ORPHANS = """
use POSIX ();
if (!(my $parent = fork)) {
  pipe my $end, my $held;
  for (1 .. %d) { my $pid = fork; defined $pid or die "fork: $!"; POSIX::_exit(0) unless $pid }
  close $held;
  my $none = <$end>;
  $| = 1;
  print "zombies\\n";
  my $go = <STDIN>;
  POSIX::_exit(0);
} else { waitpid $parent, 0; my $wait = <STDIN>; }
"""


def innkeeper(world, image, number, probed=False, command="/bin/sleep\ninfinity", options=()):
    """One boot; returns its figures, the running box and the container that holds its network."""
    network, pid = world.namespace()
    quiet = rig.settle()
    with Prober(pid) if probed else contextlib.nullcontext() as probe:
        box = Watched(world, f"{world.tag}-innkeeper{number}", [
            "--network", f"container:{network}", *CAPABILITIES,
            "--env", f"CLAUDE_CODE_OAUTH_TOKEN={TOKEN}", "--env", "INNKEEPER_NETWORK_PROFILES=",
            "--env", "INNKEEPER_NETWORK_ALLOW=" + ";".join(rig.names()),
            "--env", f"INNKEEPER_SESSION_COMMAND={command}", *options, *PLAIN, image])
        box.until(lambda line: "ready after" in line)
        refused = closed(probe) if probed else None
    status = json.loads(run("docker", "exec", box.name, "innkeeper", "status", "--json"))
    with open(f"/proc/{box.pid()}/cmdline", encoding="utf-8") as file:
        began = int(file.read().split("\0--began\0")[1].split("\0")[0])
    open_names = {address["name"] for address in status["firewall"]["addresses"]}
    if open_names != set(rig.names()):
        raise BenchError(f"only {len(open_names)} names are open")
    steps = {step["name"]: step["ms"] for step in status["boot"]["steps"] if step["ms"] is not None}
    figures = {"closed": status["boot"]["lockdown_ms"], "ready": status["boot"]["ready_ms"], "steps": steps,
               "quiet": quiet}
    if refused:
        figures["seen"] = (refused["monotonic"] - began) / 1e6
    return figures, box, network


def peer(world, image, number):
    network, pid = world.namespace()
    quiet = rig.settle()
    with Prober(pid) as probe:
        box = Watched(world, f"{world.tag}-peer{number}", [
            "--network", f"container:{network}", *CAPABILITIES, "--env", f"CLAUDE_CODE_OAUTH_TOKEN={TOKEN}",
            "--env", "GH_PAT=stub", "--entrypoint", "/bin/bash", image, "/usr/local/bin/peer"])
        accepts = int(box.until(lambda line: line.startswith("accepts ")).split()[1])
        refused = closed(probe)
    if accepts < 2 * len(rig.names()):
        raise BenchError(f"the peer opened {accepts} addresses only:\n" + "\n".join(box.lines()))
    marks = {}
    for line in box.lines():
        if line.startswith("mark "):
            marks[line.split()[1]] = float(line.split()[2])
    since = {name: (at - marks["exec"]) * 1e3 for name, at in marks.items()}
    return {"closed": since["closed"], "ready": since["ready"], "resolve": since["closed"] - since["resolve"],
            "seen": refused["realtime"] / 1e6 - marks["exec"] * 1e3, "quiet": quiet}, box, network


class Prober:
    """Sends packets from the box's namespace until they are refused: nobody has to be believed."""

    def __init__(self, pid):
        self._pid = pid

    def __enter__(self):
        script = os.path.join(rig.HERE, "prober.py")
        self.process = subprocess.Popen(["nsenter", "--net", "--target", self._pid, sys.executable, script, "egress"],
                                        stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "open\n":
            raise BenchError("the prober could not send before the box was there")
        return self.process

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def closed(probe):
    """When the first packet was refused."""
    values = [int(value) for value in probe.stdout.readline().split()]
    return {"monotonic": values[2], "realtime": values[3]}


def round_trip(world):
    network, pid = world.namespace()
    script = os.path.join(rig.HERE, "prober.py")
    rig.settle()
    times = [float(run("nsenter", "--net", "--target", pid, sys.executable, script, "round", rig.UPSTREAM))
             for _ in range(5)]
    world.remove(network)
    return statistics.median(times)


def memory(pid):
    """(proportional, resident) set in kB."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        text = file.read()
    return tuple(int(re.search(rf"^{what}:\s+(\d+)", text, re.M)[1]) for what in ("Pss", "Rss"))


def inside(pid):
    """Every process in the pid namespace of `pid`: (pid, command line)."""
    own = os.readlink(f"/proc/{pid}/ns/pid")
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/ns/pid") == own:
                    with open(f"/proc/{entry}/cmdline", encoding="utf-8", errors="replace") as file:
                        found.append((int(entry), file.read().replace("\0", " ").strip()))
            except OSError:
                continue  # it has ended meanwhile
    return found


def tasks(pid):
    """Where the number of tasks in the container's cgroup is read: zombies count until they are reaped."""
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        for line in file:
            _, controllers, path = line.strip().split(":", 2)
            if controllers == "pids":
                return f"/sys/fs/cgroup/pids{path}/pids.current"
            if controllers == "" and os.path.exists(f"/sys/fs/cgroup{path}/pids.current"):
                return f"/sys/fs/cgroup{path}/pids.current"
    raise BenchError("no pids controller")


def processor(pid):
    """Milliseconds that the thread which reaps has run so far."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0]) / 1e6


def orphans(name, pid, many=ORPHANS):
    """Milliseconds from the moment that PID 1 has so many dead children more until it has none: of the clock, and of
    PID 1's processor time."""
    with open(tasks(pid), encoding="ascii") as counter:
        def count():
            counter.seek(0)
            return int(counter.read())

        rest = count() + 1
        maker = subprocess.Popen(["docker", "exec", "--interactive", name, "perl", "-e", MAKE_ORPHANS % many],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if maker.stdout.readline() != "zombies\n":
            raise BenchError(f"{name}: no orphans were made")
        full = count()
        if full < many:
            raise BenchError(f"{name}: only {full} tasks")
        used = processor(pid)
        maker.stdin.write("go\n")
        maker.stdin.flush()
        started, last = None, full
        deadline = time.monotonic() + 30
        while last > rest + 2 and time.monotonic() < deadline:
            last = count()
            if started is None and last < full:
                started = time.monotonic()
        took = (time.monotonic() - started) * 1e3
        used = processor(pid) - used
    maker.stdin.close()
    maker.wait()
    if last > rest + 2:
        raise BenchError(f"{name}: {last} tasks are left")
    zombies = [each for each, _ in inside(pid) if stat(each) == "Z"]
    if zombies:
        raise BenchError(f"{name}: {len(zombies)} zombies are left")
    return took, used


def stat(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return None


def small(world, image, init, rounds):
    """tini, dumb-init or bash as PID 1 of a container that sleeps."""
    name = f"{world.tag}-{init}"
    world.containers.append(name)
    command = ["-c", "sleep infinity & wait"] if init == "bash" else ["--", "sleep", "infinity"]
    run("docker", "run", "--detach", "--name", name, "--network", "none", "--no-healthcheck",
        "--entrypoint", init, image, *command)
    pid = int(run("docker", "inspect", "--format", "{{.State.Pid}}", name))
    rig.settle()
    figures = {"memory": memory(pid), "orphans": [orphans(name, pid) for _ in range(rounds)]}
    world.remove(name)
    return figures


def own_copy(world, image, rounds):
    """Innkeeper's memory and orphans, from a file that nobody else has mapped."""
    _, box, network = innkeeper(world, image, "copy")
    pid = box.pid()
    rig.settle()
    processes = {"PID 1": memory(pid)}
    rest = []
    for each, command in inside(pid):
        if each == pid:
            continue
        if re.match(r"\S*innkeeper(-\S+)? .*\bdns\b|innkeeper-dns|dns\b", command):
            processes["dns"] = memory(each)
        else:
            rest.append((command, memory(each)))
    if "dns" not in processes:
        raise BenchError(f"no worker dns among {rest}")
    figures = {"memory": processes, "rest": rest, "orphans": [orphans(box.name, pid) for _ in range(rounds)]}
    world.remove(box.name, network)
    return figures


def shell_memory(box):
    pid = box.pid()
    sets = [memory(each) for each, command in inside(pid) if not command.startswith("sleep")]
    return tuple(sum(column) for column in zip(*sets))


def measure(world, image, rounds):
    results = {"round": round_trip(world), "probed": [], "innkeeper": [], "peer": [], "pid1": {}}
    results["size"] = int(run("docker", "run", "--rm", "--network", "none", "--entrypoint", "stat", rig.IMAGE,
                              "--dereference", "--format", "%s", "/usr/local/bin/innkeeper"))
    # In turns, so that a busy minute of the machine hits both.
    for number in range(rounds):
        # The prober takes a part of a core, which matters to a boot of milliseconds.
        for each, probed in enumerate((True, False, False)):
            figures, box, network = innkeeper(world, rig.IMAGE, f"{number}-{each}", probed)
            results["probed" if probed else "innkeeper"].append(figures)
            world.remove(box.name, network)
        figures, box, network = peer(world, image, number)
        results["peer"].append(figures)
        if number == 0:
            results["shell memory"] = shell_memory(box)
        world.remove(box.name, network)
    for init in ("tini", "dumb-init", "bash"):
        results["pid1"][init] = small(world, image, init, 5)
    results["pid1"]["innkeeper"] = own_copy(world, image, 5)
    return results


def median(figures, key):
    return statistics.median(each[key] for each in figures)


def spread(figures, key):
    values = [each[key] for each in figures]
    return f"{median(figures, key):,.1f} ({min(values):,.1f}–{max(values):,.1f})"


def over(value, target):
    return "met" if value <= target else f"{value / target:.1f} × over"


def report(results, rounds):
    ours, theirs, pid1 = results["innkeeper"], results["peer"], results["pid1"]
    kernel = platform.release().split("-")[0]
    probed = results["probed"]
    busy = sum(not each["quiet"] for each in ours + theirs + probed)
    print(f"\n{os.cpu_count()} cores, kernel {kernel}; {len(ours) + len(probed)} boots of Innkeeper, {rounds} of the"
          f" peer, {busy} of them on a machine busy with\nother things; medians (least–most). Upstream"
          f" {rig.DELAY_MS} ms away: a bare client that asks for A and AAAA of the 22 names\nat once has all answers"
          f" after {results['round']:.1f} ms.\n")
    rows = [["milliseconds from the first instruction", "Innkeeper", "shell peer", "ratio", "target", ""]]
    for label, key, target in (("egress closed, by a prober's packets", "seen", 2),
                               ("egress closed, by its own clock", "closed", None),
                               ("ready, 22 names answered", "ready", 250)):
        boots = probed if key == "seen" else ours
        mine, other = median(boots, key), median(theirs, key)
        rows.append([label, spread(boots, key), spread(theirs, key), f"{other / mine:.0f} ×",
                     f"≤ {target}" if target else "", over(mine, target) if target else ""])
    mine, other = step(ours, "firewall"), median(theirs, "resolve")
    rows.append(["of it: names resolved and opened", f"{mine:,.1f}", spread(theirs, "resolve"),
                 f"{other / mine:.0f} ×", "", ""])
    table(rows)
    print()
    table([["Innkeeper's steps, ms", *(name for name in ours[0]["steps"])],
           ["median", *(f"{step(ours, name):.1f}" for name in ours[0]["steps"])]])
    print()
    box = pid1["innkeeper"]["memory"]
    total = sum(pss for pss, _ in box.values())
    rows = [["memory, kB", "proportional", "resident", "target", ""]]
    for name, (pss, rss) in box.items():
        rows.append([f"Innkeeper: {name}", f"{pss:,}", f"{rss:,}", "", ""])
    rows.append(["Innkeeper: both", f"{total:,}", "", "≤ 8,192 (with gate and watch)", over(total, 8192)])
    for init in ("tini", "dumb-init", "bash"):
        pss, rss = pid1[init]["memory"]
        rows.append([init, f"{pss:,}", f"{rss:,}", "", ""])
    pss, rss = results["shell memory"]
    rows.append(["shell peer: bash and dnsmasq", f"{pss:,}", f"{rss:,}", "", ""])
    table(rows)
    for command, (pss, _) in pid1["innkeeper"]["rest"]:
        print(f"  not counted: {command[:60]} ({pss:,} kB)")
    print()
    rows = [[f"{ORPHANS:,} orphans at once, ms until none is a zombie", "median", "least–most",
             "PID 1's processor time", "Innkeeper / it"]]
    mine = statistics.median(used for _, used in pid1["innkeeper"]["orphans"])
    for init in ("innkeeper", "dumb-init", "tini", "bash"):
        clock = [took for took, _ in pid1[init]["orphans"]]
        used = statistics.median(used for _, used in pid1[init]["orphans"])
        rows.append([init, f"{statistics.median(clock):.1f}", f"{min(clock):.1f}–{max(clock):.1f}", f"{used:.1f}",
                     f"{mine / used:.2f} ×"])
    table(rows)
    print(f"\nbinary: {results['size']:,} bytes (target ≤ 8 MB: {over(results['size'], 8_000_000)})")


def step(figures, name):
    return statistics.median(each["steps"][name] for each in figures)


def table(rows):
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows[1:]:
        print("| " + " | ".join(row) + " |")


def options(arguments):
    parser = argparse.ArgumentParser(prog="bench boot", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="boots of the peer; Innkeeper boots three times as often")
    parser.add_argument("--keep-image", action="store_true", help="leave the peers' image for the next run")
    return parser.parse_args(arguments)


def main(arguments):
    chosen = options(arguments)
    if os.geteuid() != 0:
        sys.exit("bench: run it as root: it makes network namespaces and reads other users' memory figures")
    # Ends through the cleaning up, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tag = f"innkeeper-bench-{os.getpid()}"
    image = "innkeeper-bench:latest"
    world = rig.World(tag)
    try:
        print(f"bench: apt installs bind9-dnsutils, dnsmasq-base, dumb-init and tini in the image {image}",
              file=sys.stderr)
        run("docker", "build", "--quiet", "--tag", image, "--build-arg", f"IMAGE={rig.IMAGE}", rig.HERE)
        world.start()
        report(measure(world, image, chosen.rounds), chosen.rounds)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        world.stop()
        if not chosen.keep_image:
            run("docker", "rmi", "--force", image, check=False)
    return 0

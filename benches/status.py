"""What `status` takes, asked on the control socket: with every proof fresh, and with all of them older than ten seconds,
so that all are looked at again (a child attacks the box from within for it).

    sudo ./scripts/bench status [--rounds N]

Asked from inside by a program that is running already: what an engine's `exec` takes is not Innkeeper's. *command* is
the whole `innkeeper status`, from its exec to its end.
"""

import argparse
import json
import os
import signal
import statistics
import sys

import boot
import rig

# Twelve seconds make every proof old; a round of them is what a probe of an engine's would see.
INSIDE = r"""
import json, socket, subprocess, sys, time
def ask():
    s = socket.socket(socket.AF_UNIX)
    s.connect('/run/innkeeper/control.sock')
    began = time.perf_counter()
    s.sendall(b'{"op":"status"}\n')
    answer = b''
    while not answer.endswith(b'\n'):
        more = s.recv(1 << 20)
        if not more:
            sys.exit('no answer')
        answer += more
    return (time.perf_counter() - began) * 1e3, len(answer)
def command():
    began = time.perf_counter()
    subprocess.run(['innkeeper', 'status'], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1e3
old, fresh, commands = [], [], []
ask()
for _ in range(int(sys.argv[1])):
    time.sleep(10.5)
    old.append(ask()[0])
    fresh += [ask()[0] for _ in range(20)]
    commands += [command() for _ in range(5)]
print(json.dumps({'old': old, 'fresh': fresh, 'command': commands, 'octets': ask()[1]}))
"""


def main(arguments):
    parser = argparse.ArgumentParser(prog="scripts/bench status")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(arguments).rounds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    world = rig.World(f"bench{os.getpid()}")
    try:
        world.start()
        _, box, _ = boot.innkeeper(world, rig.IMAGE, 1)
        rig.settle()
        said = rig.run("docker", "exec", box.name, "python3", "-c", INSIDE, str(rounds))
        figures = json.loads(said)
        print(f"`status` with 22 names, {rounds} rounds, {figures['octets']:,} octets of answer; milliseconds\n")
        print("| | median | worst | target |")
        print("| --- | --- | --- | --- |")
        for key, name, target in (("old", "every proof looked at again", 20), ("fresh", "proofs fresh", None),
                                  ("command", "`innkeeper status`, proofs fresh", None)):
            median, worst = statistics.median(figures[key]), max(figures[key])
            verdict = "" if target is None else f"≤ {target}: {'met' if median <= target else 'missed'}"
            print(f"| {name} | {median:.1f} | {worst:.1f} | {verdict} |")
        return 0
    finally:
        world.stop()

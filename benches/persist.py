"""Saving and restoring a repository of 100 MB, beside `git bundle create --all` with `git clone` of it, and tar.

    sudo ./scripts/bench persist [--rounds N] [--megabytes N]

In one container of the image without a network, as the agent's uid: the repository on a tmpfs, as in a box, the saves on
a volume of the engine's. The children that PID 1 starts are run as it starts them, so that its own part (a spawn, a line
of JSON) is not in it. Every way ends with its octets on the disk (fsync, or sync of the file system).
"""

import argparse
import json
import os
import signal
import statistics
import sys

import rig

INSIDE = r"""
import json, os, random, shutil, subprocess, sys, time
rounds, megabytes = int(sys.argv[1]), int(sys.argv[2])
env = {'PATH': '/usr/local/bin:/usr/bin:/bin', 'HOME': '/tmp/home', 'GIT_CONFIG_GLOBAL': '/dev/null'}
work, volume, home, repo = '/workspace', '/persist', '/tmp/home', '/workspace/repo'
def run(*command, **more):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, **more).stdout
def git(*args):
    return run('git', '-C', repo, '-c', 'user.name=a', '-c', 'user.email=a@example.org', *args)
def timed(call):
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
def sync():
    run('sync', '-f', volume)
def clear(directory):
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
def child(name, *more):
    args = ['--volume', volume, '--workspace', work, '--home', home, '--limit', str(8 << 30), '--within', '600000']
    said = json.loads(run('innkeeper', name, *args, *more))
    assert said['trouble'] is None and not said['left_out'], said
    return said
def save():
    return child('persist-save')
# Text that packs to three quarters: neither noise nor zeros.
random.seed(1)
os.makedirs(home + '/.claude/projects/-workspace-repo', exist_ok=True)
os.makedirs(repo)
git('init', '-q', '-b', 'main')
for number in range(megabytes * 10):
    directory = f'{repo}/d{number % 50}'
    os.makedirs(directory, exist_ok=True)
    with open(f'{directory}/f{number}', 'w') as file:
        file.write('\n'.join(random.randbytes(38).hex() for _ in range(1000 * 100 // 77 )))
git('add', '.')
git('commit', '-qm', 'all')
for number in range(20):
    with open(f'{repo}/d1/f1', 'a') as file:
        file.write(f'{number}\n')
    git('commit', '-qam', str(number))
git('gc', '-q')
open(f'{repo}/untracked', 'w').write('x' * 10000)
with open(home + '/.claude/projects/-workspace-repo/a.jsonl', 'w') as file:
    file.write('{}\n' * 100000)
open(home + '/.claude.json', 'w').write('{}')
times = {}
def note(name, call):
    times.setdefault(name, []).append(timed(call))
size = int(run('du', '-sb', repo + '/.git').split()[0])
for round in range(rounds):
    clear(volume)
    note('save', save)
    note('unchanged', save)
    with open(f'{repo}/d2/f2', 'a') as file:
        file.write(f'{round}\n')
    git('commit', '-qam', 'small')
    open(f'{repo}/untracked', 'a').write('y')
    note('small', save)
    os.rename(repo, work + '/.kept.restoring')
    shutil.rmtree(home + '/.claude')
    def restore():
        said = child('persist-restore', '--workdir', repo)
        assert said['repositories'][0]['came'] == 'restored', said
    note('restore', restore)
    assert git('status', '--porcelain') == b'?? untracked\n'
    shutil.rmtree(repo)
    os.rename(work + '/.kept.restoring', repo)
    clear(volume)
    note('bundle', lambda: (git('bundle', 'create', '-q', volume + '/all.bundle', '--all'), sync()))
    note('clone', lambda: run('git', 'clone', '-q', volume + '/all.bundle', work + '/clone'))
    shutil.rmtree(work + '/clone')
    note('tar', lambda: (run('tar', '-cf', volume + '/all.tar', '-C', work, 'repo'), sync()))
    os.makedirs(work + '/untar')
    note('untar', lambda: run('tar', '-xf', volume + '/all.tar', '-C', work + '/untar'))
    shutil.rmtree(work + '/untar')
print(json.dumps({'size': size, 'times': times}))
"""


def main(arguments):
    parser = argparse.ArgumentParser(prog="scripts/bench persist")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    volume = f"bench{os.getpid()}-persist"
    rig.run("docker", "volume", "create", volume)
    try:
        mount = ("-v", f"{volume}:/persist")
        rig.run("docker", "run", "--rm", "--network", "none", *mount, "--entrypoint", "chown", rig.IMAGE, "1000", "/persist")
        places = ("--tmpfs", "/workspace:exec,uid=1000,size=3g", "--tmpfs", "/tmp:exec,mode=1777")
        program = ("--entrypoint", "python3", rig.IMAGE, "-c", INSIDE, str(options.rounds), str(options.megabytes))
        said = rig.run("docker", "run", "--rm", "--network", "none", "-u", "1000", *mount, *places, *program)
        figures = json.loads(said.strip().splitlines()[-1])
        show(figures, options)
        return 0
    finally:
        rig.run("docker", "volume", "rm", "-f", volume, check=False)


def show(figures, options):
    times = {name: statistics.median(values) for name, values in figures["times"].items()}
    print(f"A repository of {options.megabytes} MB in {options.megabytes * 10:,} files, .git of {figures['size'] / 1e6:.0f} MB; "
          f"medians of {options.rounds} rounds, milliseconds\n")
    print("| | ms | beside git | beside tar |")
    print("| --- | --- | --- | --- |")
    rows = (("save", "first save", "bundle", "tar"), ("small", "save with a small commit and a changed file", "bundle", "tar"),
            ("unchanged", "save of nothing new", "bundle", "tar"), ("restore", "restore", "clone", "untar"))
    for key, name, git, tar in rows:
        ratios = " | ".join(f"{times[key] / times[peer]:.2f}×" for peer in (git, tar))
        print(f"| {name} | {times[key]:.0f} | {ratios} |")
    for key, name in (("bundle", "`git bundle create --all`"), ("clone", "`git clone` of it"), ("tar", "`tar -c`"),
                      ("untar", "`tar -x`")):
        print(f"| {name} | {times[key]:.0f} | | |")

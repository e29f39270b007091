//! What of the host and of other boxes can't be reached: files, sockets, processes, services.

use crate::bare_host::{BareHost, HostBox, Options, Service};
use crate::rig::host as address;

const CANARY: &str = "canary-of-the-host";

#[test]
fn files_and_sockets_of_the_host_are_not_in_the_box() {
    let Some(host) = BareHost::new() else { return };
    let serve = "import socket, sys
for place in ['/run/docker.sock', '/run/private/host.sock', '\\0host-abstract']:
    s = socket.socket(socket.AF_UNIX); s.bind(place); s.listen(); globals()[place] = s
print('up', flush=True); sys.stdin.read()";
    let mut listener = host.spawn("/usr/bin/python3", &["-c", serve]);
    listener.await_line("up");
    let files = [
        "/root/canary",
        "/root/.ssh/id_ed25519",
        "/home/somebody/canary",
        "/home/somebody/.ssh/id_ed25519",
        "/etc/shadow",
        "/run/secrets/canary",
        "/run/private/canary",
        "/mnt/canary",
        "/srv/canary",
    ];
    let guest = host.boot("one", &Options::new());
    let _other = host.boot("two", &Options::new());
    for file in files {
        let read = format!("cat {file}");
        assert!(host.shell(&read).out.contains(CANARY), "the control: {file}");
        for (who, done) in guest.everybody(&read) {
            assert!(!done.ok() && !done.out.contains(CANARY), "{who}: {file}: {done:?}");
        }
    }
    let connect = "/usr/bin/python3 -c \"
import socket, sys
for place in ['/run/docker.sock', '/var/run/docker.sock', '/run/private/host.sock', '\\0host-abstract']:
    s = socket.socket(socket.AF_UNIX)
    try: s.connect(place); print('REACHED', repr(place))
    except OSError as error: print(error.__class__.__name__)\"";
    let control = host.shell(connect).out;
    assert_eq!(control.matches("REACHED").count(), 4, "{control}");
    for (who, done) in guest.everybody(connect) {
        assert!(done.ok() && !done.out.contains("REACHED"), "{who}: {done:?}");
    }
    // Neither the records, nor the other box's root.
    let records =
        "ls /run/innkeeper-engine; find / -xdev -name box.json 2>/dev/null; grep -c ikbox1 /proc/net/dev";
    assert!(host.shell(records).out.contains("two"));
    for (who, done) in guest.everybody(records) {
        assert!(!done.out.contains("two") && !done.out.contains("box.json"), "{who}: {done:?}");
    }
}

#[test]
fn processes_of_the_host_and_its_kernel_switches_are_out_of_reach() {
    let Some(host) = BareHost::new() else { return };
    let guest = host.boot("one", &Options::new());
    let count = "ls -d /proc/[0-9]* | wc -l; for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
    let mine = format!("{}", std::process::id());
    let control = host.shell(&format!("ls -d /proc/{mine}"));
    assert!(control.ok(), "{control:?}");
    for (who, done) in guest.everybody(count) {
        let number: usize = done.out.lines().next().unwrap().trim().parse().unwrap();
        assert!(number < 20 && !done.out.contains("world.py"), "{who}: {done:?}");
        assert!(done.out.contains("innkeeper init"), "{who}: {done:?}");
    }
    let environment = guest.root("cat /proc/1/environ | wc -c");
    assert_eq!(environment.out.trim(), "0", "{environment:?}");
    for file in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
    ] {
        for (who, done) in guest.everybody(&format!("test -e {file} && echo >> {file}")) {
            assert!(!done.ok(), "{who} writes {file}: {done:?}");
        }
    }
    let mounts = "mount -t tmpfs tmpfs /mnt || mount -o remount,rw / || umount -l /proc/sys || mknod /tmp/disk b 254 0 || \
                  unshare -m true || touch /usr/bin/x /etc/x /opt/x";
    for (who, done) in guest.everybody(mounts) {
        assert!(!done.ok(), "{who}: {done:?}");
    }
}

/// Nobody on the host has the ids of a box, and no two boxes share one.
#[test]
fn the_ids_of_a_box_are_nobody_elses() {
    let Some(host) = BareHost::new() else { return };
    let (one, two) = (host.boot("one", &Options::new()), host.boot("two", &Options::new()));
    let uids = |pid: &str| -> Vec<u32> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(pid).unwrap();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let inside = names.filter(|name| namespace(name).as_ref() == Some(&own));
        inside
            .filter_map(|name| {
                let status = std::fs::read_to_string(format!("/proc/{name}/status")).ok()?;
                let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.to_owned();
                line.split_whitespace().next()?.parse().ok()
            })
            .collect()
    };
    let (first, second) = (uids(&one.pid()), uids(&two.pid()));
    assert!(first.len() > 4 && second.len() > 4, "{first:?} {second:?}");
    assert!(first.iter().chain(&second).all(|uid| *uid >= 0x7000_0000), "{first:?} {second:?}");
    assert!(first.iter().all(|uid| !second.contains(uid)), "{first:?} {second:?}");
}

/// Two locks: the box's own firewall, and the host's rules. The second one alone, with the first taken out.
#[test]
fn the_host_and_other_boxes_are_shut_twice() {
    let Some(host) = BareHost::new() else { return };
    let serve = "import socket, threading
def serve(s):
    while True:
        c, _ = s.accept(); c.sendall(b'SERVICE'); c.close()
for port in (8080, 22):
    s = socket.create_server(('', port)); threading.Thread(target=serve, args=(s,)).start()
print('up', flush=True)";
    let mut services = host.spawn("/usr/bin/python3", &["-c", serve]);
    services.await_line("up");
    let (one, two) = (host.boot("one", &Options::new()), host.boot("two", &Options::new()));
    let own = |guest: &HostBox<'_>| {
        let shown = guest.in_its_network("ip -4 -o addr show dev eth0").out;
        shown.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned()
    };
    let (other, gateway) = (own(&two), {
        let shown = one.in_its_network("ip -4 route show default").out;
        shown.split_whitespace().nth(2).unwrap().to_owned()
    });
    let mut neighbour = Service::start(std::process::Command::new("nsenter").args([
        "-t",
        &two.pid(),
        "-n",
        "/usr/bin/python3",
        "-c",
        &serve.replace("(8080, 22)", "(8080,)"),
    ]));
    neighbour.await_line("up");
    let targets =
        [(gateway.as_str(), 8080), (gateway.as_str(), 22), ("172.31.77.2", 8080), (other.as_str(), 8080)];
    let knock =
        |address: &str, port: u16| format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}; cat <&3'");
    for (address, port) in &targets[..3] {
        let control = host.shell(&knock(address, *port));
        assert_eq!(control.out, "SERVICE", "the control: {address}:{port}: {control:?}");
    }
    let control = two.in_its_network(&knock(&other, 8080));
    assert_eq!(control.out, "SERVICE", "the control: {control:?}");
    for (address, port) in targets {
        for (who, done) in one.everybody(&knock(address, port)) {
            assert!(!done.out.contains("SERVICE"), "{who}: {address}:{port}: {done:?}");
        }
        // Innkeeper would put its rules in again after some seconds: this takes two.
        for guest in [&one, &two] {
            guest.in_its_network("nft flush ruleset").expect("taking the box's own lock out");
        }
        let done = one.in_its_network(&format!("nft flush ruleset; {}", knock(address, port)));
        assert!(!done.out.contains("SERVICE"), "past the box's own lock: {address}:{port}: {done:?}");
    }
    let way_out = one.in_its_network(&format!(
        "nft flush ruleset; {}",
        HostBox::client(&format!("tcp {} 80 hello", address("evil")))
    ));
    assert!(way_out.ok(), "the first lock was really out: {way_out:?}");
}

//! Start, policy, end: and the host as it was before.

use rustix::process::Signal;

use crate::bare_host::{BareHost, Options, await_that};
use crate::rig::host as address;

#[test]
fn a_box_needs_no_engine_and_keeps_the_policy() {
    let Some(host) = BareHost::new() else { return };
    // Before: whoever is on the host gets through.
    assert!(host.client(&["tcp", &address("evil"), "80", "GET / HTTP/1.0\r\n\r\n"]).ok());
    assert!(host.client(&["dns", "9.9.9.53", "control.evil.test"]).ok());
    let before = host.snapshot();
    let mut guest = host.boot("one", &Options::new());
    assert!(guest.said.contains("experimental") && guest.said.contains("weaker"), "{}", guest.said);
    let mark = host.world.sync();
    for (who, page) in guest.everybody("curl -sS -m 10 http://ok.test/") {
        assert!(page.out.contains(&format!("token-{}", address("ok"))), "{who}: {page:?}");
    }
    for (who, refused) in guest.everybody("curl -sS -m 10 http://leak.evil.test/") {
        assert!(!refused.ok() && refused.err.contains("resolve"), "{who}: {refused:?}");
    }
    let direct = format!("curl -fsS -m 10 http://{}/leak", address("evil"));
    for (who, refused) in guest.everybody(&direct) {
        assert!(!refused.ok(), "{who}: {refused:?}");
    }
    let packets = host.world.packets_since(mark);
    let allowed = [address("ok"), "9.9.9.53".to_owned()];
    assert!(packets.iter().any(|packet| packet["dst"] == address("ok")), "{packets:?}");
    for packet in &packets {
        let to = packet["dst"].as_str().unwrap_or_default().to_owned();
        assert!(allowed.contains(&to), "{packet}");
        assert_eq!(packet["src"], "172.31.77.2", "under the host's address: {packet}");
    }
    assert!(!host.world.saw("leak"));
    let status = host.innkeeper(&["in", "one", "status", "--json"]).expect("status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["phase"], "ready");
    for protection in status["protections"].as_array().unwrap() {
        assert_eq!(protection["held"], true, "{protection}");
    }
    assert_eq!(host.innkeeper(&["in", "one", "check", "ok.test"]).code, Some(0));
    assert_eq!(host.innkeeper(&["in", "one", "check", "evil.test"]).code, Some(1));
    guest.signal_keeper(Signal::TERM);
    let (status, said) = guest.end();
    assert_eq!(status, Some(143), "{said}");
    assert_eq!(host.snapshot(), before);
}

#[test]
fn the_box_ends_with_the_status_of_its_session() {
    let Some(host) = BareHost::new() else { return };
    let options = Options::new()
        .env("INNKEEPER_SESSION_COMMAND", "/bin/sh\n-c\nsleep 1; exit 7")
        .env("INNKEEPER_SESSION_ON_EXIT", "stop");
    let before = host.snapshot();
    let (status, said) = host.start("one", &options).end();
    assert_eq!(status, Some(7), "{said}");
    assert_eq!(host.snapshot(), before);
}

#[test]
fn rm_stops_a_box_and_ls_forgets_it() {
    let Some(host) = BareHost::new() else { return };
    let before = host.snapshot();
    let mut guest = host.boot("one", &Options::new());
    let second = host.start("one", &Options::new()).end();
    assert_eq!(second.0, Some(64), "{}", second.1);
    assert!(second.1.contains("innkeeper in one") && second.1.contains("--name"), "{}", second.1);
    let listed = host.innkeeper(&["ls"]).expect("ls");
    assert!(listed.contains("one") && listed.contains("embedded") && listed.contains("running"), "{listed}");
    let listed: serde_json::Value = serde_json::from_str(&host.innkeeper(&["ls", "--json"]).out).unwrap();
    assert_eq!((&listed["name"], &listed["state"]), (&"one".into(), &"running".into()), "{listed}");
    host.innkeeper(&["rm", "one"]).expect("rm");
    assert_eq!(guest.end().0, Some(143));
    assert!(!host.innkeeper(&["ls"]).out.contains("one"));
    assert_eq!(host.innkeeper(&["rm", "one"]).code, Some(64));
    assert_eq!(host.innkeeper(&["in", "one", "status"]).code, Some(64));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn a_killed_keeper_takes_its_box_with_it_and_leaves_nothing() {
    let Some(host) = BareHost::new() else { return };
    let drop = "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'; \
                echo 0 > /proc/sys/net/ipv4/ip_forward";
    host.shell(drop).expect("a host that forwards nothing");
    let before = host.snapshot();
    for remedy in [&["ls"][..], &["rm", "one"]] {
        let guest = host.boot("one", &Options::new());
        assert_ne!(host.snapshot(), before);
        let pid = guest.pid();
        guest.signal_keeper(Signal::KILL);
        await_that("the end of the box", || !host.lives(&pid));
        // The kernel takes the link; rules and the sysctl wait for the next command.
        assert_ne!(host.snapshot(), before);
        let said = host.innkeeper(remedy);
        assert!(said.err.contains("removed what an earlier box named one had left"), "{said:?}");
        await_that("a host as before", || host.snapshot() == before);
    }
    let killed = host.boot("one", &Options::new());
    killed.signal_keeper(Signal::KILL);
    await_that("the end of the keeper", || !host.lives(&killed.keeper().to_string()));
    let mut next = host.boot("one", &Options::new());
    next.signal_keeper(Signal::INT);
    let (status, said) = next.end();
    assert_eq!(status, Some(130), "{said}");
    await_that("a host as before", || host.snapshot() == before);
}

#[test]
fn a_host_that_forwards_nothing_forwards_for_the_box_alone() {
    let Some(host) = BareHost::new() else { return };
    let closed = "for f in ip inet; do nft add table $f filter; \
                  nft add chain $f filter FORWARD '{ type filter hook forward priority 0; policy drop; }'; done; \
                  nft add rule ip filter FORWARD ip saddr 192.0.2.1 counter accept; echo 0 > /proc/sys/net/ipv4/ip_forward";
    host.shell(closed).expect("a host as Docker leaves it");
    let before = host.snapshot();
    let mut first = host.boot("one", &Options::new());
    let mut second = host.boot("two", &Options::new());
    assert!(first.said.contains("net.ipv4.ip_forward is set to 1"), "{}", first.said);
    for guest in [&first, &second] {
        let page = guest.agent("curl -sS -m 10 http://ok.test/");
        assert!(page.out.contains("token-"), "{page:?}");
    }
    let rules = host.shell("nft list ruleset").out;
    assert_eq!(rules.matches("comment \"innkeeper-box-0\"").count(), 4, "{rules}");
    first.signal_keeper(Signal::TERM);
    assert_eq!(first.end().0, Some(143));
    // The other one goes on: forwarding is switched off by the last.
    let page = second.agent("curl -sS -m 10 http://ok.test/");
    assert!(page.out.contains("token-"), "{page:?}");
    second.signal_keeper(Signal::TERM);
    assert_eq!(second.end().0, Some(143));
    assert_eq!(host.snapshot(), before);
}

/// Like `docker run -it`: the keys are the session's, and the operator's own terminal is nobody's in the box.
#[test]
fn on_a_terminal_run_lands_in_the_session() {
    let Some(host) = BareHost::new() else { return };
    let before = host.snapshot();
    let mut operator = host.start_on_terminal("one", &Options::new());
    operator.await_text("readiness");
    operator.await_text("Leave with Ctrl-b d");
    operator.say("\u{2}oecho typed-$((40 + 2)) > /tmp/typed\r");
    await_that("what was typed", || {
        host.innkeeper(&["in", "one", "cat", "/tmp/typed"]).out.contains("typed-42")
    });
    let listed = host.innkeeper(&["ls"]).expect("ls");
    let pid = listed
        .lines()
        .find(|line| line.starts_with("one "))
        .unwrap()
        .split_whitespace()
        .nth(2)
        .unwrap()
        .to_owned();
    let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let keeper = parent.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned();
    let terminal = |pid: &str| {
        std::fs::metadata(format!("/proc/{pid}/fd/0")).map(|m| std::os::unix::fs::MetadataExt::rdev(&m))
    };
    assert_ne!(terminal(&pid).unwrap(), terminal(&keeper).unwrap(), "the operator's terminal is in the box");
    operator.say("\u{2}d");
    operator.await_text("Ctrl-C: stop the box");
    operator.say("\u{3}");
    assert_eq!(operator.status(), Some(130));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn a_host_with_the_old_iptables_that_forwards_nothing() {
    let Some(host) = BareHost::new() else { return };
    let closed =
        host.shell("iptables-legacy -P FORWARD DROP && iptables-legacy -A FORWARD -s 192.0.2.1 -j ACCEPT");
    if !closed.ok() {
        assert!(std::env::var_os("CI").is_none(), "CI must have it: {closed:?}");
        return;
    }
    let filter = || host.shell("iptables-legacy -S").expect("the old filter");
    let (before, rules) = (host.snapshot(), filter());
    let mut guest = host.boot("one", &Options::new());
    assert_eq!(filter().matches("innkeeper-box-0").count(), 2, "{}", filter());
    let page = guest.agent("curl -sS -m 10 http://ok.test/");
    assert!(page.out.contains("token-"), "{page:?}");
    guest.signal_keeper(Signal::KILL);
    drop(guest.end());
    host.innkeeper(&["ls"]).expect("ls");
    assert_eq!(filter(), rules);
    assert_eq!(host.snapshot(), before);
}

/// IPv6 where the host forwards it already; Innkeeper never switches that on, since the host would then ignore router
/// advertisements.
#[test]
fn a_box_has_ipv6_where_the_host_forwards_it() {
    let Some(host) = BareHost::new() else { return };
    let up = "ip -6 addr add fd77::2/64 dev up0 nodad && ip -6 route add default via fd77::1";
    host.shell(up).expect("IPv6");
    let options = Options::new().env("INNKEEPER_NETWORK_ALLOW", "onlysix.test:80;ok.test:80");
    let before = host.snapshot();
    let mut without = host.boot("one", &options);
    assert!(without.agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
    assert!(!without.in_its_network("ip -6 route show default").out.contains("default"));
    without.signal_keeper(Signal::TERM);
    assert_eq!(without.end().0, Some(143));
    assert_eq!(host.snapshot(), before);
    host.shell("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding").expect("forwarding");
    let before = host.snapshot();
    let mark = host.world.sync();
    let mut with = host.boot("one", &options);
    let page = with.agent("curl -6 -sS -m 10 http://onlysix.test/");
    assert!(page.out.contains(&format!("token-{}", address("ok_v6"))), "{page:?}\n{}", with.said);
    let literal = with.agent(&format!("curl -6 -fsS -m 10 'http://[{}]/leak'", address("evil_v6")));
    assert!(!literal.ok() && !host.world.saw("leak"), "{literal:?}");
    let packets = host.world.packets_since(mark);
    let six = packets.iter().filter(|packet| packet["dst"] == address("ok_v6"));
    assert!(six.clone().count() > 0 && six.clone().all(|packet| packet["src"] == "fd77::2"), "{packets:?}");
    with.signal_keeper(Signal::TERM);
    assert_eq!(with.end().0, Some(143));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn a_signal_that_comes_while_the_box_is_made_is_obeyed() {
    let Some(host) = BareHost::new() else { return };
    let before = host.snapshot();
    for after in ["experimental", "boot: config", "boot: home"] {
        let mut guest = host.start("one", &Options::new());
        assert!(guest.await_line(after).is_some(), "{}", guest.said);
        guest.signal_keeper(Signal::TERM);
        let (status, said) = guest.end();
        assert_eq!(status, Some(143), "{after}: {said}");
        assert!(!said.contains("again"), "once is enough: {said}");
        assert_eq!(host.snapshot(), before);
    }
}

/// A log driver that hangs, a terminal that was stopped: whoever reads the box's standard error does not hold it up.
#[test]
fn a_standard_error_that_nobody_reads_stops_neither_the_box_nor_its_end() {
    let Some(host) = BareHost::new() else { return };
    let mut guest = host.boot("one", &Options::new());
    let reading = std::sync::Arc::clone(&guest.reading);
    let unheard = reading.lock().unwrap();
    // Lines of several kilobytes: a pipe holds 64 KiB.
    let rules: Vec<String> =
        (0..200).map(|i| format!("n{i}.a-rather-long-name-of-some-host.evil.test")).collect();
    let words = |verb: &'static str| -> Vec<&str> {
        ["in", "one", verb].into_iter().chain(rules.iter().map(String::as_str)).collect()
    };
    for _ in 0..8 {
        host.innkeeper(&words("allow")).expect("allow");
        host.innkeeper(&words("revoke")).expect("revoke");
    }
    let refused = guest.agent("curl -sS -m 10 http://leak.evil.test/");
    assert!(!refused.ok() && refused.err.contains("resolve"), "{refused:?}");
    assert!(guest.agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
    host.innkeeper(&["in", "one", "allow", "two.test:80"]).expect("allow");
    assert!(guest.agent("curl -sS -m 10 http://two.test/").out.contains("token-"));
    let status = host.innkeeper(&["in", "one", "status", "--json"]).expect("status");
    assert!(status.contains("\"phase\": \"ready\""), "{status}");
    guest.signal_keeper(Signal::TERM);
    assert_eq!(guest.end_unheard(), Some(143));
    drop(unheard);
}

//! A network that leads to the world through a proxy only (`network.proxy`): names that nobody but the proxy resolves, and
//! nobody but the gate who asks it.

use crate::common::{self, options, page, token};
use crate::rig::{AGENT, ROOT, Rig, RunningBox, Talking, host};

const PROXY: &str = include_str!("proxy.py");
const USER: &str = "box:canary-password";

fn proxy(rig: &Rig) -> Talking {
    let path = rig.file("proxy.py", PROXY);
    let mut proxy = rig.spawn_in_world(&["python3", path.to_str().unwrap(), &host("ok"), USER]);
    assert_eq!(proxy.hear().trim(), "ready");
    proxy
}

/// What holds wherever the proxy was written.
fn through(rig: &Rig, given: &str) {
    let mut proxy = proxy(rig);
    let address = host("private");
    let direct = format!("curl -skS -m 10 -x http://{USER}@{address}:3128 https://far.test/");
    assert!(rig.inside(&direct).out.contains(&token("ok", "far.test")), "the proxy leads there");
    assert_eq!(proxy.hear().trim(), "asked CONNECT far.test:443");

    assert!(!rig.inside("getent hosts far.test").ok(), "nobody else knows it");

    let rules = "far.test:443,80; private.test:80 private";
    let guest = rig.boot(&options(rules).env("NETWORK_PROXY", &format!("http://{USER}@{given}:3128")));
    page(&guest, "https://far.test/", "ok", "far.test");
    assert_eq!(proxy.hear().trim(), "asked CONNECT far.test:443");
    page(&guest, "http://far.test/", "ok", "far.test");
    assert_eq!(proxy.hear().trim(), "asked CONNECT far.test:80");
    // What is private is near.
    page(&guest, "http://private.test/", "private", "private.test");
    closed(&guest, &address, given);
    let heard = proxy.end();
    assert_eq!(heard.trim(), "", "it heard of more than what is allowed");
    // `docker exec` shows what `-e` gave, whoever asks; the session does not.
    let session = guest.as_session("env");
    assert!(session.ok(), "{session:?}");
    for (place, said) in
        [("log", guest.logs()), ("status", guest.status().to_string()), ("session", session.both())]
    {
        assert!(!said.contains("canary-password"), "{place}: {said}");
    }
}

/// The agent has no way to the proxy itself, and no name that is not allowed has one.
fn closed(guest: &RunningBox, address: &str, given: &str) {
    for user in [AGENT, ROOT] {
        for place in [address, given] {
            for url in ["https://far.test/", "http://far.test/", "https://other.test/"] {
                let around = format!("curl -skS -m 5 -x http://{USER}@{place}:3128 {url}");
                let done = guest.exec(user, &around);
                assert!(!done.out.contains("token-"), "{user} through {place}: {done:?}");
            }
        }
        let done = guest.exec(user, "curl -skS -m 5 https://other.test/");
        assert!(!done.out.contains("token-"), "{user}: {done:?}");
        let forged = format!("curl -skS -m 5 --resolve other.test:443:{} https://other.test/", host("ok"));
        assert!(!guest.exec(user, &forged).out.contains("token-"), "{user}: forged");
    }
    if given == "proxy.test" {
        // Its name is in the policy, for the gate: who asks for it hears that, and it is told.
        let said = guest.exec_agent("curl -sS -m 5 http://proxy.test:3128/");
        assert!(
            said.out.contains("which the gate alone may ask") && !said.out.contains("it is allowed"),
            "{said:?}"
        );
        let denied = common::denial(guest, "proxy.test:3128");
        assert_eq!((&denied["layer"], &denied["uid"]), (&"gate".into(), &1000.into()), "{denied}");
    }
}

#[test]
fn t55_a_proxy_given_by_name_is_the_gates_alone() {
    let here = |zone: &mut serde_json::Value| {
        zone["records"]["proxy.test"] = serde_json::json!([["A", host("private"), 60]]);
    };
    let Some(rig) = Rig::with_zone(here) else { return };
    through(&rig, "proxy.test");
}

#[test]
fn t55_a_proxy_given_by_address_is_the_gates_alone() {
    let Some(rig) = Rig::new() else { return };
    through(&rig, &host("private"));
}

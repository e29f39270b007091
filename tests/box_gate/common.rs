//! What the tests of the gate need: hellos of their own making, and who was told what.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::{AGENT, BoxOptions, Done, Mark, PATIENCE, Rig, RunningBox, host};

const HELLO: &str = include_str!("hello.py");

/// A box with these rules; `docker exec` gets the trust in the test CA that the session has anyway.
#[track_caller]
pub(crate) fn boot(rig: &Rig, rules: &str) -> RunningBox {
    rig.boot(&options(rules))
}

pub(crate) fn options(rules: &str) -> BoxOptions {
    let names = [
        "SSL_CERT_FILE",
        "GIT_SSL_CAINFO",
        "CURL_CA_BUNDLE",
        "PIP_CERT",
        "REQUESTS_CA_BUNDLE",
        "CARGO_HTTP_CAINFO",
    ];
    let trusting = |options: BoxOptions, name: &&str| options.env(name, "/run/innkeeper/etc/ca-bundle.pem");
    names.iter().fold(BoxOptions::new().allow(rules), trusting)
}

/// The answers to each case, in their order.
pub(crate) type Answers = Vec<String>;

fn answers(done: Done, cases: &[&str]) -> Answers {
    let text = done.expect("the hellos");
    let answers: Answers = text
        .lines()
        .filter_map(|line| line.split_once(" -> ").map(|(_, answer)| answer.to_owned()))
        .collect();
    assert_eq!(answers.len(), cases.len(), "{text}");
    answers
}

/// From the box's network while nothing stops it.
#[track_caller]
pub(crate) fn hellos_outside(rig: &Rig, address: &str, port: &str, cases: &[&str]) -> Answers {
    let path = rig.file("hello.py", HELLO);
    let words: Vec<String> = cases.iter().map(|case| format!("'{case}'")).collect();
    let command = format!("python3 {} {address} {port} {}", path.display(), words.join(" "));
    answers(rig.inside(&command), cases)
}

/// From the box.
#[track_caller]
pub(crate) fn hellos(guest: &RunningBox, user: &str, address: &str, port: &str, cases: &[&str]) -> Answers {
    let program = [&["python3", "-c", HELLO, address, port], cases].concat();
    answers(guest.exec_program(user, &program), cases)
}

/// The names that servers were shown since then, at this address.
pub(crate) fn shown(rig: &Rig, before: usize, address: &str) -> Vec<String> {
    let log = rig.world.log("tls");
    let at = log.iter().skip(before).filter(|line| line["local"] == address);
    at.map(|line| line["sni"].as_str().unwrap_or("(none)").to_owned()).collect()
}

/// How many hellos the world has seen so far.
pub(crate) fn hellos_so_far(rig: &Rig) -> usize {
    rig.world.log("tls").len()
}

/// Packets to this address since then, the octets of each with it.
pub(crate) fn packets_to(rig: &Rig, since: Mark, address: &str) -> Vec<Value> {
    rig.world.packets_since(since).into_iter().filter(|packet| packet["dst"] == address).collect()
}

/// The mark of now, once no connection of the gate's to these addresses is left: the last packets of one from before would
/// be taken for a new one's.
#[track_caller]
pub(crate) fn quiet(rig: &Rig, addresses: &[&str]) -> Mark {
    let until = Instant::now() + PATIENCE;
    loop {
        let sockets = rig.inside("ss -Htane").expect("the sockets");
        // The agent's own are redirected.
        let is_left = |line: &&str| {
            let is_over = line.starts_with("TIME-WAIT") || line.contains(" uid:1000 ");
            !is_over && addresses.iter().any(|address| line.contains(address))
        };
        let Some(left) = sockets.lines().find(is_left) else { return rig.world.sync() };
        assert!(Instant::now() < until, "it is never over: {left}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Not one packet has gone there: the gate has not even dialled.
#[track_caller]
pub(crate) fn nothing_to(rig: &Rig, since: Mark, address: &str) {
    let packets = packets_to(rig, since, address);
    assert!(packets.is_empty(), "{address}: {packets:?}");
}

/// The refusal of the gate in the status.
#[track_caller]
pub(crate) fn denial(guest: &RunningBox, what: &str) -> Value {
    let found = |status: &Value| {
        let all = status["denials"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| {
            one["layer"] == "gate" && one["what"].as_str().is_some_and(|text| text.contains(what))
        })
    };
    let status = guest.await_status(&format!("a refusal of {what}"), |status| found(status).is_some());
    found(&status).unwrap()
}

/// What a page of the world says of who answered for this name.
pub(crate) fn token(of: &str, name: &str) -> String {
    format!("token-{}-{name}", host(of))
}

/// The page, as the agent.
#[track_caller]
pub(crate) fn page(guest: &RunningBox, url: &str, of: &str, name: &str) {
    let done = guest.exec(AGENT, &format!("curl -sS -m 30 '{url}'"));
    assert!(done.out.contains(&token(of, name)), "{url}: {done:?}\n{}", guest.logs());
}

/// A program of python in the box.
pub(crate) fn python(guest: &RunningBox, user: &str, program: &str) -> Done {
    guest.exec_program(user, &["python3", "-c", program])
}

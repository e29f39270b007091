//! What several of these tests need.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::{AGENT, Done, Mark, ROOT, Rig, RunningBox};

/// Whatever was sent there since then, as text.
pub(crate) fn packets_to(rig: &Rig, since: Mark, address: &str) -> Vec<String> {
    let packets = rig.world.packets_since(since);
    packets.iter().filter(|packet| packet["dst"] == address).map(ToString::to_string).collect()
}

#[track_caller]
pub(crate) fn nothing_to(rig: &Rig, since: Mark, address: &str) {
    assert_eq!(packets_to(rig, since, address), [] as [String; 0], "{address}");
}

/// Nothing arrived since then but questions to this resolver.
#[track_caller]
pub(crate) fn only_questions_to(rig: &Rig, since: Mark, resolver: &str) {
    let packets = rig.world.packets_since(since);
    let strange: Vec<_> = packets.iter().filter(|one| one["dst"] != resolver || one["dport"] != 53).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

/// The client as each of those whom the same rules bind.
#[track_caller]
pub(crate) fn everybody(guest: &RunningBox, args: &[&str]) -> [(&'static str, Done); 3] {
    [
        ("the session", guest.client_as_session(args)),
        ("the agent", guest.client(AGENT, args)),
        ("root", guest.client(ROOT, args)),
    ]
}

/// Gets through from the box's network while nothing stops it.
#[track_caller]
pub(crate) fn gets_through(rig: &Rig, args: &[&str]) -> String {
    rig.outside(args).expect(&args.join(" "))
}

/// Of everybody nobody gets through, and each is told so at once: a refusal, not a time-out.
#[track_caller]
pub(crate) fn refused_fast(guest: &RunningBox, args: &[&str]) {
    all_refused_fast(guest, [args]);
}

/// The same of several attempts.
#[track_caller]
pub(crate) fn all_refused_fast<'a, A: AsRef<[&'a str]>>(
    guest: &RunningBox,
    attempts: impl IntoIterator<Item = A>,
) {
    let words = |attempt: A| attempt.as_ref().iter().map(|&word| word.to_owned()).collect();
    let attempts: Vec<Vec<String>> = attempts.into_iter().map(words).collect();
    for (who, user) in [("the session", None), ("the agent", Some(AGENT)), ("root", Some(ROOT))] {
        for (attempt, done) in attempts.iter().zip(guest.clients(user, &attempts)) {
            assert!(!done.ok(), "{who} {attempt:?}: {done:?}");
            assert!(!done.both().contains("TimeoutError"), "{who} {attempt:?} waits in vain: {done:?}");
        }
    }
}

/// An HTTP request, for `tcp ADDRESS 80 …`, which adds the name.
pub(crate) const GET: &str = "GET /leak HTTP/1.0\r\n\r\n";

/// Looks until it is so; for what needs longer than the rig's own patience, such as a lifetime that ends.
#[track_caller]
pub(crate) fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
    }
}

/// A program of python in the box.
pub(crate) fn python(guest: &RunningBox, user: &str, program: &str) -> Done {
    guest.exec_program(user, &["python3", "-c", program])
}

/// The same in the box's network, where nothing confines it.
pub(crate) fn python_outside(rig: &Rig, program: &str) -> Done {
    let path = rig.file("outside.py", program);
    rig.inside(&format!("python3 {}", path.display()))
}

/// The elements of the firewall's set as the kernel lists them: (address, port, seconds left).
pub(crate) fn open_in_the_kernel(rig: &Rig, set: &str) -> Vec<(String, u64, u64)> {
    let listed = rig.inside(&format!("nft -j list set inet innkeeper {set}")).expect("the set");
    let json: Value = serde_json::from_str(&listed).unwrap();
    let entry = json["nftables"].as_array().unwrap().iter().find(|one| !one["set"].is_null()).unwrap();
    let elements = entry["set"]["elem"].as_array().cloned().unwrap_or_default();
    let parts = |one: &Value| {
        let pair = &one["elem"]["val"]["concat"];
        (
            pair[0].as_str().unwrap().to_owned(),
            pair[1].as_u64().unwrap(),
            one["elem"]["expires"].as_u64().unwrap(),
        )
    };
    elements.iter().map(parts).collect()
}

//! The worker `innkeeper dns`, as the built binary, between clients, an upstream and PID 1 that the test plays.

#[cfg(test)]
#[path = "support/dns_world.rs"]
mod dns_world;
#[cfg(test)]
#[path = "support/fake_upstream.rs"]
mod fake_upstream;

use std::net::{IpAddr, TcpStream};
use std::sync::mpsc;

use dns_world::{
    SECOND, SERVER, Sockets, UPSTREAM, addresses, ask, ask_tcp, enter_namespace, extended_error, let_expire,
    policy, question, send, send_bytes,
};
use fake_upstream::{AUTHORITY, EVIL, Forgery, Say, Upstream, a, aaaa, cname};
use hickory_resolver::proto::op::{OpCode, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use innkeeper::dns::protocol::{Admitted, FromWorker, LastGood, ToWorker};

const OK: [u8; 4] = [192, 0, 2, 1];

fn ip(address: [u8; 4]) -> Vec<IpAddr> {
    vec![address.into()]
}

macro_rules! in_namespace {
    () => {
        if !enter_namespace() {
            return;
        }
    };
}

#[test]
fn t01_t17_t24_only_listed_names_leave() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("ok.test", OK, 60);
    upstream.a("deep.in.wild.test", OK, 60);
    let _warden = sockets.start_worker(&["ok.test", "*.wild.test", "!bad.wild.test"], &[UPSTREAM], false);
    for allowed in ["ok.test", "oK.tEsT", "ok.test.", "deep.in.wild.test"] {
        assert_eq!(addresses(&ask(allowed, RecordType::A)), ip(OK), "{allowed}");
    }
    let denied = [
        "726f6f743a783a303a30.ok.test",
        "notok.test",
        "ok.test.evil.test",
        "wild.test",
        "test",
        "secret123",
        "bad.wild.test",
        "ok.test.ns.svc.cluster.local",
    ];
    for name in denied {
        let reply = ask(name, RecordType::A);
        assert_eq!(reply.response_code, ResponseCode::NXDomain, "{name}");
        assert_eq!(reply.authorities.len(), 1, "{name}");
        assert!(
            extended_error(&reply).is_some_and(|(code, text)| code == 15 && text.contains(name)),
            "{name}"
        );
        assert_eq!(ask_tcp(&question(name, RecordType::A)).response_code, ResponseCode::NXDomain);
    }
    let seen: Vec<String> = upstream.log().into_iter().map(|asked| asked.name).collect();
    assert!(seen.iter().all(|name| name == "ok.test." || name == "deep.in.wild.test."), "{seen:?}");
}

#[test]
fn t02_only_addresses_are_asked_for_upstream() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.say("ok.test", Say::Records(vec![a("ok.test", OK, 60), aaaa("ok.test", "2001:db8::1", 60)]));
    let _warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], true);
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
    assert_eq!(addresses(&ask("ok.test", RecordType::AAAA)), ["2001:db8::1".parse::<IpAddr>().unwrap()]);
    for kind in [16, 10, 255, 2, 15, 33, 5, 64, 65, 65280] {
        let reply = ask("ok.test", RecordType::from(kind));
        assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, 0), "type {kind}");
    }
    let mut request = question("ok.test", RecordType::A);
    request.metadata.op_code = OpCode::Notify;
    assert_eq!(send(&request).reply().response_code, ResponseCode::NotImp);
    let mut request = question("ok.test", RecordType::A);
    request.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(send(&request).reply().response_code, ResponseCode::Refused);
    let mut request = question("ok.test", RecordType::A);
    request.add_query(request.queries[0].clone());
    assert_eq!(send(&request).reply().response_code, ResponseCode::FormErr);
    for asked in upstream.log() {
        assert!(matches!(asked.kind, RecordType::A | RecordType::AAAA), "{asked:?}");
    }
}

#[test]
fn nothing_of_the_clients_packet_goes_upstream() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("x.wild.test", OK, 60);
    let _warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    let mut request = question("X.wild.test", RecordType::A);
    request.metadata.id = 0x5345;
    let option = hickory_resolver::proto::rr::rdata::opt::EdnsOption::Unknown(65001, b"stolen".to_vec());
    request.edns.as_mut().unwrap().options_mut().insert(option);
    request.add_additional(a("stolen.test", [6; 4], 1));
    assert_eq!(addresses(&send(&request).reply()), ip(OK));
    let log = upstream.log();
    assert_eq!(log.len(), 1);
    let sent = hickory_resolver::proto::op::Message::from_vec(&log[0].bytes).unwrap();
    assert_eq!(sent.queries[0].name().to_ascii().to_ascii_lowercase(), "x.wild.test.");
    assert!(sent.additionals.is_empty() && sent.answers.is_empty() && sent.authorities.is_empty());
    assert!(sent.edns.is_none_or(|edns| edns.options().as_ref().is_empty()));
    assert!(!log[0].bytes.windows(6).any(|window| window == b"stolen"));
}

#[test]
fn t22_the_answer_waits_for_the_admission() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("x.wild.test", OK, 60);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    warden.admit(|_| None);
    let waiting = send(&question("x.wild.test", RecordType::A));
    let learned = warden.await_frame("learned", |frame| match frame {
        FromWorker::Learned(learned) => Some(learned.clone()),
        _ => None,
    });
    assert_eq!((learned.addresses, learned.ttl_s, learned.stale), (ip(OK), 60, false));
    // Many questions that need no admission overtake: the worker has had its chance to answer the first.
    for _ in 0..200 {
        assert_eq!(ask("evil.test", RecordType::A).response_code, ResponseCode::NXDomain);
    }
    assert!(waiting.has_no_reply_yet());
    let answer = Admitted { id: learned.id, addresses: ip(OK) };
    warden.send(&ToWorker::Admitted(answer));
    let reply = waiting.reply();
    assert_eq!(addresses(&reply), ip(OK));
    assert!(reply.answers[0].ttl <= 60);
}

#[test]
fn t08_refused_addresses_are_not_answered() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    let private = vec![
        a("x.wild.test", [10, 0, 0, 5], 0),
        a("x.wild.test", OK, 0),
        a("x.wild.test", [127, 0, 0, 1], 0),
    ];
    upstream.say("x.wild.test", Say::Records(private.clone()));
    upstream.say("y.wild.test", Say::Records(vec![a("y.wild.test", [10, 0, 0, 5], 0)]));
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    assert_eq!(addresses(&ask("x.wild.test", RecordType::A)).len(), 3);
    let warden = {
        drop(warden);
        sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false)
    };
    // PID 1 admits the public one, and one that nobody asked for.
    warden.admit(|learned| {
        let mut admitted: Vec<IpAddr> =
            learned.addresses.iter().copied().filter(|a| *a == IpAddr::from(OK)).collect();
        admitted.push([6, 6, 6, 6].into());
        Some(admitted)
    });
    assert_eq!(addresses(&ask("x.wild.test", RecordType::A)), ip(OK));
    let reply = ask("y.wild.test", RecordType::A);
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NXDomain, 0));
    assert!(extended_error(&reply).is_some_and(|(_, text)| text.contains("address policy")));
}

#[test]
fn t10_an_alias_may_lead_anywhere_but_its_target_is_not_listed() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.say("ok.test", Say::Records(vec![cname("ok.test", "t.evil.test", 9), a("t.evil.test", OK, 60)]));
    upstream.say("far.test", Say::Records(vec![cname("far.test", "u.evil.test", 9)]));
    upstream.a("u.evil.test", [192, 0, 2, 2], 60);
    upstream.say(
        "loop.test",
        Say::Records(vec![cname("loop.test", "b.test", 9), cname("b.test", "loop.test", 9)]),
    );
    upstream.say("turn.test", Say::Records(vec![cname("turn.test", "back.test", 9)]));
    upstream.say("back.test", Say::Records(vec![cname("back.test", "turn.test", 9)]));
    let rules = ["ok.test", "far.test", "loop.test", "turn.test"];
    let warden = sockets.start_worker(&rules, &[UPSTREAM], false);
    let reply = ask("ok.test", RecordType::A);
    assert_eq!(addresses(&reply), ip(OK));
    assert_eq!(reply.answers[0].name, fake_upstream::name("ok.test"));
    assert!(reply.answers[0].ttl <= 9);
    assert_eq!(addresses(&ask("far.test", RecordType::A)), ip([192, 0, 2, 2]));
    assert_eq!(ask("t.evil.test", RecordType::A).response_code, ResponseCode::NXDomain);
    assert_eq!(upstream.count("t.evil.test", RecordType::A), 0);
    for name in ["loop.test", "turn.test"] {
        assert_eq!(ask(name, RecordType::A).response_code, ResponseCode::ServFail, "{name}");
    }
    assert!(warden.learned("t.evil.test").is_empty());
}

#[test]
fn t13_ttl_0_is_answered_every_time_and_bounded() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("zero.test", OK, 0);
    upstream.a("day.test", OK, 86_400);
    let warden = sockets.start_worker(&["zero.test", "day.test"], &[UPSTREAM], false);
    for _ in 0..10 {
        let reply = ask("zero.test", RecordType::A);
        assert_eq!(addresses(&reply), ip(OK));
        assert!((1..=5).contains(&reply.answers[0].ttl));
    }
    assert!(ask("day.test", RecordType::A).answers[0].ttl <= 300);
    assert!(warden.learned("zero.test").iter().all(|learned| learned.ttl_s == 5));
    assert!(warden.learned("day.test").iter().all(|learned| learned.ttl_s == 300));
}

#[test]
fn truncated_answers_come_by_tcp() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    let many: Vec<_> = (0..60).map(|i| a("ok.test", [192, 0, 2, i], 60)).collect();
    upstream.say("ok.test", Say::Truncated(many));
    let _warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    assert_eq!(addresses(&ask("ok.test", RecordType::A)).len(), 60);
    assert!(upstream.log().iter().any(|asked| asked.tcp));
    // And to a client without EDNS they don't fit either.
    let mut request = question("ok.test", RecordType::A);
    request.edns = None;
    let reply = send(&request).reply();
    assert!(reply.truncation && reply.edns.is_none());
    assert_eq!(addresses(&ask_tcp(&request)).len(), 60);
}

#[test]
fn f12_an_upstream_that_speaks_tcp_only_is_used() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start_with(UPSTREAM, false), Sockets::open());
    upstream.a("ok.test", OK, 60);
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    warden.await_primed(1);
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
}

#[test]
fn fifty_clients_ask_and_the_upstream_is_asked_once() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.say("x.wild.test", Say::Held(vec![a("x.wild.test", OK, 60)]));
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    let clients: Vec<_> = (0..50).map(|_| send(&question("x.wild.test", RecordType::A))).collect();
    assert_eq!(ask("evil.test", RecordType::A).response_code, ResponseCode::NXDomain);
    upstream.await_question("x.wild.test");
    upstream.release("x.wild.test");
    for client in clients {
        assert_eq!(addresses(&client.reply()), ip(OK));
    }
    assert_eq!(upstream.count("x.wild.test", RecordType::A), 1);
    assert_eq!(warden.learned("x.wild.test").len(), 1);
}

#[test]
fn f03_a_slow_name_holds_nobody_up() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.say("slow.wild.test", Say::Nothing);
    upstream.a("fast.wild.test", OK, 60);
    let _warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    let slow = send(&question("slow.wild.test", RecordType::A));
    upstream.await_question("slow.wild.test");
    assert_eq!(addresses(&ask("fast.wild.test", RecordType::A)), ip(OK));
    assert!(slow.has_no_reply_yet());
    let reply = slow.reply();
    assert_eq!(reply.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&reply).map(|(code, _)| code), Some(22));
}

#[test]
fn another_upstream_steps_in() {
    in_namespace!();
    let (first, second, sockets) = (Upstream::start(UPSTREAM), Upstream::start(SECOND), Sockets::open());
    first.say("silent.test", Say::Nothing);
    first.say("broken.test", Say::Code(ResponseCode::ServFail));
    first.a("ok.test", OK, 60);
    for name in ["silent.test", "broken.test", "ok.test", "late.wild.test"] {
        second.a(name, [192, 0, 2, 2], 60);
    }
    let warden = sockets.start_worker(
        &["silent.test", "broken.test", "ok.test", "*.wild.test"],
        &[UPSTREAM, SECOND],
        false,
    );
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
    for name in ["silent.test", "broken.test"] {
        assert_eq!(addresses(&ask(name, RecordType::A)), ip([192, 0, 2, 2]), "{name}");
    }
    drop(first);
    assert_eq!(addresses(&ask("late.wild.test", RecordType::A)), ip([192, 0, 2, 2]));
    let sick = warden.await_frame("health", |frame| match frame {
        FromWorker::Health(health) => health.upstreams.iter().find(|upstream| !upstream.healthy).cloned(),
        _ => None,
    });
    assert_eq!(sick.server.to_string(), UPSTREAM);
}

#[test]
fn exact_names_are_resolved_before_anybody_asks() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    let names: Vec<String> = (0..200).map(|i| format!("n{i}.test")).collect();
    for name in &names {
        upstream.say(name, Say::Records(vec![a(name, OK, 60), aaaa(name, "2001:db8::1", 60)]));
    }
    upstream.say("gone.test", Say::Code(ResponseCode::NXDomain));
    let mut rules: Vec<&str> = names.iter().map(String::as_str).collect();
    rules.extend(["gone.test", "*.wild.test", "keys.test by=broker"]);
    let warden = sockets.start_worker(&rules, &[UPSTREAM], true);
    warden.await_primed(1);
    for name in &names {
        assert_eq!(warden.learned(name).len(), 2, "{name}");
    }
    warden.await_frame("failed", |frame| match frame {
        FromWorker::Failed { name, .. } if name.as_str() == "gone.test" => Some(()),
        _ => None,
    });
    let before = upstream.log().len();
    assert_eq!(addresses(&ask("n7.test", RecordType::A)), ip(OK));
    assert_eq!(upstream.log().len(), before);
    assert_eq!(upstream.count("keys.test", RecordType::A), 0);
}

#[test]
fn f01_names_work_when_the_upstream_comes_back() {
    in_namespace!();
    let sockets = Sockets::open();
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    warden.await_primed(1);
    assert_eq!(ask("ok.test", RecordType::A).response_code, ResponseCode::ServFail);
    let upstream = Upstream::start(UPSTREAM);
    upstream.a("ok.test", OK, 60);
    // Nobody asks: the refresh finds it.
    warden.await_frame("learned", |frame| matches!(frame, FromWorker::Learned(_)).then_some(()));
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
}

#[test]
fn stale_addresses_stand_in_when_upstreams_fail() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("x.wild.test", OK, 0);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    let reply = ask("x.wild.test", RecordType::A);
    assert_eq!((addresses(&reply), extended_error(&reply)), (ip(OK), None));
    drop(upstream);
    let_expire(&reply);
    let reply = ask("x.wild.test", RecordType::A);
    assert_eq!(addresses(&reply), ip(OK));
    assert_eq!(extended_error(&reply).map(|(code, _)| code), Some(3));
    assert!(reply.answers[0].ttl <= 30);
    let last = warden.learned("x.wild.test").pop().unwrap();
    assert!(last.stale && last.ttl_s == 30);
}

#[test]
fn without_pid_1_there_is_no_answer_but_an_error() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("x.wild.test", OK, 60);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    warden.admit(|_| None);
    let reply = ask("x.wild.test", RecordType::A);
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::ServFail, 0));
    assert!(extended_error(&reply).is_some_and(|(_, text)| text.contains("firewall")));
    warden.admit(|learned| Some(learned.addresses.clone()));
    assert_eq!(addresses(&ask("x.wild.test", RecordType::A)), ip(OK));
}

#[test]
fn a_stuck_pid_1_does_not_stop_denials() {
    in_namespace!();
    let sockets = Sockets::open();
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    let (blocked, block) = mpsc::channel::<()>();
    let block = std::sync::Mutex::new(block);
    warden.admit(move |_| {
        block.lock().unwrap().recv().ok();
        None
    });
    let upstream = Upstream::start(UPSTREAM);
    upstream.a("x.wild.test", OK, 60);
    let stuck = send(&question("x.wild.test", RecordType::A));
    upstream.await_question("x.wild.test");
    for i in 0..3000 {
        assert_eq!(ask(&format!("n{i}.evil.test"), RecordType::A).response_code, ResponseCode::NXDomain);
    }
    drop(blocked);
    assert_eq!(stuck.reply().response_code, ResponseCode::ServFail);
}

#[test]
fn denials_are_counted_and_have_an_owner() {
    in_namespace!();
    let sockets = Sockets::open();
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    for _ in 0..500 {
        ask("evil.test", RecordType::A);
    }
    let denials = warden.await_frames("500 denials", |frames| {
        let denial = |frame: &FromWorker| {
            if let FromWorker::Denied(denial) = frame { Some(denial.clone()) } else { None }
        };
        let denials: Vec<_> = frames.iter().filter_map(denial).collect();
        (denials.iter().map(|denial| denial.count).sum::<u64>() == 500).then_some(denials)
    });
    assert!(denials.len() < 100 && denials.iter().all(|denial| denial.what == "evil.test"), "{denials:?}");
    assert_eq!(denials[0].uid, Some(rustix::process::getuid().as_raw()));
    assert!(denials[0].inode.is_some());
}

#[test]
fn a_new_policy_holds_at_once() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("old.test", OK, 60);
    upstream.a("new.test", OK, 60);
    let warden = sockets.start_worker(&["old.test"], &[UPSTREAM], false);
    assert_eq!(addresses(&ask("old.test", RecordType::A)), ip(OK));
    assert_eq!(ask("new.test", RecordType::A).response_code, ResponseCode::NXDomain);
    warden.send(&ToWorker::Policy(policy(2, &["new.test"])));
    warden.await_primed(2);
    assert_eq!(addresses(&ask("new.test", RecordType::A)), ip(OK));
    assert_eq!(ask("old.test", RecordType::A).response_code, ResponseCode::NXDomain);
}

#[test]
fn t83_a_killed_worker_loses_no_question() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("ok.test", OK, 60);
    let mut warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
    warden.kill();
    let by_udp = send(&question("ok.test", RecordType::A));
    let by_tcp = TcpStream::connect(SERVER).unwrap();
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    assert_eq!(addresses(&by_udp.reply()), ip(OK));
    drop(by_tcp);
    assert_eq!(warden.abandon(), Some(0));
}

#[test]
fn hostile_packets_change_nothing() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("ok.test", OK, 60);
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    warden.await_primed(1);
    let before = upstream.log().len();
    let good = question("evil.test", RecordType::A).to_vec().unwrap();
    for cut in 0..good.len() {
        send_bytes(&good[..cut]);
        for value in [0, 0xc0, 0xff] {
            let mut changed = good.clone();
            changed[cut] = value;
            send_bytes(&changed);
        }
    }
    send_bytes(&[0xff; 4000]);
    let mut pointer = good[..12].to_vec();
    pointer.extend([0xc0, 12, 0, 1, 0, 1]);
    send_bytes(&pointer);
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
    assert_eq!(upstream.log().len(), before);
}

#[test]
fn t20_idle_connections_keep_nobody_out() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("ok.test", OK, 60);
    let _warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    let idle: Vec<_> = (0..600).map(|_| TcpStream::connect(SERVER).unwrap()).collect();
    assert_eq!(addresses(&ask_tcp(&question("ok.test", RecordType::A))), ip(OK));
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
    drop(idle);
}

#[test]
fn f04_a_lie_does_not_cost_the_good_addresses() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("x.wild.test", OK, 0);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    let reply = ask("x.wild.test", RecordType::A);
    assert_eq!(addresses(&reply), ip(OK));
    upstream.say("x.wild.test", Say::Code(ResponseCode::Refused));
    let_expire(&reply);
    assert_eq!(addresses(&ask("x.wild.test", RecordType::A)), ip(OK));
    assert!(warden.learned("x.wild.test").last().is_some_and(|learned| learned.stale));
}

#[test]
fn f04_foreign_records_in_an_answer_do_not_pass() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    let evil = [6, 6, 6, 6];
    upstream.say("x.wild.test", Say::Records(vec![a("x.wild.test", OK, 60), a("evil.test", evil, 60)]));
    upstream.say("y.wild.test", Say::Records(vec![a("evil.test", evil, 60)]));
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    assert_eq!(addresses(&ask("x.wild.test", RecordType::A)), ip(OK));
    assert!(ask("y.wild.test", RecordType::A).answers.is_empty());
    assert_eq!(warden.learned("x.wild.test")[0].addresses, ip(OK));
    assert!(warden.learned("y.wild.test").is_empty());
}

#[test]
fn broken_messages_by_tcp_are_answered_or_dropped() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("ok.test", OK, 60);
    let _warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    let good = question("ok.test", RecordType::A).to_vec().unwrap();
    for cut in 0..good.len() {
        let mut stream = TcpStream::connect(SERVER).unwrap();
        std::io::Write::write_all(&mut stream, &fake_upstream::framed(&good[..cut])).unwrap();
        match fake_upstream::read_framed(&mut stream) {
            Some(reply) => assert_eq!(reply[3] & 0xf, 1, "FORMERR at {cut}"),
            None => assert!(cut < 12, "no answer at {cut}"),
        }
    }
    assert_eq!(addresses(&ask_tcp(&question("ok.test", RecordType::A))), ip(OK));
}

#[test]
fn a_flood_of_slow_names_is_bounded_and_listed_names_work_on() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("ok.test", OK, 60);
    let warden = sockets.start_worker(&["ok.test", "*.wild.test"], &[UPSTREAM], false);
    warden.await_primed(1);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(SERVER).unwrap();
    for i in 0..20_000 {
        socket.send(&question(&format!("n{i}.wild.test"), RecordType::A).to_vec().unwrap()).unwrap();
    }
    // By TCP: the flood fills the UDP socket's buffer, and a question lost there would have to be sent again.
    assert_eq!(addresses(&ask_tcp(&question("ok.test", RecordType::A))), ip(OK));
    assert!(upstream.log().len() < 2000, "{}", upstream.log().len());
    assert!(warden.memory_kib() < 64 << 10, "{} KiB", warden.memory_kib());
}

#[test]
fn malformed_rules_end_the_worker() {
    in_namespace!();
    let sockets = Sockets::open();
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    assert_eq!(ask("evil.test", RecordType::A).response_code, ResponseCode::NXDomain);
    warden.send(&ToWorker::Policy(policy(2, &["ok.test", "!evil.test nonsense"])));
    assert_eq!(warden.wait(), Some(70));
}

#[test]
fn f11_t202_a_resolver_that_forwards_to_us_is_named_and_not_fed() {
    in_namespace!();
    let sockets = Sockets::open();
    // Docker's resolver whose own traffic is redirected to the worker: it passes every question on, and back.
    let forwarder = std::net::UdpSocket::bind("127.0.0.11:53").unwrap();
    let forwarded = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = forwarded.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = forwarder.recv_from(&mut buffer) {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let outside = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            outside.send_to(&buffer[..length], SERVER).unwrap();
            let length = outside.recv(&mut buffer).unwrap();
            forwarder.send_to(&buffer[..length], client).unwrap();
        }
    });
    let warden = sockets.start_worker(&["ok.test"], &["127.0.0.11:53"], false);
    let cause = warden.await_frame("failed", |frame| match frame {
        FromWorker::Failed { cause, .. } => Some(cause.clone()),
        _ => None,
    });
    assert!(cause.contains("back to us"), "{cause}");
    assert_eq!(ask("ok.test", RecordType::A).response_code, ResponseCode::ServFail);
    assert!(forwarded.load(std::sync::atomic::Ordering::SeqCst) < 10);
}

#[test]
fn f12_an_upstream_from_before_edns_and_one_by_ipv6_are_understood() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start("[::1]:53"), Sockets::open());
    upstream.say("ok.test", Say::WithoutEdns(vec![a("ok.test", OK, 60)]));
    let _warden = sockets.start_worker(&["ok.test"], &["[::1]:53"], false);
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
}

#[test]
fn t15_the_letters_of_the_client_do_not_leave() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    let names: Vec<String> = (0..20).map(|i| format!("AbCdEfGhIjKlMnOp{i}.WiLd.TeSt")).collect();
    names.iter().for_each(|name| upstream.a(&name.to_ascii_lowercase(), OK, 60));
    let _warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    for name in &names {
        let reply = ask(name, RecordType::A);
        assert_eq!(addresses(&reply), ip(OK), "{name}");
        assert_eq!(reply.queries[0].name().to_ascii(), format!("{name}."), "the client's own letters");
    }
    let log = upstream.log();
    assert_eq!(log.len(), names.len(), "{log:?}");
    for asked in &log {
        assert!(!names.iter().any(|name| asked.wire == format!("{name}.")), "{asked:?}");
    }
    // 0x20: random ones, other for every question.
    let pattern = |wire: &str| wire.bytes().take(16).map(|b| b.is_ascii_uppercase()).collect::<Vec<_>>();
    let patterns: std::collections::HashSet<_> = log.iter().map(|asked| pattern(&asked.wire)).collect();
    assert!(patterns.len() >= 18, "{}", patterns.len());
}

#[test]
fn ids_and_ports_of_questions_are_no_series() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.say("*", Say::Fresh);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    for i in 0..200 {
        assert_eq!(addresses(&ask(&format!("n{i}.wild.test"), RecordType::A)).len(), 1);
    }
    drop(warden);
    let log = upstream.log();
    assert_eq!(log.len(), 200);
    let distinct = |values: Vec<u16>| {
        let steps = values.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 8).count();
        assert!(steps < 10, "neighbours in a row: {steps}");
        values.into_iter().collect::<std::collections::HashSet<_>>().len()
    };
    // Of 200 drawn from some 60,000 a third of one meets another on average.
    assert!(distinct(log.iter().map(|asked| asked.port).collect()) >= 195);
    assert!(
        distinct(log.iter().map(|asked| u16::from_be_bytes([asked.bytes[0], asked.bytes[1]])).collect())
            >= 195
    );
}

#[test]
fn f04_forged_answers_are_not_believed() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    let cases = [
        Forgery::Id,
        Forgery::Question,
        Forgery::Letters,
        Forgery::QuestionCount,
        Forgery::Short,
        Forgery::Garbage,
    ];
    let of = |forgery: Forgery| format!("{forgery:?}.wild.test").to_ascii_lowercase();
    for forgery in cases.into_iter().chain([Forgery::Perfect]) {
        upstream.say(&of(forgery), Say::After(forgery, vec![a(&of(forgery), OK, 60)]));
    }
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    // The same forgery without a fault is believed: it arrives first, and nothing else is wrong with it.
    assert_eq!(addresses(&ask(&of(Forgery::Perfect), RecordType::A)), ip(EVIL));
    for forgery in cases {
        assert_eq!(addresses(&ask(&of(forgery), RecordType::A)), ip(OK), "{forgery:?}");
        assert!(
            warden.learned(&of(forgery)).iter().all(|learned| learned.addresses == ip(OK)),
            "{forgery:?}"
        );
    }
}

#[test]
fn an_upstream_that_changes_letters_is_used_and_named() {
    in_namespace!();
    // Without TCP, by which the true answer would come.
    let (upstream, sockets) = (Upstream::start_by(UPSTREAM, true, false), Sockets::open());
    upstream.lower();
    upstream.say("*", Say::Fresh);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    for i in 0..6 {
        assert_eq!(addresses(&ask(&format!("some-name-{i}.wild.test"), RecordType::A)).len(), 1);
    }
    let health = warden.await_frame("health", |frame| match frame {
        FromWorker::Health(health) => health.upstreams.iter().find(|u| u.note.is_some()).cloned(),
        _ => None,
    });
    assert!(health.healthy && health.note.is_some_and(|note| note.contains("letters")));
    let last = upstream.log().pop().unwrap();
    assert_eq!(last.wire, last.name);
}

#[test]
fn f03_half_of_the_packets_may_be_lost() {
    in_namespace!();
    let (first, second, sockets) = (Upstream::start(UPSTREAM), Upstream::start(SECOND), Sockets::open());
    for upstream in [&first, &second] {
        upstream.lose_every_second();
        upstream.say("*", Say::Fresh);
    }
    let _warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM, SECOND], false);
    let clients: Vec<_> =
        (0..40).map(|i| send(&question(&format!("n{i}.wild.test"), RecordType::A))).collect();
    for client in clients {
        assert_eq!(addresses(&client.reply()).len(), 1);
    }
}

#[test]
fn f03_many_slow_names_hold_nobody_up() {
    in_namespace!();
    let (first, second, sockets) = (Upstream::start(UPSTREAM), Upstream::start(SECOND), Sockets::open());
    for upstream in [&first, &second] {
        (0..60).for_each(|i| upstream.say(&format!("slow{i}.wild.test"), Say::Nothing));
        upstream.say("*", Say::Fresh);
    }
    let _warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM, SECOND], false);
    let slow: Vec<_> =
        (0..60).map(|i| send(&question(&format!("slow{i}.wild.test"), RecordType::A))).collect();
    first.await_question("slow59.wild.test");
    for i in 0..20 {
        assert_eq!(addresses(&ask(&format!("fast{i}.wild.test"), RecordType::A)).len(), 1);
    }
    assert!(slow.iter().all(dns_world::Waiting::has_no_reply_yet));
}

#[test]
fn f12_none_and_five_nameservers() {
    in_namespace!();
    let sockets = Sockets::open();
    let warden = sockets.start_worker(&["ok.test"], &[], false);
    warden.await_primed(1);
    let reply = ask("ok.test", RecordType::A);
    assert_eq!(reply.response_code, ResponseCode::ServFail);
    assert!(extended_error(&reply).is_some_and(|(_, text)| text.contains("no upstream")));
    assert_eq!(ask("evil.test", RecordType::A).response_code, ResponseCode::NXDomain);
    drop(warden);
    let upstream = Upstream::start(SECOND);
    upstream.a("ok.test", OK, 60);
    let five = ["203.0.113.1:53", "203.0.113.2:53", "203.0.113.3:53", "203.0.113.4:53", SECOND];
    let _warden = sockets.start_worker(&["ok.test"], &five, false);
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
}

#[test]
fn t22_every_answered_address_was_admitted_first() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.say("*", Say::Fresh);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    // What PID 1 admits is written down before the worker hears of it.
    let admitted = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    let book = admitted.clone();
    warden.admit(move |learned| {
        book.lock().unwrap().extend(learned.addresses.iter().copied());
        Some(learned.addresses.clone())
    });
    let clients: Vec<_> =
        (0..500).map(|i| send(&question(&format!("n{i}.wild.test"), RecordType::A))).collect();
    let mut answered = std::collections::HashSet::new();
    for client in clients {
        let found = addresses(&client.reply());
        assert_eq!(found.len(), 1);
        assert!(admitted.lock().unwrap().contains(&found[0]), "{found:?} was not admitted");
        answered.insert(found[0]);
    }
    assert_eq!(answered.len(), 500, "every name has an address of its own");
}

#[test]
fn the_worker_answers_pings() {
    in_namespace!();
    let sockets = Sockets::open();
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    warden.send(&ToWorker::Ping);
    warden.await_frame("pong", |frame| matches!(frame, FromWorker::Pong).then_some(()));
}

#[test]
fn what_pid_1_closed_is_asked_for_again() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.say("*", Say::Fresh);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    let first = addresses(&ask("x.wild.test", RecordType::A));
    assert_eq!(addresses(&ask("x.wild.test", RecordType::A)), first, "known for the TTL's floor");
    addresses(&ask("y.wild.test", RecordType::A));
    let names = vec!["x.wild.test".to_owned().try_into().unwrap()];
    warden.send(&ToWorker::Forget { names });
    // The frame and a question race for the worker; who asks after the forgetting gets another address.
    warden.await_forgotten("x.wild.test", &first);
    assert_eq!(upstream.count("y.wild.test", RecordType::A), 1, "others stay known");
}

#[test]
fn an_admission_that_was_overtaken_is_asked_for_again() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("x.wild.test", OK, 60);
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    warden.admit(|_| None);
    let waiting = send(&question("x.wild.test", RecordType::A));
    let learned = |count: usize| {
        warden.await_frames("learned", |frames| {
            let of =
                |frame: &FromWorker| if let FromWorker::Learned(l) = frame { Some(l.clone()) } else { None };
            let all: Vec<_> = frames.iter().filter_map(of).collect();
            (all.len() == count).then(|| all[count - 1].clone())
        })
    };
    let first = learned(1);
    warden.send(&ToWorker::Forget { names: vec![first.name.clone()] });
    warden.send(&ToWorker::Admitted(Admitted { id: first.id, addresses: ip(OK) }));
    let second = learned(2);
    assert!(waiting.has_no_reply_yet());
    warden.send(&ToWorker::Admitted(Admitted { id: second.id, addresses: ip(OK) }));
    assert_eq!(addresses(&waiting.reply()), ip(OK));
    assert_eq!(upstream.count("x.wild.test", RecordType::A), 1);
}

#[test]
fn f19_f24_after_lost_time_every_name_is_asked_again() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("ok.test", OK, 86_400);
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    warden.await_primed(1);
    assert_eq!(upstream.count("ok.test", RecordType::A), 1);
    upstream.a("ok.test", [192, 0, 2, 9], 86_400);
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip(OK));
    warden.send(&ToWorker::Refresh { ipv6: true });
    // Nobody asks.
    warden.await_frame("the new address", |frame| match frame {
        FromWorker::Learned(learned) => (learned.addresses == ip([192, 0, 2, 9])).then_some(()),
        _ => None,
    });
    assert_eq!(addresses(&ask("ok.test", RecordType::A)), ip([192, 0, 2, 9]));
    // And IPv6 came with it (F24).
    upstream.say("ok.test", Say::Records(vec![aaaa("ok.test", "2001:db8::1", 60)]));
    let expected = ["2001:db8::1".parse::<IpAddr>().unwrap()];
    warden.send(&ToWorker::Refresh { ipv6: true });
    warden.await_frame("the IPv6 address", |frame| match frame {
        FromWorker::Learned(learned) => (learned.addresses == expected).then_some(()),
        _ => None,
    });
    assert_eq!(addresses(&ask("ok.test", RecordType::AAAA)), expected);
}

#[test]
fn t83_f22_a_new_worker_knows_the_last_good_addresses() {
    in_namespace!();
    let sockets = Sockets::open();
    let known = |name: &str, ended_s| LastGood {
        name: name.to_owned().try_into().unwrap(),
        addresses: ip(OK),
        ended_s,
    };
    let known = [
        known("ok.test", 7200),
        known("x.wild.test", 60),
        known("old.wild.test", 7200),
        known("evil.test", 0),
    ];
    // Its upstreams are dead.
    let warden = sockets.start_worker_with(&["ok.test", "*.wild.test"], &[UPSTREAM], false, &known, None);
    for name in ["ok.test", "x.wild.test"] {
        let reply = ask(name, RecordType::A);
        assert_eq!(addresses(&reply), ip(OK), "{name}");
        assert_eq!(extended_error(&reply).map(|(code, _)| code), Some(3), "{name}");
        assert!(warden.learned(name).iter().all(|learned| learned.stale), "{name}: not without PID 1");
    }
    assert_eq!(ask("old.wild.test", RecordType::A).response_code, ResponseCode::ServFail);
    assert_eq!(ask("evil.test", RecordType::A).response_code, ResponseCode::NXDomain);
    drop(warden);
    // And PID 1 may refuse them now.
    let warden = sockets.start_worker_with(&["*.wild.test"], &[UPSTREAM], false, &known, None);
    warden.admit(|_| Some(Vec::new()));
    assert!(ask("x.wild.test", RecordType::A).answers.is_empty());
}

#[test]
fn a_refused_client_waits_until_pid_1_has_looked() {
    in_namespace!();
    let sockets = Sockets::open();
    let warden = sockets.start_worker(&["ok.test"], &[UPSTREAM], false);
    warden.look_by_hand();
    let waiting = send(&question("evil.test", RecordType::A));
    let denial = warden.await_frame("a denial with an id", |frame| match frame {
        FromWorker::Denied(denial) if denial.id.is_some() => Some(denial.clone()),
        _ => None,
    });
    assert_eq!((denial.what.as_str(), denial.count), ("evil.test", 1));
    assert!(denial.inode.is_some());
    // The same name again is not worth another wait, so it overtakes.
    assert_eq!(ask("evil.test", RecordType::A).response_code, ResponseCode::NXDomain);
    warden.send(&ToWorker::Attributed { id: denial.id.unwrap() });
    assert_eq!(waiting.reply().response_code, ResponseCode::NXDomain);
    // Whoever PID 1 forgets is answered all the same.
    assert_eq!(ask("other.evil.test", RecordType::A).response_code, ResponseCode::NXDomain);
}

#[test]
fn t20_a_flood_of_refused_names_costs_others_nothing() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start(UPSTREAM), Sockets::open());
    upstream.a("ok.test", OK, 60);
    upstream.say("*", Say::Fresh);
    let warden = sockets.start_worker(&["ok.test", "*.wild.test"], &[UPSTREAM], false);
    warden.await_primed(1);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flooding = stop.clone();
    let flood = std::thread::spawn(move || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(SERVER).unwrap();
        let mut sent = 0_u64;
        while !flooding.load(std::sync::atomic::Ordering::SeqCst) {
            let name = format!("n{sent}.evil.test");
            drop(socket.send(&question(&name, RecordType::A).to_vec().unwrap()));
            sent += 1;
        }
        sent
    });
    // By TCP: what UDP loses in a full buffer is asked again by every client, but not by this one.
    for i in 0..50 {
        assert_eq!(addresses(&ask_tcp(&question("ok.test", RecordType::A))), ip(OK));
        assert_eq!(addresses(&ask_tcp(&question(&format!("new{i}.wild.test"), RecordType::A))).len(), 1);
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let sent = flood.join().unwrap();
    assert!(sent > 1000, "{sent}");
    assert!(upstream.log().iter().all(|asked| !asked.name.contains("evil")));
    assert!(warden.memory_kib() < 32 << 10, "{} KiB", warden.memory_kib());
    let frames = warden.frames().iter().filter(|frame| matches!(frame, FromWorker::Denied(_))).count();
    assert!(frames < 300, "{frames}");
}

#[test]
fn an_upstream_by_tls_is_asked_if_it_proves_its_name_and_never_in_the_clear() {
    in_namespace!();
    let sockets = Sockets::open();
    let address = "203.0.113.53:853";
    let upstream = Upstream::start_tls(address);
    upstream.say("*", Say::Fresh);
    // On the same address, in the clear, on both ports: nobody may ask here.
    let clear = Upstream::start(UPSTREAM);
    clear.say("*", Say::Fresh);
    let clear_udp = std::net::UdpSocket::bind(address).unwrap();
    clear_udp.set_nonblocking(true).unwrap();
    let good = format!("tls://{address}#dns.test");
    let start = |server: &str, roots| {
        sockets.start_worker_with(&["ok.test", "*.wild.test"], &[server], false, &[], roots)
    };

    let warden = start(&good, Some(AUTHORITY));
    for i in 0..40 {
        assert_eq!(addresses(&ask(&format!("n{i}.wild.test"), RecordType::A)).len(), 1);
    }
    assert!(upstream.log().len() >= 40);
    drop(warden);

    let asked = upstream.log().len();
    let other = format!("tls://{address}#other.test");
    let cases = [(other.as_str(), Some(AUTHORITY)), (good.as_str(), Some("")), (good.as_str(), None)];
    for (server, roots) in cases {
        let warden = start(server, roots);
        let reply = ask("x.wild.test", RecordType::A);
        assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::ServFail, 0), "{server}");
        let note = warden.await_frame("health", |frame| match frame {
            FromWorker::Health(health) => health.upstreams[0].note.clone(),
            _ => None,
        });
        assert!(note.contains("certificate"), "{note}");
    }
    assert_eq!(upstream.log().len(), asked, "not a question without proof");
    assert!(clear.log().is_empty(), "{:?}", clear.log());
    assert!(clear_udp.recv(&mut [0; 512]).is_err());
}

#[test]
fn f04_an_answer_to_another_question_is_none_by_tcp_either() {
    in_namespace!();
    let (upstream, sockets) = (Upstream::start_with(UPSTREAM, false), Sockets::open());
    upstream.a("good.wild.test", OK, 60);
    upstream.say("x.wild.test", Say::Astray(vec![a("x.wild.test", OK, 60)]));
    upstream.say("gone.wild.test", Say::Astray(Vec::new()));
    let warden = sockets.start_worker(&["*.wild.test"], &[UPSTREAM], false);
    assert_eq!(addresses(&ask("good.wild.test", RecordType::A)), ip(OK));
    for name in ["x.wild.test", "gone.wild.test"] {
        assert_eq!(ask(name, RecordType::A).response_code, ResponseCode::ServFail, "{name}");
        assert!(upstream.count(name, RecordType::A) > 0 && warden.learned(name).is_empty(), "{name}");
    }
}

//! The control socket: open to everybody, answered by who asks, and never blocked by the agent.

use super::rig::{AGENT, BoxOptions, ROOT, Rig, RunningBox};

/// Talks to the socket as its own grammar is not meant.
const CLIENT: &str = r#"
import socket, sys
PATH = "/run/innkeeper/control.sock"
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(PATH)
    return s
def answer(s):
    data = b""
    try:
        while chunk := s.recv(65536): data += chunk
    except ConnectionError:
        pass
    return data.decode(errors="replace").strip() or "closed"
def ask(data):
    s = connect()
    try:
        s.sendall(data)
    except ConnectionError:
        pass
    return answer(s)
what = sys.argv[1]
if what == "ask":
    print(ask(sys.argv[2].encode() + b"\n"))
elif what == "raw":
    print(ask(eval(sys.argv[2])))
elif what == "slow":
    import time
    s, sent = connect(), 0
    try:
        for byte in b'{"op":"status"}' + b" " * 100:
            s.send(bytes([byte])); sent += 1
            s.settimeout(1)
            try:
                if not s.recv(1): break
            except TimeoutError: pass
        print("answered" if sent > 100 else "closed")
    except ConnectionError:
        print("closed")
elif what == "idle":
    open_ones = [connect() for _ in range(int(sys.argv[2]))]
    print("open", flush=True)
    sys.stdin.readline()
elif what == "panes":
    open_ones = []
    try:
        for _ in range(int(sys.argv[2])):
            s = connect(); s.sendall(b'{"op":"pane"}\n'); open_ones.append(s)
    except OSError:
        pass
    print("open", flush=True)
    sys.stdin.readline()
"#;

fn client(guest: &RunningBox, user: &str, args: &[&str]) -> String {
    guest
        .exec_program(user, &[&["python3", "-c", CLIENT], args].concat())
        .expect("the client")
        .trim()
        .to_owned()
}

#[test]
fn what_is_the_operators_is_refused_to_everybody_else() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    for (what, works) in [("reload", "policy generation 2"), ("rules", "table inet")] {
        let done = guest.innkeeper(&[what]);
        assert!(done.ok() && done.out.contains(works), "{what}: {done:?}");
        for user in [AGENT, "901", "65534"] {
            let refused = guest.exec_program(user, &["innkeeper", what]);
            assert_eq!(refused.code, Some(77), "{what} as {user}: {refused:?}");
            assert!(!refused.both().contains(works));
        }
        let refused = guest.as_session(&format!("innkeeper {what}"));
        assert_eq!(refused.code, Some(77), "{refused:?}");
        assert!(refused.err.contains("only the operator may do this"), "{refused:?}");
    }
    for op in [
        r#"{"op":"status"}"#,
        r#"{"op":"credential","host":"github.com"}"#,
        r#"{"op":"progress"}"#,
        r#"{"op":"pane"}"#,
    ] {
        for user in ["901", "902", "65534"] {
            let answer = client(&guest, user, &["ask", op]);
            assert!(answer.contains("\"refused\"") && !answer.contains("canary"), "{op} as {user}: {answer}");
        }
    }
    assert!(client(&guest, ROOT, &["ask", r#"{"op":"pane"}"#]).contains("refused"));
    assert_eq!(guest.status()["policy"]["generation"], 2, "nobody else has reloaded");
}

#[test]
fn what_is_no_request_gets_no_more_than_a_line() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    assert!(
        client(&guest, AGENT, &["ask", r#"{"op":"status"}"#]).contains("\"report\""),
        "a real one is answered"
    );
    for raw in [
        "b'x' * 1000000",
        "b'{\"op\":\"status\"' + b' ' * 5000 + b'}\\n'",
        "b'\\0' * 100 + b'\\n'",
        "b'\\xff\\xfe\\n'",
        "b'[' * 4000 + b'\\n'",
        "b'{\"op\":\"shutdown\"}\\n'",
        "b'{\"op\":\"status\",\"uid\":0}\\n'",
        "b'\\n'",
    ] {
        let answer = client(&guest, AGENT, &["raw", raw]);
        assert!(answer == "closed" || answer.contains("\"failed\""), "{raw}: {answer}");
        assert!(answer.len() < 1000, "{raw}: {answer}");
    }
    assert_eq!(client(&guest, AGENT, &["slow"]), "closed", "one who writes too slowly");
    assert_eq!(guest.status()["phase"], "ready");
}

#[test]
fn idle_connections_of_the_agent_do_not_keep_the_operator_out() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut idle = guest.spawn(AGENT, &["python3", "-c", CLIENT, "idle", "40"]);
    assert_eq!(idle.hear(), "open");
    let agents = guest.exec_program(AGENT, &["innkeeper", "status"]);
    assert!(agents.err.contains("too many connections"), "they do fill the agent's own places: {agents:?}");
    for _ in 0..5 {
        assert_eq!(guest.status()["phase"], "ready");
        guest.innkeeper(&["reload"]).expect("reload");
    }
    idle.say("end");
    super::until("the agent's places are free again", || {
        guest.exec_program(AGENT, &["innkeeper", "status"]).ok()
    });
}

#[test]
fn false_panes_cost_pid_1_nothing_and_do_not_take_the_session() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let before = guest.await_status("a session", |status| status["session"]["state"] == "running");
    let threads = || std::fs::read_dir(format!("/proc/{}/task", guest.pid())).unwrap().count();
    let few = threads();
    let mut panes = guest.spawn(AGENT, &["python3", "-c", CLIENT, "panes", "300"]);
    assert_eq!(panes.hear(), "open");
    let status = guest.status();
    assert!(threads() < few + 50, "{few} threads became {}", threads());
    assert_eq!(status["phase"], "ready");
    panes.say("end");
    let after = guest.await_status("a session", |status| status["session"]["state"] == "running");
    assert_eq!(after["session"]["claude_pid"], before["session"]["claude_pid"], "{}", guest.logs());
}

#[test]
fn what_the_agent_can_read_is_said() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let asked = guest.as_session("printf 'protocol=https\\nhost=github.com\\n\\n' | git credential fill");
    let forge = asked.out.contains(super::rig::GH_TOKEN);
    let peek = "import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(5); \
                s.connect(\"/run/innkeeper/control.sock\"); s.send(b\"{\\\"op\\\":\\\"pane\\\"}\\n\"); print(s.recv(65536))";
    let model = guest.as_session(&format!("python3 -c '{peek}'")).both().contains(super::rig::OAUTH_TOKEN);
    let status = guest.status();
    let said = |name: &str| {
        let secrets = status["secrets"].as_array().unwrap();
        secrets.iter().find(|secret| secret["name"] == name).unwrap()["agent_can_read"] == true
    };
    assert!(said("GH_TOKEN") || !forge, "GH_TOKEN");
    assert!(said("CLAUDE_CODE_OAUTH_TOKEN") || !model, "CLAUDE_CODE_OAUTH_TOKEN");
    let screen = guest.innkeeper(&["status"]).expect("status");
    for (name, read) in [("GH_TOKEN", forge), ("CLAUDE_CODE_OAUTH_TOKEN", model)] {
        let line = screen.lines().find(|line| line.contains("the agent can read")).unwrap_or_default();
        assert!(!read || line.contains(name), "{name}:\n{screen}");
    }
}

//! The guided tour of `./scripts/run --demo`: what it says is what the box does, on a network and without one.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
mod demo {
    use std::time::Instant;

    use crate::rig::{AGENT, BoxOptions, PATIENCE, Rig, RunningBox, run};

    fn tour(rig: &Rig, options: BoxOptions) -> (RunningBox, String) {
        let command = "/usr/local/bin/innkeeper\ntour\n--shell";
        let guest = rig.boot(&options.env("INNKEEPER_SESSION_COMMAND", command));
        guest.await_status("a session", |status| status["session"]["state"] == "running");
        let until = Instant::now() + PATIENCE;
        // What `docker exec` starts has the variables that `docker run -e` gave (T68): the tour would find them.
        let look = [
            "exec",
            "-e",
            "CLAUDE_CODE_OAUTH_TOKEN=",
            "-e",
            "GH_TOKEN=",
            "-u",
            AGENT,
            &guest.name,
            "tmux",
            "-S",
        ];
        let pane = ["/run/user/1000/tmux.sock", "capture-pane", "-p", "-J", "-S", "-", "-t", "claude:0.0"];
        loop {
            let screen = run("docker", &[&look[..], &pane].concat()).out;
            if screen.contains("A shell, for attempts") {
                return (guest, screen);
            }
            assert!(Instant::now() < until, "{screen}\n{}", guest.logs());
        }
    }

    fn line<'a>(screen: &'a str, what: &str) -> &'a str {
        screen.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what:?}: {screen}"))
    }

    #[test]
    fn the_tour_shows_what_is_open_and_what_is_not_and_ends_in_a_shell() {
        let Some(rig) = Rig::new() else { return };
        let (guest, screen) = tour(&rig, BoxOptions::new());
        assert!(line(&screen, "which is allowed").trim_start().starts_with("open"), "{screen}");
        let refused = screen.lines().filter(|line| line.trim_start().starts_with("refused")).count();
        assert_eq!(refused, 10, "{screen}");
        assert!(screen.contains("Nothing got through"), "{screen}");
        guest.type_into_pane("0", "echo shell-$((6*7))");
        let until = Instant::now() + PATIENCE;
        while !guest.tmux(&["capture-pane", "-p", "-t", "claude:0.0"]).out.contains("shell-42") {
            assert!(Instant::now() < until, "no shell");
        }
        let denials = guest.status()["denials"].to_string();
        assert!(
            denials.contains("upload.attacker.example") && denials.contains("169.254.169.254"),
            "{denials}"
        );
    }

    #[test]
    fn where_the_gate_is_a_proxy_the_tour_goes_by_it() {
        let Some(rig) = Rig::new() else { return };
        let (_guest, screen) = tour(&rig, BoxOptions::new().env("INNKEEPER_NETWORK_GATE", "proxy"));
        assert!(line(&screen, "which is allowed").trim_start().starts_with("open"), "{screen}");
        assert!(screen.contains("Nothing got through"), "{screen}");
    }

    #[test]
    fn offline_only_the_allowed_name_can_not_be_shown_and_the_tour_says_so() {
        let Some(rig) = Rig::new() else { return };
        rig.unplug();
        let (_guest, screen) = tour(&rig, BoxOptions::new());
        let allowed = line(&screen, "which is allowed");
        assert!(allowed.trim_start().starts_with("not here"), "{screen}");
        assert!(screen.contains("offline?") && screen.contains("Nothing got through"), "{screen}");
        assert!(!screen.contains("LEAK"), "{screen}");
    }

    #[test]
    fn what_does_not_hold_is_called_a_leak() {
        let Some(rig) = Rig::new() else { return };
        let forgotten = rig.file("netrc", "password ghp_0123456789abcdefghijklmnopqrstuvwxyz\n");
        let volume = format!("{}:/etc/netrc.old:ro", forgotten.display());
        let (_guest, screen) = tour(&rig, BoxOptions::new().volume(&volume));
        let hunt = line(&screen, "secrets of the box");
        assert!(hunt.trim_start().starts_with("LEAK"), "{screen}");
        assert!(screen.contains("/etc/netrc.old") && screen.contains("1 of it got through"), "{screen}");
    }
}

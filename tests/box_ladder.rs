//! The honest ladder in the real image: what a box gets with the least privileges, what it refuses for want of one, what
//! an operator may give up, and what `doctor` says before.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
#[path = "box_ladder"]
mod ladder {
    mod doctor;
    mod given_up;
    mod least;
    mod unfit;

    use serde_json::Value;

    use crate::rig::{BoxOptions, PLACES, Rig, run};

    pub(crate) fn listed() -> BoxOptions {
        BoxOptions::new().listed()
    }

    pub(crate) fn least() -> BoxOptions {
        BoxOptions::new().least()
    }

    /// `least()` with this in the place of one of its volumes or tmpfs.
    pub(crate) fn least_with(place: &str, instead: &[&str]) -> BoxOptions {
        let rest: Vec<&str> = PLACES.into_iter().filter(|other| *other != place).collect();
        listed().tmpfs(&rest).docker(&["--read-only", "--security-opt", "no-new-privileges"]).docker(instead)
    }

    pub(crate) fn held(status: &Value) -> Vec<(String, bool)> {
        let name = |one: &Value| one["name"].as_str().unwrap().to_owned();
        let protections = status["protections"].as_array().unwrap();
        protections.iter().map(|one| (name(one), one["held"] == true)).collect()
    }

    pub(crate) fn not_held(status: &Value) -> Vec<String> {
        held(status).into_iter().filter(|(_, held)| !held).map(|(name, _)| name).collect()
    }

    /// All that a boot may not leave changed in a network that outlives it: rules, tables that a legacy iptables would
    /// load, sysctls, addresses and routes, mounts, resolv.conf, our name.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Found(Vec<String>);

    const LOOK: &str = "nft -s list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null; \
        find /proc/sys/net -type f -perm -u=r | sort | xargs grep -s ''; \
        ip -o addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
        grep -o '@innkeeper.*' /proc/net/unix; true";

    impl Found {
        pub(crate) fn of(rig: &Rig) -> Self {
            let look = rig.inside(LOOK).expect("a look at the network");
            let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", rig.pause_pid)).unwrap();
            let resolv_conf = rig.in_pause("cat /etc/resolv.conf").expect("resolv.conf");
            // What counts, and no setting; what the kernel makes of the machine's load.
            let moving = ["nf_conntrack_count", "/random/", "expires ", "_fq_codel"];
            let lines = [look, mounts, resolv_conf].concat();
            let lines = lines.lines().filter(|line| !moving.iter().any(|word| line.contains(word)));
            Self(lines.map(str::to_owned).collect())
        }

        /// Fails with the lines that came or went.
        #[track_caller]
        pub(crate) fn is_still_so(&self, rig: &Rig) {
            let now = Self::of(rig);
            let gone: Vec<_> = self.0.iter().filter(|line| !now.0.contains(line)).collect();
            let came: Vec<_> = now.0.iter().filter(|line| !self.0.contains(line)).collect();
            assert!(gone.is_empty() && came.is_empty(), "gone: {gone:#?}\ncame: {came:#?}");
        }
    }

    /// Starts all of these side by side; how each ended and what it said.
    pub(crate) fn outcomes(rig: &Rig, options: &[BoxOptions]) -> Vec<(i32, String)> {
        let started: Vec<_> = options.iter().map(|options| rig.start(options)).collect();
        started.iter().map(|guest| (guest.exit_code(), guest.logs())).collect()
    }

    /// Exit status 78, and all of these words.
    #[track_caller]
    pub(crate) fn refused((code, logs): &(i32, String), words: &[&str]) {
        assert_eq!(*code, 78, "{words:?}:\n{logs}");
        for word in words.iter().chain(&["next: "]) {
            assert!(logs.contains(word), "no word about {word:?}:\n{logs}");
        }
        assert!(!logs.contains("session: Claude Code is running"), "the agent ran:\n{logs}");
    }

    /// A volume of the agent's at a place where it may not write, as an argument of `-v`.
    pub(crate) fn data(rig: &Rig) -> String {
        let mount = format!("{}:/data", rig.volume());
        let plain = ["run", "--rm", "--network", "none", "-v", &mount, "--entrypoint", "/bin/chown"];
        run("docker", &[&plain[..], &[&crate::rig::image(), "1000:1000", "/data"]].concat()).expect("chown");
        mount
    }

    /// An image without this file.
    pub(crate) fn without(rig: &Rig, path: &str) -> String {
        let name =
            format!("{}-{}-without-{}", rig.name, crate::rig::unique(), path.rsplit('/').next().unwrap());
        let image = format!("innkeeper-test:{name}");
        rig.at_end(&["docker", "image", "rm", "-f", &image]);
        rig.at_end(&["docker", "rm", "-f", &name]);
        let make = [
            "run",
            "--name",
            &name,
            "--network",
            "none",
            "--entrypoint",
            "/bin/rm",
            &crate::rig::image(),
            "-f",
        ];
        let make = [&make[..], &path.split(' ').collect::<Vec<_>>()].concat();
        run("docker", &make).expect("an image without it");
        let entry = "ENTRYPOINT [\"/usr/local/bin/innkeeper\"]";
        run("docker", &["commit", "-c", entry, "-c", "CMD [\"init\"]", &name, &image]).expect("the commit");
        image
    }

    /// A seccomp profile that allows everything but this rule.
    pub(crate) fn seccomp(rig: &Rig, name: &str, rule: &Value) -> String {
        let profile = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        format!("seccomp={}", rig.file(name, &profile.to_string()).display())
    }
}

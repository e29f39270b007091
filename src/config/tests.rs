//! The configuration as a whole.

use std::path::{Path, PathBuf};

/// A directory of the test's own, removed afterwards.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("innkeeper-{name}-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

use super::provider::Provider;
use super::repository::Source;
use super::*;
use crate::allowlist::{Allowlist, DomainName, Verdict};
use crate::control::protocol::{Task, TaskRepository};

const OAUTH: &str = "sk-ant-oat01-canary-canary-canary";
const GITHUB: &str = "github_pat_11CANARY_canarycanarycanary";

/// A machine's files and environment, in a directory of the test's own.
struct World {
    scratch: Scratch,
    env: Vec<(String, OsString)>,
}

impl World {
    /// The image's files and the least that a boot needs.
    fn new() -> Self {
        let world = Self::bare();
        world.scratch.write("domains.conf", "example.org # one\n");
        for name in ["claude", "github", "npm", "pypi", "crates", "go", "debian"] {
            world.scratch.write(&format!("profiles/{name}.conf"), &format!("{name}.example\n"));
        }
        world.set("CLAUDE_CODE_OAUTH_TOKEN", OAUTH).set("GH_TOKEN", GITHUB)
    }

    fn bare() -> Self {
        Self { scratch: Scratch::new("config"), env: Vec::new() }
    }

    fn set(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.into()));
        self
    }

    fn unset(mut self, name: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        self.scratch.write(name, text);
        self
    }

    fn load(&self) -> Result<Config, Problems> {
        load(&self.sources())
    }

    fn sources(&self) -> Sources {
        Sources {
            env: self.env.iter().cloned().collect(),
            toml_path: self.scratch.path("innkeeper.toml"),
            allowlist_path: self.scratch.path("domains.conf"),
            profiles_dir: self.scratch.path("profiles"),
            ceiling_path: self.scratch.path("ceiling.conf"),
            secrets_dir: self.scratch.path("secrets"),
            task: None,
        }
    }

    fn good(&self) -> Config {
        self.load().unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The report, with the directory of the test as `ROOT`.
    fn report(&self) -> String {
        let problems = self.load().unwrap_err();
        self.stable(&problems.to_string())
    }

    fn stable(&self, text: &str) -> String {
        text.replace(&self.scratch.path("").display().to_string(), "ROOT/")
    }

    fn warnings(&self) -> Vec<String> {
        self.good().warnings.iter().map(|warning| self.stable(warning)).collect()
    }
}

fn one_problem(text: &str) -> String {
    format!("1 problem with the configuration:\n1. {text}")
}

fn rules(config: &Config) -> Vec<String> {
    config.network.rules.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_and_the_least_of_secrets_make_a_configuration() {
    let config = World::new().good();
    assert_eq!(config.model, Model::Anthropic);
    assert_eq!(config.filesystem.workspace_size.to_string(), "512M");
    assert_eq!(config.filesystem.tmp_size.to_string(), "512M");
    assert_eq!(config.filesystem.home_size.to_string(), "1G");
    assert_eq!(config.session.stop_timeout, Duration::from_secs(8));
    assert_eq!(config.session.on_exit, OnExit::Restart);
    assert_eq!(config.session.agent, Agent::Claude);
    assert_eq!(config.session.prompt, None);
    assert_eq!(config.network.refresh, Duration::from_secs(300));
    assert_eq!(config.network.boot_timeout, Duration::from_secs(3));
    assert_eq!(config.network.backend, Backend::Auto);
    assert_eq!(config.network.profiles, ["claude", "github", "npm", "pypi", "crates", "go", "debian"]);
    assert_eq!(config.agent, AgentPermissions::default());
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.identity.name, "innkeeper");
    assert_eq!(config.identity.email, "innkeeper@users.noreply.github.com");
    assert_eq!((config.tls.ca_certs, config.boot.accept.len(), config.repositories.len()), (None, 0, 0));
    assert_eq!(config.warnings, [] as [String; 0]);
    assert!(config.network.ceiling.is_unbounded());
    let held: Vec<_> = config.secrets.iter().map(|one| (one.name.as_str(), one.held_by.as_str())).collect();
    assert_eq!(held, [("CLAUDE_CODE_OAUTH_TOKEN", "agent"), ("GH_TOKEN", "helper")]);
}

#[test]
fn the_environment_of_codetainer_boots() {
    let config = World::new()
        .unset("GH_TOKEN")
        .set("GH_PAT", GITHUB)
        .set("REPO_URL", "https://github.com/owner/repo")
        .set("CLAUDE_PROMPT", "fix it\nnow")
        .set("GIT_USER_NAME", "A. Person")
        .set("GIT_USER_EMAIL", "a@example.org")
        .set("GRAFANA_API_TOKEN", "")
        .good();
    assert_eq!(
        config.secrets.get("GH_TOKEN").map(|secret| secret.expose().to_owned()).as_deref(),
        Some(GITHUB)
    );
    assert_eq!(config.repositories[0].source.to_string(), "https://github.com/owner/repo");
    assert_eq!(config.repositories[0].path.as_str(), "repo");
    assert_eq!(config.session.prompt.unwrap().as_str(), "fix it\nnow");
    assert_eq!(
        (config.identity.name.as_str(), config.identity.email.as_str()),
        ("A. Person", "a@example.org")
    );
}

#[test]
fn variables_win_over_aliases_over_the_file_over_defaults() {
    let file =
        "[identity]\nname = \"file\"\nemail = \"file@example.org\"\n[session]\nstop_timeout = \"20s\"\n";
    let world = World::new().file("innkeeper.toml", file).set("GIT_USER_NAME", "alias");
    assert_eq!(world.good().identity.name, "alias");
    assert_eq!(world.good().identity.email, "file@example.org");
    assert_eq!(world.good().session.stop_timeout, Duration::from_secs(20));
    let world = world.set("INNKEEPER_IDENTITY_NAME", "ours").set("INNKEEPER_SESSION_STOP_TIMEOUT", "30s");
    let config = world.good();
    assert_eq!((config.identity.name.as_str(), config.session.stop_timeout.as_secs()), ("ours", 30));
    assert_eq!(
        config.warnings,
        ["INNKEEPER_IDENTITY_NAME and GIT_USER_NAME differ; INNKEEPER_IDENTITY_NAME counts"]
    );
}

#[test]
fn every_effective_rule_knows_its_origin() {
    let config = World::new()
        .file("innkeeper.toml", "[network]\nprofiles = [\"npm\"]\nallow = [\n  \"b.example\",\n]\n")
        .set("REPO_URL", "git@git.corp.example:a/b")
        .good();
    let origins: Vec<String> = config.network.rules.iter().map(|rule| rule.origin.to_string()).collect();
    let files: Vec<&str> = origins.iter().filter_map(|origin| origin.rsplit('/').next()).collect();
    assert_eq!(
        rules(&config),
        ["example.org", "npm.example", "b.example", "git.corp.example", "api.anthropic.com"]
    );
    assert_eq!(files[0], "domains.conf:1");
    assert_eq!(origins[1], "network/profiles/npm.conf:1");
    assert_eq!(files[2], "innkeeper.toml:4");
    assert_eq!(origins[3], "repository https://git.corp.example/a/b");
    assert_eq!(origins[4], "model.provider");
    let config = World::new().set("INNKEEPER_NETWORK_ALLOW", "a.example:80,22 private; !b.example").good();
    let of_variable: Vec<&Rule> = config
        .network
        .rules
        .iter()
        .filter(|rule| rule.origin.to_string() == "INNKEEPER_NETWORK_ALLOW")
        .collect();
    assert_eq!(
        of_variable.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["a.example:22,80 private", "!b.example"]
    );
}

#[test]
fn the_model_is_reachable_and_not_listed_twice() {
    let listed = World::new().file("profiles/claude.conf", "api.anthropic.com required\n").good();
    assert_eq!(rules(&listed).iter().filter(|rule| *rule == "api.anthropic.com").count(), 1);
    let by_pattern = World::new().file("profiles/claude.conf", "*.anthropic.com\n").good();
    assert!(!rules(&by_pattern).contains(&"api.anthropic.com".to_owned()));
    let other_port = World::new().file("profiles/claude.conf", "api.anthropic.com:80\n").good();
    let name = DomainName::parse("api.anthropic.com").unwrap();
    let list = Allowlist::new(other_port.network.rules);
    assert!(matches!(list.verdict(&name), Verdict::Allowed(allowed) if allowed.ports == [80, 443]));
    let denied = World::new()
        .file("domains.conf", "!*.anthropic.com\n!github.com\n")
        .set("REPO_URL", "https://github.com/a/b");
    assert_eq!(
        denied.warnings(),
        [
            "github.com is denied by the rule !github.com (ROOT/domains.conf:2): the repository can't be cloned",
            "api.anthropic.com is denied by the rule !*.anthropic.com (ROOT/domains.conf:1): the model can't be reached",
        ]
    );
}

#[test]
fn a_missing_allowlist_is_a_warning_beside_profiles_and_a_problem_without() {
    let world =
        World::bare().set("CLAUDE_CODE_OAUTH_TOKEN", OAUTH).file("profiles/npm.conf", "*.npm.example\n");
    let world = world.set("INNKEEPER_NETWORK_PROFILES", "npm");
    assert_eq!(
        world.warnings(),
        [
            "ROOT/domains.conf is missing: only profiles and settings allow names",
            "GH_TOKEN is not given: public repositories are read anonymously, nothing is pushed",
        ]
    );
    assert_eq!(
        world.set("INNKEEPER_NETWORK_PROFILES", "").report(),
        one_problem(
            "ROOT/domains.conf: is missing, and network.profiles is empty: nothing would be allowed\n   next: write the allowlist, or name profiles"
        )
    );
}

#[test]
fn an_unknown_profile_is_answered_with_those_there_are() {
    assert_eq!(
        World::new().set("INNKEEPER_NETWORK_PROFILES", "npn").report(),
        one_problem(
            "INNKEEPER_NETWORK_PROFILES: there is no profile \"npn\" in ROOT/profiles\n   next: did you mean npm? there are claude, crates, debian, github, go, npm, pypi"
        )
    );
    for hostile in ["../domains", "a/b", "-x", "NPM", "a\u{1b}b"] {
        let report = World::new().set("INNKEEPER_NETWORK_PROFILES", hostile).report();
        assert!(report.contains("it is not the name of a profile"), "{report}");
    }
}

#[test]
fn the_ceiling_bounds_every_origin_and_has_its_own_exit_status() {
    let ceiling = "example.org\n*.example\napi.anthropic.com\ngithub.com\n";
    let world = World::new().file("ceiling.conf", ceiling);
    assert_eq!(world.good().network.ceiling.rules().len(), 4);
    let world = world
        .file("domains.conf", "example.org:22\n!anything.test\n")
        .file("profiles/npm.conf", "a.test\nb.test\nc.test\nd.test:80\nnpm.example\n")
        .set("INNKEEPER_NETWORK_ALLOW", "npm.example private")
        .set("REPO_URL", "https://git.test/a/b");
    let problems = world.load().unwrap_err();
    assert_eq!(problems.exit_code(), 77);
    assert_eq!(
        world.report(),
        "4 problems with the configuration:\n\
         1. ROOT/domains.conf:1: \"example.org:22\": beyond the ceiling of ROOT/ceiling.conf\n   next: remove the rule, or have the ceiling raised\n\
         2. profile npm: \"a.test\", \"b.test\", \"c.test\" and 1 more: beyond the ceiling of ROOT/ceiling.conf\n   next: leave it out of network.profiles, or have the ceiling raised\n\
         3. INNKEEPER_NETWORK_ALLOW: \"npm.example private\": beyond the ceiling of ROOT/ceiling.conf\n   next: remove the rule, or have the ceiling raised\n\
         4. repository https://git.test/a/b: \"git.test\": beyond the ceiling of ROOT/ceiling.conf\n   next: remove the repository, or have the ceiling raised"
    );
    assert_eq!(world.set("INNKEEPER_LOG_FORMAT", "xml").load().unwrap_err().exit_code(), 78);
}

#[test]
fn a_ceiling_that_cannot_be_read_is_no_open_sky() {
    let report = World::new().file("ceiling.conf", "example.org\n*\n").load().unwrap_err();
    assert!(report.to_string().contains("ceiling.conf:2: \"*\" would allow every name"), "{report}");
    assert_eq!(report.exit_code(), 78);
    let world = World::new();
    std::fs::create_dir(world.scratch.path("ceiling.conf")).unwrap();
    let report = world.report();
    assert!(report.contains("ROOT/ceiling.conf: it is not a regular file"), "{report}");
    let world = World::new();
    std::os::unix::fs::symlink("/nowhere", world.scratch.path("ceiling.conf")).unwrap();
    assert_eq!(
        world.report(),
        one_problem(
            "ROOT/ceiling.conf: it is a link that leads nowhere\n   next: make it a readable text file"
        )
    );
}

#[test]
fn repositories_come_from_the_file_or_one_from_variables() {
    let listed = "[[repository]]\nurl = \"https://a.example/x\"\npath = \"one\"\nbranch = \"dev\"\ndepth = 1\n\n[[repository]]\nurl = \"git@b.example:y.git\"\npath = \"two\"\n";
    let config = World::new().file("innkeeper.toml", listed).good();
    let shown = |config: &Config| -> Vec<String> {
        let show = |one: &Repository| {
            format!(
                "{} {} {} {}",
                one.source,
                one.path,
                one.branch.as_ref().map_or("-", |b| b.as_str()),
                one.depth
            )
        };
        config.repositories.iter().map(show).collect()
    };
    assert_eq!(shown(&config), ["https://a.example/x one dev 1", "https://b.example/y.git two - 0"]);
    let replaced = World::new().file("innkeeper.toml", listed).set("REPO_URL", "https://c.example/z").good();
    assert_eq!(shown(&replaced), ["https://c.example/z repo - 0"]);
    assert_eq!(replaced.warnings, ["REPO_URL replaces the repositories of the file (2)"]);
    let only = "[[repository]]\nurl = \"https://a.example/x\"\n";
    let refined = World::new()
        .file("innkeeper.toml", only)
        .set("INNKEEPER_REPOSITORY_BRANCH", "main")
        .set("INNKEEPER_REPOSITORY_DEPTH", "5")
        .set("INNKEEPER_REPOSITORY_URL", " ")
        .good();
    assert_eq!(shown(&refined), ["https://a.example/x repo main 5"]);
    let lost = World::new().set("INNKEEPER_REPOSITORY_BRANCH", "main").report();
    assert_eq!(
        lost,
        one_problem(
            "INNKEEPER_REPOSITORY_BRANCH: describes a repository, but which one is not said\n   next: give INNKEEPER_REPOSITORY_URL too"
        )
    );
}

#[test]
fn bad_repositories_are_all_reported_without_their_addresses() {
    let listed = "[[repository]]\nurl = \"https://u:canary@a.example/x\"\n[[repository]]\npath = \"../x\"\nbranch = \"-b\"\n[[repository]]\nurl = \"https://a.example/x\"\n[[repository]]\nurl = \"https://a.example/y/x\"\n[[repository]]\nbundle = \"/nowhere/x.bundle\"\n";
    let report = World::new().file("innkeeper.toml", listed).report();
    assert_eq!(
        report,
        "6 problems with the configuration:\n\
         1. ROOT/innkeeper.toml:2: repository.url is not usable: it holds a user or a password; credentials come from GH_TOKEN; expected an https:// address\n   next: for example url = \"https://github.com/owner/repo\"\n\
         2. ROOT/innkeeper.toml:4: repository.path is \"../x\": it is a path; only one directory below /workspace can be named\n   next: for example path = \"repo\"\n\
         3. ROOT/innkeeper.toml:5: repository.branch is \"-b\": it begins with a hyphen: git would read it as an option\n   next: for example branch = \"main\"\n\
         4. ROOT/innkeeper.toml:3: a repository has neither url nor bundle\n   next: for example url = \"https://github.com/owner/repo\"\n\
         5. ROOT/innkeeper.toml:8: two repositories have the path \"x\"\n   next: give each its own repository.path\n\
         6. ROOT/innkeeper.toml:11: repository.bundle is \"/nowhere/x.bundle\": it can't be looked at (entity not found); expected an absolute path\n   next: for example bundle = \"/mnt/work.bundle\""
    );
}

#[test]
fn of_several_repositories_each_gets_its_own_name_and_the_only_one_is_repo() {
    let paths = |world: &World| -> Vec<String> {
        world.good().repositories.iter().map(|one| one.path.to_string()).collect()
    };
    let two =
        "[[repository]]\nurl = \"https://a.example/g/x.git\"\n[[repository]]\nurl = \"git@b.example:y\"\n";
    assert_eq!(paths(&World::new().file("innkeeper.toml", two)), ["x", "y"]);
    assert_eq!(paths(&World::new().set("REPO_URL", "https://a.example/g/x")), ["repo"]);
}

#[test]
fn a_bundle_is_a_file_in_the_box_and_its_address_is_the_origin() {
    let world = World::new().file("work.bundle", "as git wrote it");
    let file = world.scratch.path("work.bundle");
    let world = world.set("INNKEEPER_REPOSITORY_BUNDLE", file.clone());
    let config = world.good();
    let [only] = config.repositories.as_slice() else { panic!("{config:?}") };
    assert_eq!(only.source, Source::Bundle { file: file.clone(), url: None });
    assert_eq!((only.path.as_str(), only.url()), ("repo", None));
    let world = world.set("REPO_URL", "https://github.com/a/b");
    let config = world.good();
    assert_eq!(config.repositories[0].url().unwrap().to_string(), "https://github.com/a/b");
    let report = world.set("INNKEEPER_REPOSITORY_DEPTH", "3").report();
    assert!(report.contains("a bundle is cloned whole"), "{report}");
}

#[test]
fn a_box_that_waits_may_lack_what_its_task_brings_but_not_get_it_wrong() {
    let bare = || World::new().unset("CLAUDE_CODE_OAUTH_TOKEN").set("INNKEEPER_SESSION_START", "wait");
    let config = bare().good();
    assert_eq!(config.session.start, Start::Wait);
    assert_eq!(config.missing.len(), 1);
    assert!(config.missing[0].starts_with("CLAUDE_CODE_OAUTH_TOKEN"), "{:?}", config.missing);
    assert!(bare().set("CLAUDE_CODE_OAUTH_TOKEN", "wrong").load().is_err());
    let begins = |task: &Task| load(&bare().sources().with_task(task));
    assert!(begins(&Task::default()).is_err(), "with the task nothing may be missing");
    let secret = |value: &str| vec![("CLAUDE_CODE_OAUTH_TOKEN".to_owned(), value.to_owned())];
    let prompt = Some("Do it".to_owned());
    let url = "https://git.example/o/r".to_owned();
    let repositories = vec![TaskRepository { url, path: Some("r".into()), ..TaskRepository::default() }];
    let config = begins(&Task { repositories, prompt, secrets: secret(OAUTH) }).unwrap();
    assert_eq!(config.session.prompt.unwrap().as_str(), "Do it");
    let shown: Vec<String> = config.network.rules.iter().map(ToString::to_string).collect();
    assert!(shown.iter().any(|rule| rule == "git.example"), "{shown:?}");
    let task = Task { secrets: secret("sk-ant-canary"), ..Task::default() };
    let problems = begins(&task).unwrap_err().to_string();
    assert!(problems.contains("CLAUDE_CODE_OAUTH_TOKEN") && !problems.contains("canary"), "{problems}");
}

#[test]
fn secrets_come_from_variables_files_and_the_secrets_directory() {
    let path = |world: &World, name: &str| world.scratch.path(name).display().to_string();
    let bare = || World::new().unset("GH_TOKEN");
    let source = |config: &Config| config.secrets.credential("GH_TOKEN").map(|one| one.source.as_str());
    let variable = bare().set("GH_TOKEN", GITHUB).good();
    assert_eq!(source(&variable), Some("env"));
    let world = bare().file("token", &format!("{GITHUB}\n"));
    let file = path(&world, "token");
    let from_file = world.set("GH_TOKEN_FILE", file.clone()).good();
    assert_eq!(source(&from_file), Some("file"));
    assert_eq!(from_file.secrets.get("GH_TOKEN").unwrap().expose(), GITHUB);
    let directory = bare().file("secrets/GH_TOKEN", &format!("{GITHUB}\r\n")).good();
    assert_eq!(source(&directory), Some("file"));
    assert_eq!(directory.secrets.get("GH_TOKEN").unwrap().expose(), GITHUB);
    let alias = bare().file("secrets/GH_PAT", GITHUB).good();
    assert_eq!(source(&alias), Some("file"));
    let same = bare().set("GH_TOKEN", GITHUB).file("secrets/GH_PAT", GITHUB).good();
    assert_eq!(source(&same), Some("env"));
    assert_eq!(same.warnings, [] as [String; 0]);
}

#[test]
fn sources_that_differ_are_both_named() {
    let world = World::new().file("secrets/GH_PAT", "ghp_other-canary-other");
    assert_eq!(
        world.report(),
        one_problem(
            "GH_TOKEN and ROOT/secrets/GH_PAT: hold two different values of GH_TOKEN\n   next: remove one of them"
        )
    );
}

#[test]
fn secrets_are_checked_and_never_shown() {
    let name = "CLAUDE_CODE_OAUTH_TOKEN";
    let expected = "expected an OAuth token, sk-ant-oat…\n   next: give the value alone, as it was issued";
    for (value, why) in [
        (format!("{OAUTH}\n"), "it ends with a newline"),
        (format!(" {OAUTH}"), "it begins or ends with white space"),
        (format!("\"{OAUTH}\""), "it is wrapped in quotes"),
        (format!("{OAUTH}\n{OAUTH}"), "it holds a newline"),
        ("canary-of-another-shape".to_owned(), "it does not begin with sk-ant-oat"),
    ] {
        let report = World::new().set(name, value).report();
        assert_eq!(report, one_problem(&format!("{name}: is not usable: {why}; {expected}")));
    }
    let two_newlines =
        World::new().unset(name).file("secrets/CLAUDE_CODE_OAUTH_TOKEN", &format!("{OAUTH}\n\n"));
    assert!(two_newlines.report().contains("it ends with a newline"));
    let odd = World::new().set("GH_TOKEN", "canary-of-no-known-shape").good();
    assert_eq!(odd.warnings.len(), 1);
    assert!(
        odd.warnings[0].starts_with("GH_TOKEN: it does not look like a token of GitHub"),
        "{:?}",
        odd.warnings
    );
}

#[test]
fn missing_and_blank_credentials_say_how_to_get_one() {
    let missing = World::new().unset("CLAUDE_CODE_OAUTH_TOKEN");
    let report = "CLAUDE_CODE_OAUTH_TOKEN, or ANTHROPIC_API_KEY: is missing; model.provider = anthropic needs it\n   next: run `claude setup-token` on a machine with a browser; give it as ROOT/secrets/CLAUDE_CODE_OAUTH_TOKEN, as a file named by CLAUDE_CODE_OAUTH_TOKEN_FILE, or as CLAUDE_CODE_OAUTH_TOKEN";
    assert_eq!(missing.report(), one_problem(report));
    let blank = World::new().set("CLAUDE_CODE_OAUTH_TOKEN", " ");
    let report = report.replacen("missing", "missing (CLAUDE_CODE_OAUTH_TOKEN is blank)", 1);
    assert_eq!(blank.report(), one_problem(&report));
    let other =
        World::new().set("CLAUDE_CODE_OAUTH_TOKEN", "").set("ANTHROPIC_API_KEY", "sk-ant-api03-canarycanary");
    assert_eq!(other.warnings(), ["CLAUDE_CODE_OAUTH_TOKEN is blank and counts as not given"]);
    let required =
        World::new().set("INNKEEPER_SECRETS_REQUIRED", "NPM_TOKEN, OTHER,bad-name").set("OTHER", "");
    assert_eq!(
        required.report(),
        "3 problems with the configuration:\n\
         1. INNKEEPER_SECRETS_REQUIRED: is \"bad-name\": the name of a secret holds 'b'; it is a variable of capitals, digits and \"_\"\n   next: for example INNKEEPER_SECRETS_REQUIRED=NPM_TOKEN\n\
         2. OTHER: is blank; expected one line of text\n\
         3. NPM_TOKEN: is missing; secrets.required names it\n   next: give it as ROOT/secrets/NPM_TOKEN, as a file named by NPM_TOKEN_FILE, or as NPM_TOKEN"
    );
    let given =
        World::new().set("INNKEEPER_SECRETS_REQUIRED", "NPM_TOKEN").set("NPM_TOKEN", "npm_canary").good();
    let names: Vec<&str> = given.agent_variables().iter().map(|variable| variable.name).collect();
    assert_eq!(names, ["CLAUDE_CODE_OAUTH_TOKEN", "NPM_TOKEN"]);
    let helper = World::new().set("INNKEEPER_SECRETS_REQUIRED", "GH_TOKEN CLAUDE_CODE_OAUTH_TOKEN").good();
    assert_eq!(helper.agent_variables().len(), 1, "the helper's token is not the agent's");
}

#[test]
fn files_of_secrets_are_checked_before_they_are_read() {
    let world =
        World::new().set("GH_PAT_FILE", "relative-canary").set("GITHUB_TOKEN_FILE", "/nowhere/at/all");
    std::fs::create_dir_all(world.scratch.path("secrets/ANTHROPIC_AUTH_TOKEN")).unwrap();
    std::fs::write(world.scratch.path("secrets/AWS_SESSION_TOKEN"), vec![b'x'; 70_000]).unwrap();
    std::fs::write(world.scratch.path("secrets/AWS_ACCESS_KEY_ID"), b"\xff\xfe").unwrap();
    assert_eq!(
        world.report(),
        "5 problems with the configuration:\n\
         1. GH_PAT_FILE: is not an absolute path\n   next: give the path of a file that holds the value\n\
         2. GITHUB_TOKEN_FILE (/nowhere/at/all): there is no such file\n   next: mount the file, or unset the variable\n\
         3. ROOT/secrets/AWS_ACCESS_KEY_ID: it is not UTF-8 (line 1)\n   next: make it a readable text file\n\
         4. ROOT/secrets/AWS_SESSION_TOKEN: it is larger than 64 KiB\n   next: make it a readable text file\n\
         5. ROOT/secrets/ANTHROPIC_AUTH_TOKEN: it is not a regular file\n   next: make it a readable text file"
    );
}

#[test]
fn other_providers_need_their_own_credentials_and_settings() {
    let world = |provider: &str| {
        World::new().unset("CLAUDE_CODE_OAUTH_TOKEN").set("INNKEEPER_MODEL_PROVIDER", provider)
    };
    let what = |world: World| -> Vec<String> {
        world.load().unwrap_err().0.into_iter().map(|problem| problem.what).collect()
    };
    let bedrock = "AWS_BEARER_TOKEN_BEDROCK, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
    assert_eq!(what(world("bedrock")), ["model.aws_region", bedrock]);
    assert_eq!(
        what(world("bedrock").set("AWS_REGION", "eu-central-1").set("AWS_ACCESS_KEY_ID", "AKIAX")),
        ["AWS_SECRET_ACCESS_KEY"]
    );
    assert_eq!(
        what(world("vertex")),
        ["model.vertex_region", "model.vertex_project", "GOOGLE_APPLICATION_CREDENTIALS"]
    );
    assert_eq!(
        what(world("gateway").set("ANTHROPIC_BASE_URL", "http://u:canary@h/")),
        ["ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN"]
    );
    assert_eq!(
        what(
            world("bedrock")
                .set("AWS_REGION", "a.evil.example")
                .set("AWS_BEARER_TOKEN_BEDROCK", "canary-canary")
        ),
        ["AWS_REGION"]
    );

    let config = world("bedrock")
        .set("AWS_REGION", "eu-central-1")
        .set("AWS_BEARER_TOKEN_BEDROCK", "canary-canary")
        .good();
    assert!(rules(&config).contains(&"bedrock-runtime.eu-central-1.amazonaws.com".to_owned()));
    assert!(!rules(&config).contains(&"api.anthropic.com".to_owned()));
    let vertex = world("vertex").file("key.json", "{\n\"type\": \"service_account\"\n}\n");
    let key = vertex.scratch.path("key.json").display().to_string();
    let config = vertex
        .set("GOOGLE_APPLICATION_CREDENTIALS", key)
        .set("CLOUD_ML_REGION", "global")
        .set("ANTHROPIC_VERTEX_PROJECT_ID", "p")
        .good();
    assert_eq!(config.model.provider(), Provider::Vertex);
    assert!(
        config.secrets.get("GOOGLE_APPLICATION_CREDENTIALS").unwrap().expose().contains("service_account")
    );
    let unused = World::new()
        .set("ANTHROPIC_BASE_URL", "https://x.example")
        .set("ANTHROPIC_API_KEY", "sk-ant-api03-canarycanary");
    assert_eq!(
        unused.warnings(),
        [
            "ANTHROPIC_BASE_URL: model.base_url is not used: model.provider is anthropic",
            "ANTHROPIC_API_KEY is not used, since CLAUDE_CODE_OAUTH_TOKEN is given too",
        ]
    );
}

#[test]
fn certificates_are_looked_at() {
    let world = World::new()
        .file("ca.pem", "-----BEGIN CERTIFICATE-----\nx\n")
        .file("text.pem", "hello")
        .file("key.pem", "-----BEGIN PRIVATE KEY-----");
    let path = |world: &World, name: &str| world.scratch.path(name).display().to_string();
    let (good, text, key, none) =
        (path(&world, "ca.pem"), path(&world, "text.pem"), path(&world, "key.pem"), path(&world, "no.pem"));
    let world = world.set("INNKEEPER_TLS_CA_CERTS", good.clone());
    assert_eq!(world.good().tls.ca_certs, Some(PathBuf::from(good)));
    let mut world = world;
    for (path, why) in
        [(text, "holds no PEM certificate"), (key, "holds a private key"), (none, "there is no such file")]
    {
        world = world.set("INNKEEPER_TLS_CA_CERTS", path);
        assert!(world.report().contains(why), "{}", world.report());
    }
}

/// A world in which everything is wrong at once.
fn ruin() -> World {
    use std::os::unix::ffi::OsStringExt as _;
    World::bare()
        .file("innkeeper.toml", include_str!("../../tests/golden/ruin.toml"))
        .file("domains.conf", "\u{feff}good.example\r\n*\r\n192.0.2.1\r\nbad_.example:99999\r\nhttps://x.example/\r\nok.example privat\r\n")
        .file("profiles/npm.conf", "npm.example\nbad..name\n")
        .file("ceiling.conf", "good.example\nnpm.example\n?\n")
        .file("secrets/GH_TOKEN", "ghp_canarycanarycanary1\n")
        .set("INNKEEPER_SESION_MODE", "canary")
        .set("INNKEEPER_NETWORK_REFRESH", "300")
        .set("INNKEEPER_NETWORK_UPSTREAMS", "dns.example, 192.0.2.53")
        .set("INNKEEPER_NETWORK_ALLOW", "a.example:0; b.example")
        .set("INNKEEPER_SESSION_PROMPT", OsString::from_vec(vec![0xff]))
        .set("INNKEEPER_LOG_FORMAT", GITHUB)
        .set("REPO_URL", "https://user:canary-password@github.com/a/b")
        .set("CLAUDE_CODE_OAUTH_TOKEN", "\"sk-ant-oat01-canary-canary\"")
        .set("GH_PAT", "ghp_canarycanarycanary2")
}

#[test]
fn everything_that_is_wrong_is_in_one_report() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ruin.txt");
    let report = format!("{}\n", ruin().report());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &report).unwrap();
    }
    assert_eq!(report, std::fs::read_to_string(path).unwrap_or_default());
    assert!(!report.to_lowercase().contains("canary"), "{report}");
    assert_eq!(ruin().load().unwrap_err().exit_code(), 78);
}

#[test]
fn no_debug_or_display_shows_a_secret() {
    let world = World::new()
        .set("CLAUDE_PROMPT", "canary-prompt")
        .set("ANTHROPIC_API_KEY", "sk-ant-api03-canarycanary");
    let config = world.good();
    let text = format!("{config:?} {config:#?} {:?}", config.warnings).to_lowercase();
    assert!(!text.contains("canary"), "{text}");
    let problems = ruin().load().unwrap_err();
    let text = format!("{problems} {problems:?} {problems:#?}").to_lowercase();
    assert!(!text.contains("canary"), "{text}");
    assert_eq!(config.secrets.redact(&format!("x{OAUTH}y{GITHUB}")), "x[CLAUDE_CODE_OAUTH_TOKEN]y[GH_TOKEN]");
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    for variable in [
        "INNKEEPER_NETWORK_ALLOW",
        "INNKEEPER_NETWORK_PROFILES",
        "INNKEEPER_IDENTITY_EMAIL",
        "INNKEEPER_LOG_FORMAT",
    ] {
        let report = World::new().set(variable, OAUTH).load().unwrap_err().to_string();
        assert!(!report.contains("canary"), "{report}");
    }
}

#[test]
fn sources_of_the_design_are_the_default() {
    let sources = Sources::default();
    assert_eq!(sources.toml_path, Path::new("/etc/innkeeper/innkeeper.toml"));
    assert_eq!(sources.secrets_dir, Path::new("/run/secrets"));
    assert_eq!(sources.env.iter().count(), 0);
}

#[test]
fn an_unreadable_file_of_settings_is_a_problem_and_no_other() {
    let world = World::new();
    std::fs::create_dir(world.scratch.path("innkeeper.toml")).unwrap();
    assert_eq!(
        world.report(),
        one_problem("ROOT/innkeeper.toml: it is not a regular file\n   next: make it a readable text file")
    );
}

/// What the errors give as an example is right, as a variable and as a line of the file.
#[test]
fn every_example_of_the_table_is_good() {
    for setting in settings::SETTINGS.iter().filter(|setting| !setting.example.is_empty()) {
        let world = || {
            let world = World::new().set("NPM_TOKEN", "canary-canary").set("REPO_URL", "https://a.example/b");
            world.file("ca.pem", "-----BEGIN CERTIFICATE-----")
        };
        let example = match setting.key {
            // Files that are looked at: certificates_are_looked_at(), a_bundle_is_a_file_in_the_box…()
            "tls.ca_certs" | "repository.bundle" => continue,
            // tests/box_comforts/told.rs
            "claude.formatters" | "claude.instructions" => continue,
            // These look at files and at the policy: notices_go_to_programs_and_hosts_that_may_have_them()
            "notices.command" | "notices.webhook" => continue,
            "network.profiles" => "npm",
            _ => setting.example,
        };
        let config = world().set(&setting.variable(), example).good();
        assert!(config.warnings.iter().all(|warning| {
            ["differ", "not used", "telemetry is off"].iter().any(|words| warning.contains(words))
        }));
        let section = setting.section();
        let (open, unset) = if section == "repository" { ("[[repository]]", "REPO_URL") } else { ("", "") };
        let open = if open.is_empty() { format!("[{section}]") } else { open.to_owned() };
        let mut text = format!("{open}\n{}\n", setting.toml_line(example));
        if section == "repository" && setting.key != "repository.url" {
            text.push_str("url = \"https://a.example/b\"\n");
        }
        world().unset(unset).file("innkeeper.toml", &text).good();
    }
}

#[test]
fn a_proxy_is_a_secret_and_its_name_a_rule_for_the_gate() {
    for name in ["NETWORK_PROXY", "INNKEEPER_NETWORK_PROXY"] {
        let config = World::new().set(name, "http://user:canary@proxy.corp.example:3128").good();
        assert!(!format!("{config:?}").contains("canary"));
        assert!(!config.secrets.redact("via http://user:canary@proxy.corp.example:3128").contains("canary"));
        assert!(config.agent_variables().iter().all(|variable| variable.name != "NETWORK_PROXY"));
        let proxy = config.network.proxy.as_ref().unwrap();
        assert_eq!(proxy.to_string(), "http://…@proxy.corp.example:3128");
        let rule =
            config.network.rules.iter().find(|rule| rule.origin.to_string() == "network.proxy").unwrap();
        assert_eq!(rule.to_string(), "proxy.corp.example:3128 private http");
        let gated = Allowlist::new(config.network.rules.iter().cloned()).gated_ports();
        assert!(gated.contains(&3128), "the agent would reach it itself: {gated:?}");
    }
    let config = World::new().set("NETWORK_PROXY", "http://192.0.2.1:3128").good();
    assert!(config.network.rules.iter().all(|rule| rule.origin.to_string() != "network.proxy"));
    for (url, wanted) in [
        ("https://canary:3128", "its scheme is not http"),
        ("http://u:canary@proxy.example", "its port is missing"),
        ("http://canary@proxy.example:3128", "USER:PASSWORD"),
    ] {
        let report = World::new().set("NETWORK_PROXY", url).report();
        assert!(report.contains(wanted) && !report.contains("canary"), "{report}");
    }
}

#[test]
fn a_proxys_port_is_one_of_those_that_the_gate_can_have() {
    let ports = |count: u16| (9000..9000 + count).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    let allowed = |count| format!("many.example.org:{} tls", ports(count));
    let world = |count| World::new().set("INNKEEPER_NETWORK_ALLOW", allowed(count));
    let named = "http://proxy.corp.example:3128";
    world(62).good();
    world(61).set("NETWORK_PROXY", named).good();
    let report = world(62).set("NETWORK_PROXY", named).report();
    assert!(report.contains("network.proxy") && report.contains("mark one rule less"), "{report}");
    // By address nothing is gated for it.
    world(62).set("NETWORK_PROXY", "http://192.0.2.1:3128").good();
}

#[test]
fn notices_go_to_programs_and_hosts_that_may_have_them() {
    let world = || World::new().set("INNKEEPER_NETWORK_ALLOW", "hooks.example.org; ports.example.org:8443");
    for name in ["NOTICES_WEBHOOK", "INNKEEPER_NOTICES_WEBHOOK"] {
        let config = world().set(name, "https://hooks.example.org/canary-path").good();
        assert!(!format!("{config:?}").contains("canary-path"));
        assert!(!config.secrets.redact("at https://hooks.example.org/canary-path").contains("canary-path"));
        let webhook = config.notices.webhook.as_ref().unwrap();
        assert_eq!((webhook.host.as_str(), webhook.expose_path()), ("hooks.example.org", "/canary-path"));
        assert!(config.agent_variables().iter().all(|variable| variable.name != "NOTICES_WEBHOOK"));
    }
    assert!(world().set("NOTICES_WEBHOOK", "https://ports.example.org:8443/").good().notices.are_sent());
    for (url, wanted) in [
        ("https://other.example.org/canary", "add the line other.example.org to network/domains.conf"),
        ("https://ports.example.org/canary", "is not allowed: not on port 443"),
        ("http://hooks.example.org/canary", "its scheme is not https"),
    ] {
        let report = world().set("NOTICES_WEBHOOK", url).report();
        assert!(report.contains(wanted) && !report.contains("canary"), "{report}");
    }
    let config =
        world().set("INNKEEPER_NOTICES_COMMAND", "/bin/sh\n-c").set("INNKEEPER_NOTICES_ON", "denied").good();
    assert_eq!(config.notices.command, ["/bin/sh", "-c"]);
    assert_eq!(config.notices.on, [crate::notices::Kind::Denied]);
    for (program, wanted) in [
        ("sh", "is not an absolute path"),
        ("/bin/../tmp/x", "is not an absolute path"),
        ("/workspace/x", "is where the agent can write"),
        ("/etc/passwd", "is no program"),
        ("/no/such", "is not there"),
    ] {
        let report = world().set("INNKEEPER_NOTICES_COMMAND", program).report();
        assert!(report.contains(wanted), "{report}");
    }
}

/// Whatever is put into whatever variable: a configuration or a report, and never the text of a secret.
#[test]
fn no_value_of_no_variable_leaks_or_panics() {
    let secret = "sk-ant-oat01-canary-canary-canary";
    let values = [
        secret,
        "",
        " ",
        "-",
        "\n",
        "\0",
        "*",
        "..",
        "ünïcode",
        "[",
        "\"",
        "[1]",
        "9999999999999999999999",
        "\u{202e}",
    ];
    for setting in settings::SETTINGS {
        for variable in
            std::iter::once(setting.variable()).chain(setting.aliases.iter().map(|one| (*one).to_owned()))
        {
            for value in values {
                match World::new().set(&variable, value).load() {
                    Ok(config) => assert!(!format!("{:?}", config.warnings).contains("canary"), "{variable}"),
                    Err(problems) => assert!(!problems.to_string().contains("canary"), "{problems}"),
                }
            }
        }
    }
}

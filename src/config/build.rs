//! From what was typed to [`Config`].

use std::path::{Path, PathBuf};

use super::credentials::{self, Credentials};
use super::files::{CONFIG_LIMIT, read_text};
use super::policy;
use super::problems::{Problem, Problems};
use super::provider::{GatewayUrl, Model, PROVIDER_SETTINGS, Provider, check_cloud_name};
use super::raw::{Given, Place, RawConfig, RawRepository, RawSettings, RawValue, read_toml};
use super::repository::{Branch, DirectoryName, ONLY, RepoUrl, Repository, Source};
use super::values::Values;
use super::variables::{Variables, read_variables};
use super::{
    Agent, AgentPermissions, Backend, Boot, Config, Filesystem, Gate, Identity, Log, LogFormat, Mode,
    Network, OnExit, Persist, Prompt, Requests, Session, Sources, Start, Tls,
};

use crate::money::Microusd;
use crate::session::{Limits, OnLimit, Until};

pub(super) fn build(sources: &Sources) -> Result<Config, Problems> {
    let Variables { settings: variables, mut problems, mut warnings } = read_variables(&sources.env);
    let (file, file_problems) = read_file(&sources.toml_path);
    problems.extend(file_problems);

    let mut repositories = merge_repositories(&variables, file.repositories, &mut problems, &mut warnings);
    let is_only = repositories.len() == 1;
    repositories.extend(late_repositories(sources));
    let mut settings = file.settings;
    settings.extend(variables);
    let mut values = Values::new(settings);
    values.problems = problems;

    let model = model(&mut values, &mut warnings);
    let repositories = read_repositories(repositories, is_only, &mut values.problems);
    let filesystem = filesystem(&mut values);
    let session = session(&mut values);
    let agent = agent(&mut values);
    let tls = tls(&mut values);
    let persist = persist(&mut values);
    let log = log(&mut values);
    let boot = Boot { accept: values.words("boot.accept") };
    let identity = identity(&mut values);
    let claude = super::claude::claude(&mut values, &mut warnings);
    let mut network = network(sources, &mut values, &repositories, &model, &mut warnings);
    let waits = session.start == Start::Wait && sources.task.is_none();
    if session.mode == Mode::Headless && session.prompt.is_none() && session.command.is_empty() && !waits {
        let next = "for example CLAUDE_PROMPT='Fix the failing test'";
        let message =
            "is missing; session.mode = headless needs it, since nobody can tell the agent what to do";
        values.problems.push(Problem::new("session.prompt", message, next));
    }
    let Credentials { mut secrets, required, mut seen, missing } =
        credentials::find(sources, &mut values, model.provider(), waits, &mut warnings);
    let telemetry = super::telemetry::telemetry(&mut values, &secrets, &mut network, &mut warnings);
    super::proxy::proxy(&mut values, &mut secrets, &mut seen, &mut network);
    let notices = super::notices::notices(&mut values, &mut secrets, &mut seen, &network.rules);

    let problems = Problems(values.problems).redacted(&seen);
    if !problems.0.is_empty() {
        return Err(problems);
    }
    let warnings = warnings.iter().map(|warning| secrets.redact(warning)).collect();
    Ok(Config {
        model,
        secrets,
        required_secrets: required,
        network,
        filesystem,
        repositories,
        session,
        agent,
        claude,
        telemetry,
        tls,
        persist,
        log,
        notices,
        boot,
        identity,
        missing,
        warnings,
    })
}

fn read_file(path: &Path) -> (RawConfig, Vec<Problem>) {
    match read_text(path, CONFIG_LIMIT) {
        Ok(Some(text)) => read_toml(&text, &path.display().to_string()),
        Ok(None) => (RawConfig::default(), Vec::new()),
        Err(error) => {
            let problem =
                Problem::new(path.display().to_string(), error.sentence(), "make it a readable text file");
            (RawConfig::default(), vec![problem])
        }
    }
}

fn model(values: &mut Values, warnings: &mut Vec<String>) -> Model {
    let provider = values.choice(
        "model.provider",
        Provider::Anthropic,
        &[
            ("anthropic", Provider::Anthropic),
            ("bedrock", Provider::Bedrock),
            ("vertex", Provider::Vertex),
            ("gateway", Provider::Gateway),
        ],
    );
    for key in PROVIDER_SETTINGS.iter().filter(|key| !provider.settings().contains(key)) {
        if values.is_set(key) {
            let place = values.place(key);
            warnings.push(format!("{place}: {key} is not used: model.provider is {}", provider.as_str()));
        }
    }
    for key in provider.settings() {
        if !values.is_set(key) {
            missing(values, key, provider);
        }
    }
    let model = match provider {
        Provider::Anthropic => Some(Model::Anthropic),
        Provider::Bedrock => cloud(values, "model.aws_region").map(|region| Model::Bedrock { region }),
        Provider::Vertex => {
            // Both are read before either is given up, so that both are reported.
            let (region, project) =
                (cloud(values, "model.vertex_region"), cloud(values, "model.vertex_project"));
            region.zip(project).map(|(region, project)| Model::Vertex { region, project })
        }
        Provider::Gateway => gateway(values).map(|url| Model::Gateway { url }),
    };
    // A stand-in of the same provider, so that its credentials are still looked for.
    model.unwrap_or_else(|| stand_in(provider))
}

fn missing(values: &mut Values, key: &str, provider: Provider) {
    let variable = super::settings::setting(key).map_or_else(String::new, |setting| {
        let alias = setting.aliases.first().map_or_else(|| setting.variable(), |alias| (*alias).to_owned());
        format!("for example {alias}={}", setting.example)
    });
    let message = format!("is missing; model.provider = {} needs it", provider.as_str());
    values.problems.push(Problem::new(key, message, variable));
}

fn stand_in(provider: Provider) -> Model {
    let unknown = || "unknown".to_owned();
    match provider {
        Provider::Anthropic => Model::Anthropic,
        Provider::Bedrock => Model::Bedrock { region: unknown() },
        Provider::Vertex => Model::Vertex { region: unknown(), project: unknown() },
        Provider::Gateway => GatewayUrl::parse("https://unknown.invalid")
            .map_or(Model::Anthropic, |url| Model::Gateway { url }),
    }
}

fn cloud(values: &mut Values, key: &'static str) -> Option<String> {
    values.line(key, check_cloud_name)
}

fn gateway(values: &mut Values) -> Option<GatewayUrl> {
    let found = values.one("model.base_url").filter(|found| !found.text.trim().is_empty())?;
    GatewayUrl::parse(&found.text).map_err(|error| values.refuse_unseen(&found, error)).ok()
}

/// The variables describe one repository. With an address they replace the list of the file; without, they refine
/// the only entry of it.
fn merge_repositories(
    variables: &RawSettings,
    mut listed: Vec<RawRepository>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Vec<RawRepository> {
    let blank = |value: &RawValue| matches!(value, RawValue::One(text) if text.trim().is_empty());
    let given =
        variables.iter().filter(|(key, given)| key.starts_with("repository.") && !blank(&given.value));
    let given: RawSettings = given.map(|(key, given)| (*key, given.clone())).collect();
    if let Some(source) = given.get("repository.url").or(given.get("repository.bundle")) {
        if !listed.is_empty() {
            warnings.push(format!(
                "{} replaces the repositories of the file ({})",
                source.place,
                listed.len()
            ));
        }
        return vec![RawRepository { place: source.place.clone(), settings: given }];
    }
    match listed.as_mut_slice() {
        [only] => only.settings.extend(given),
        [] | [_, _, ..] => problems.extend(given.values().map(|given| {
            let message = "describes a repository, but which one is not said";
            Problem::new(given.place.to_string(), message, "give INNKEEPER_REPOSITORY_URL too")
        })),
    }
    listed
}

/// What `innkeeper start` brought is one more, written as in the file.
fn late_repositories(sources: &Sources) -> Vec<RawRepository> {
    let late = sources.task.iter().flat_map(|task| &task.repositories);
    late.map(|one| {
        let place = Place::Variable(format!("--repository {}", super::problems::shown(&one.url)));
        let mut settings = RawSettings::new();
        let mut set = |key, value: Option<String>| {
            if let Some(value) = value {
                settings.insert(key, Given { place: place.clone(), value: RawValue::One(value) });
            }
        };
        set("repository.url", Some(one.url.clone()));
        set("repository.path", one.path.clone());
        set("repository.branch", one.branch.clone());
        set("repository.depth", one.depth.map(|depth| depth.to_string()));
        RawRepository { place, settings }
    })
    .collect()
}

/// `is_only`: the operator's list has one entry. What comes later has its directory settled already.
fn read_repositories(raw: Vec<RawRepository>, is_only: bool, problems: &mut Vec<Problem>) -> Vec<Repository> {
    let mut repositories: Vec<Repository> = Vec::new();
    for RawRepository { place, settings } in raw {
        let mut values = Values::new(settings);
        let repository = read_repository(&mut values, &place, is_only);
        problems.append(&mut values.problems);
        let Some(repository) = repository else { continue };
        if repositories.iter().any(|other| other.path == repository.path) {
            let message = format!("two repositories have the path \"{}\"", repository.path);
            problems.push(Problem::new(place.to_string(), message, "give each its own repository.path"));
        }
        repositories.push(repository);
    }
    repositories
}

fn read_repository(values: &mut Values, place: &Place, is_only: bool) -> Option<Repository> {
    let path = values.one("repository.path").filter(|found| !found.text.trim().is_empty());
    let path = path.map(|found| {
        DirectoryName::parse(found.text.trim()).map_err(|error| values.refuse(&found, error)).ok()
    });
    let branch = values.one("repository.branch").filter(|found| !found.text.is_empty());
    let branch = branch
        .and_then(|found| Branch::parse(&found.text).map_err(|error| values.refuse(&found, error)).ok());
    let depth = values.number("repository.depth");
    let source = repository_source(values, place)?;
    let path = match path {
        Some(path) => path?,
        None if is_only => DirectoryName::parse(ONLY).ok()?,
        None => source.name().or_else(|| DirectoryName::parse(ONLY).ok())?,
    };
    if matches!(source, Source::Bundle { .. }) && depth > 0 {
        let next = "leave one of them out";
        values.problems.push(Problem::new(
            place.to_string(),
            "a bundle is cloned whole; it has no depth",
            next,
        ));
    }
    Some(Repository { source, path, branch, depth })
}

fn repository_source(values: &mut Values, place: &Place) -> Option<Source> {
    let bundle = bundle(values);
    let url = if values.is_set("repository.url") {
        let found = values.one("repository.url")?;
        Some(RepoUrl::parse(&found.text).map_err(|error| values.refuse_unseen(&found, error)).ok()?)
    } else {
        None
    };
    match (bundle, url) {
        (Some(file), url) => Some(Source::Bundle { file, url }),
        (None, Some(url)) => Some(Source::Url(url)),
        (None, None) => {
            if !values.is_set("repository.bundle") {
                let next = "for example url = \"https://github.com/owner/repo\"";
                let message = "a repository has neither url nor bundle";
                values.problems.push(Problem::new(place.to_string(), message, next));
            }
            None
        }
    }
}

/// The file itself is read by git, as the agent.
fn bundle(values: &mut Values) -> Option<PathBuf> {
    let file = values.path("repository.bundle")?;
    let found = values.one("repository.bundle")?;
    match std::fs::metadata(&file) {
        Ok(metadata) if metadata.is_file() => Some(file),
        Ok(_) => {
            values.refuse(&found, "it is no file");
            None
        }
        Err(error) => {
            values.refuse(&found, format!("it can't be looked at ({})", error.kind()));
            None
        }
    }
}

fn filesystem(values: &mut Values) -> Filesystem {
    Filesystem {
        workspace_size: values.size("filesystem.workspace_size"),
        tmp_size: values.size("filesystem.tmp_size"),
        home_size: values.size("filesystem.home_size"),
    }
}

fn session(values: &mut Values) -> Session {
    let prompt = values.one("session.prompt").filter(|found| !found.text.trim().is_empty());
    if let Some(found) = prompt.as_ref().filter(|found| found.text.contains('\0')) {
        values.refuse_unseen(found, "it holds a NUL");
    }
    let on_exit = [("restart", OnExit::Restart), ("shell", OnExit::Shell), ("stop", OnExit::Stop)];
    Session {
        agent: values.choice("session.agent", Agent::Claude, &[("claude", Agent::Claude)]),
        args: values.arguments("session.args"),
        command: values.arguments("session.command"),
        prompt: prompt.map(|found| Prompt::new(found.text)),
        start: values.choice("session.start", Start::Boot, &[("boot", Start::Boot), ("wait", Start::Wait)]),
        mode: values.choice(
            "session.mode",
            Mode::Tmux,
            &[("tmux", Mode::Tmux), ("headless", Mode::Headless)],
        ),
        on_exit: values.choice("session.on_exit", OnExit::Restart, &on_exit),
        limits: limits(values),
        stop_timeout: values.duration("session.stop_timeout"),
    }
}

fn limits(values: &mut Values) -> Limits {
    let on_limit = [("wait", OnLimit::Wait), ("stop", OnLimit::Stop)];
    let until = values.line("session.until", |text| Until::parse(text).err());
    let max_cost = values.line("session.max_cost", |text| {
        let why = "it is no amount of US dollars: write 5 or 5.00, and nothing else";
        Microusd::parse(text).is_none().then_some(why)
    });
    let max_time =
        if values.is_set("session.max_time") { Some(values.duration("session.max_time")) } else { None };
    Limits {
        until: until.and_then(|text| Until::parse(&text).ok()),
        max_time,
        max_cost: max_cost.and_then(|text| Microusd::parse(&text)),
        on_limit: values.choice("session.on_limit", OnLimit::Wait, &on_limit),
    }
}

fn agent(values: &mut Values) -> AgentPermissions {
    let words = values.words("agent.allow");
    let has = |wanted: &str| words.iter().any(|word| word == wanted);
    AgentPermissions { userns: has("userns"), ptrace: has("ptrace") }
}

fn tls(values: &mut Values) -> Tls {
    let ca_certs = values.path("tls.ca_certs");
    if let (Some(path), Some(found)) = (&ca_certs, values.one("tls.ca_certs")) {
        match read_text(path, 4 * CONFIG_LIMIT) {
            Ok(Some(text)) if text.contains("PRIVATE KEY-----") => {
                values.refuse(&found, "the file holds a private key; only certificates belong there");
            }
            Ok(Some(text)) if text.contains("-----BEGIN CERTIFICATE-----") => {}
            Ok(Some(_)) => values.refuse(&found, "the file holds no PEM certificate"),
            Ok(None) => values.refuse(&found, "there is no such file"),
            Err(error) => values.refuse(&found, error.sentence()),
        }
    }
    Tls { ca_certs }
}

fn persist(values: &mut Values) -> Persist {
    Persist { interval: values.duration("persist.interval"), size: values.size("persist.size") }
}

fn log(values: &mut Values) -> Log {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log {
        format: values.choice("log.format", LogFormat::Text, &formats),
        file: values.path("log.file"),
        file_size: values.size("log.file_size"),
    }
}

fn identity(values: &mut Values) -> Identity {
    // git refuses or drops these (ident.c), so that a commit would fail much later.
    let brackets = |text: &str| text.contains(['<', '>']).then_some("it holds \"<\" or \">\"");
    let mail = |text: &str| {
        let text = text.trim();
        let good =
            text.contains('@') && !text.contains(|c: char| c.is_whitespace() || matches!(c, '<' | '>'));
        (!good).then_some("it is not a mail address")
    };
    let name = values.line("identity.name", brackets);
    let email = values.line("identity.email", mail);
    let default =
        |key| super::settings::setting(key).map_or_else(String::new, |setting| setting.default.to_owned());
    Identity {
        name: name.unwrap_or_else(|| default("identity.name")),
        email: email.unwrap_or_else(|| default("identity.email")),
    }
}

fn network(
    sources: &Sources,
    values: &mut Values,
    repositories: &[Repository],
    model: &Model,
    warnings: &mut Vec<String>,
) -> Network {
    let requests = values.choice(
        "network.requests",
        Requests::Deny,
        &[("deny", Requests::Deny), ("queue", Requests::Queue)],
    );
    let backends =
        [("auto", Backend::Auto), ("nftables", Backend::Nftables), ("iptables", Backend::Iptables)];
    let backend = values.choice("network.backend", Backend::Auto, &backends);
    let gates = [("auto", Gate::Auto), ("redirect", Gate::Redirect), ("proxy", Gate::Proxy)];
    let gate = values.choice("network.gate", Gate::Auto, &gates);
    let (policy, profiles) = policy::gather(sources, values, repositories, model, warnings);
    Network {
        rules: policy.rules,
        ceiling: policy.ceiling,
        profiles,
        upstreams: values.name_servers("network.upstreams"),
        backend,
        gate,
        refresh: values.duration("network.refresh"),
        boot_timeout: values.duration("network.boot_timeout"),
        inbound: values.ports("network.inbound"),
        loopback: values.ports("network.loopback"),
        requests,
        proxy: None,
    }
}

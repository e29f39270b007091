//! The rows of the table.  (pure)

use super::{Kind, Setting, Word, word};

const DAY: u64 = 86_400;

const PROVIDERS: &[Word] = &[word("anthropic"), word("bedrock"), word("vertex"), word("gateway")];
const BACKENDS: &[Word] = &[word("auto"), word("nftables"), word("iptables")];
const GATES: &[Word] = &[word("auto"), word("redirect"), word("proxy")];
const SWITCH: &[Word] = &[word("on"), word("off")];
/// As the variables of OpenTelemetry are given, and as everything else here.
const CONTENT: &[Word] = &[word("off"), word("on"), word("0"), word("1")];
const SWITCHES: &[Word] = &[word("userns"), word("ptrace")];

/// The protections that `boot.accept` can give up, by the names that `status` shows.
pub const PROTECTIONS: &[Word] =
    &[word("egress-ipv6"), word("host-doors"), word("rootfs"), word("shared-network")];

/// What notices are about.
const NOTICES: &[Word] = &[word("waiting"), word("finished"), word("denied"), word("crash-loop")];

const fn row(key: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Setting {
    Setting { key, kind, default, example: default, help, aliases: &[] }
}

impl Setting {
    const fn example(self, example: &'static str) -> Self {
        Self { example, ..self }
    }

    const fn also(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }
}

/// Every setting there is, section by section.
pub const SETTINGS: &[Setting] = &[
    row(
        "model.provider",
        Kind::Choice(PROVIDERS),
        "anthropic",
        "who serves the model: decides the required secrets and the model's names",
    ),
    row("model.aws_region", Kind::Line, "", "region of Amazon Bedrock")
        .example("eu-central-1")
        .also(&["AWS_REGION"]),
    row("model.vertex_region", Kind::Line, "", "region of Google Vertex AI")
        .example("europe-west1")
        .also(&["CLOUD_ML_REGION"]),
    row("model.vertex_project", Kind::Line, "", "project of Google Vertex AI")
        .example("my-project")
        .also(&["ANTHROPIC_VERTEX_PROJECT_ID"]),
    row("model.base_url", Kind::Url, "", "address of the gateway to the model")
        .example("https://gateway.example.org")
        .also(&["ANTHROPIC_BASE_URL"]),
    row(
        "secrets.required",
        Kind::Names,
        "",
        "further secrets without which the box does not start; handed to the agent",
    )
    .example("NPM_TOKEN"),
    row(
        "network.allow",
        Kind::Rules,
        "",
        "names that the agent may reach, beside those of the allowlist and the profiles",
    )
    .example("docs.example.org; git.corp.example:443,7999 private"),
    row(
        "network.profiles",
        Kind::Names,
        "claude,github,npm,pypi,crates,go,debian",
        "ready-made lists of names, by ecosystem",
    ),
    row("network.upstreams", Kind::Addresses, "", "DNS servers to ask; those of the old resolv.conf if none")
        .example("192.0.2.53, tls://[2001:db8::53]#dns.example"),
    row("network.backend", Kind::Choice(BACKENDS), "auto", "what the firewall is made with"),
    row(
        "network.gate",
        Kind::Choice(GATES),
        "auto",
        "how connections come to the egress gate: the kernel sends them there, or programs ask it as a proxy",
    ),
    row(
        "network.refresh",
        Kind::Duration { min: 10, max: DAY },
        "300s",
        "time between two looks at the addresses of every exact name",
    ),
    row(
        "network.boot_timeout",
        Kind::Duration { min: 0, max: 300 },
        "3s",
        "time that the boot waits for the exact names to be answered",
    ),
    row("network.inbound", Kind::Ports, "", "ports of the box that are open from outside").example("8080"),
    row("network.loopback", Kind::Ports, "", "ports of neighbours on the loopback that the agent may reach")
        .example("5432"),
    row(
        "network.requests",
        Kind::Choice(&[word("deny"), word("queue")]),
        "deny",
        "what happens when the agent asks for a name: refused at once, or left to the operator",
    ),
    row(
        "network.proxy",
        Kind::Line,
        "",
        "proxy that leads to every name that is not private, better given as the secret NETWORK_PROXY",
    )
    .example("http://proxy.corp.example:3128"),
    row(
        "filesystem.workspace_size",
        Kind::Size,
        "512M",
        "size of /workspace; unless set, at most 25 % of the memory",
    ),
    row("filesystem.tmp_size", Kind::Size, "512M", "size of /tmp; unless set, at most 15 % of the memory"),
    row(
        "filesystem.home_size",
        Kind::Size,
        "1G",
        "size of the agent's home; unless set, at most 20 % of the memory",
    ),
    row("repository.url", Kind::Url, "", "address of a repository to clone, or git@HOST:PATH")
        .example("https://github.com/owner/repo")
        .also(&["REPO_URL"]),
    row("repository.bundle", Kind::Path, "", "a git bundle in the box to clone, in place of an address or before it is asked")
        .example("/mnt/work.bundle"),
    row(
        "repository.path",
        Kind::Line,
        "",
        "its directory below /workspace; unless set, repo where it is the only one, else its own name",
    )
    .example("repo"),
    row("repository.branch", Kind::Line, "", "its branch; the remote's own choice if none").example("main"),
    row("repository.depth", Kind::Number { max: 1_000_000 }, "0", "commits to fetch; 0 fetches all"),
    row(
        "session.start",
        Kind::Choice(&[word("boot"), word("wait")]),
        "boot",
        "whether the task begins with the boot or waits for `innkeeper start`",
    ),
    row(
        "session.mode",
        Kind::Choice(&[word("tmux"), word("headless")]),
        "tmux",
        "whether the agent works on a terminal that operators can come to, or without one and to an end",
    ),
    row("session.agent", Kind::Choice(&[word("claude")]), "claude", "the agent that works in the box"),
    row("session.args", Kind::Arguments, "", "further arguments of the agent").example("--model\nopus"),
    row("session.command", Kind::Arguments, "", "program and arguments to run in place of the agent")
        .example("bash\n-l"),
    row("session.prompt", Kind::Text, "", "what the agent is told to do first; only its SHA-256 is logged")
        .example("Fix the failing test")
        .also(&["CLAUDE_PROMPT"]),
    row(
        "session.on_exit",
        Kind::Choice(&[word("restart"), word("shell"), word("stop")]),
        "restart",
        "what happens when the agent exits",
    ),
    row(
        "session.on_limit",
        Kind::Choice(&[word("wait"), word("stop")]),
        "wait",
        "what happens at a usage limit",
    ),
    row(
        "session.stop_timeout",
        Kind::Duration { min: 1, max: 3600 },
        "8s",
        "time that the session is given to end",
    ),
    row("session.until", Kind::Line, "", "when the session ends: a moment, or the next time that it is so late")
        .example("07:00+01:00"),
    row("session.max_time", Kind::Duration { min: 1, max: 365 * 24 * 3600 }, "", "how long the session lasts")
        .example("8h"),
    row("session.max_cost", Kind::Line, "", "US dollars that the session may cost, by its own account")
        .example("5.00"),
    row(
        "agent.allow",
        Kind::Words(SWITCHES),
        "",
        "kernel features that the agent is given back, at a price that status shows",
    )
    .example("userns"),
    row("claude.status_line", Kind::Choice(SWITCH), "on", "a line below the prompt: model, context, name, cost"),
    row(
        "claude.notes",
        Kind::Choice(SWITCH),
        "on",
        "whether Claude is told at its start what the box allows, what is writable and how to ask for more",
    ),
    row(
        "claude.hints",
        Kind::Choice(SWITCH),
        "on",
        "whether Claude is told that a command was refused by policy, and how to ask for the name",
    ),
    row(
        "claude.session_names",
        Kind::Choice(SWITCH),
        "off",
        "whether Haiku names each conversation after its first turn: one small call",
    ),
    row(
        "claude.formatters",
        Kind::Path,
        "/opt/innkeeper/formatters.conf",
        "what formats a file that Claude wrote, by pattern; nothing where there is no such file",
    ),
    row("claude.instructions", Kind::Path, "", "a CLAUDE.md of the operator's, which the agent can't change")
        .example("/opt/innkeeper/CLAUDE.md"),
    row(
        "claude.skills",
        Kind::Path,
        "/opt/innkeeper/skills",
        "directory of skills, copied into the agent's home where it has none of that name",
    ),
    row(
        "claude.plugins",
        Kind::Path,
        "/opt/innkeeper/plugins",
        "directory of plugins, each of which Claude is given",
    ),
    row(
        "claude.sync_fork",
        Kind::Choice(SWITCH),
        "off",
        "whether a fork follows its upstream at the start of a session: never forced",
    ),
    row(
        "telemetry.endpoint",
        Kind::Url,
        "",
        "address to which Claude Code sends OpenTelemetry; its host is allowed; headers by OTEL_EXPORTER_OTLP_HEADERS",
    )
    .example("https://otlp.example.org")
    .also(&["OTEL_EXPORTER_OTLP_ENDPOINT"]),
    row(
        "telemetry.grafana_endpoint",
        Kind::Url,
        "",
        "the same for Grafana Cloud, with telemetry.grafana_instance and the secret GRAFANA_API_TOKEN",
    )
    .example("https://otlp-gateway.example.org/otlp")
    .also(&["GRAFANA_OTLP_ENDPOINT"]),
    row("telemetry.grafana_instance", Kind::Line, "", "the instance id of Grafana Cloud")
        .example("123456")
        .also(&["GRAFANA_INSTANCE_ID"]),
    row(
        "telemetry.attributes",
        Kind::Line,
        "",
        "further resource attributes, KEY=VALUE separated by commas; they win over the box's own",
    )
    .example("team=night,env=prod")
    .also(&["OTEL_RESOURCE_ATTRIBUTES"]),
    row(
        "telemetry.log_prompts",
        Kind::Choice(CONTENT),
        "off",
        "whether what Claude is told is in the telemetry",
    )
    .also(&["OTEL_LOG_USER_PROMPTS"]),
    row(
        "telemetry.log_tools",
        Kind::Choice(CONTENT),
        "off",
        "whether commands, paths and other arguments of tools are in the telemetry",
    )
    .also(&["OTEL_LOG_TOOL_DETAILS"]),
    row("tls.ca_certs", Kind::Path, "", "PEM file of certificates that every tool trusts beside its own")
        .example("/etc/innkeeper/corp-ca.pem")
        .also(&["NODE_EXTRA_CA_CERTS"]),
    row(
        "persist.interval",
        Kind::Duration { min: 0, max: DAY },
        "10m",
        "time between two saves of the work to the volume at /persist; 0s saves at the end and when asked alone",
    ),
    row("persist.size", Kind::Size, "2G", "octets that the saves on the volume may take"),
    row(
        "log.format",
        Kind::Choice(&[word("text"), word("json")]),
        "text",
        "how events are written to standard error",
    ),
    row("log.file", Kind::Path, "", "the audit log, on a volume that is mounted for it alone")
        .example("/audit/innkeeper.jsonl"),
    row(
        "log.file_size",
        Kind::Size,
        "64M",
        "size at which log.file is turned over; the file before it is kept as log.file.1",
    ),
    row(
        "notices.command",
        Kind::Arguments,
        "",
        "program and arguments that get each notice on standard input, as a user of its own",
    )
    .example("/opt/notices/send"),
    row(
        "notices.webhook",
        Kind::Url,
        "",
        "address that each notice is POSTed to, better given as the secret NOTICES_WEBHOOK; its host must be allowed",
    )
    .example("https://hooks.example.org/path"),
    row(
        "notices.on",
        Kind::Words(NOTICES),
        "waiting,finished,denied,crash-loop",
        "what is told; waiting and finished ring at attached terminals too",
    ),
    row(
        "boot.accept",
        Kind::Words(PROTECTIONS),
        "",
        "protections given up by name where the host can't give them",
    )
    .example("egress-ipv6"),
    row("identity.name", Kind::Line, "innkeeper", "the author's name in git").also(&["GIT_USER_NAME"]),
    row(
        "identity.email",
        Kind::Line,
        "innkeeper@users.noreply.github.com",
        "the author's mail address in git",
    )
    .also(&["GIT_USER_EMAIL"]),
];

//! What the screen says, by section. (pure)

use std::time::{Duration, SystemTime};

use super::{Line, Section, Tone};
use crate::gate::verdict::UNSEEN_BRIEFLY;
use crate::persist::VOLUME;
use crate::resources::warnings::{octets, percent};
use crate::status::report::{
    AccessRequest, AtRisk, Audience, Denial, Persist, Phase, PolicyRule, Protection, Report, RepositoryState,
    RequestState, SessionState, StepState, Worker,
};
use crate::status::wording::{clock, command, cut, since, span, until, wrap};

const JSON: &str = "innkeeper status --json";
/// Denials that are shown before anything is said at length.
const DENIALS: usize = 2;

/// The sections in the order in which they stand on the screen.
pub(super) fn of(report: &Report, width: usize, now: SystemTime) -> Vec<Section> {
    let page = Page { report, width, now };
    vec![
        page.head(),
        page.open_protections(),
        page.steps(),
        page.readable_secrets(),
        page.protections(),
        page.session(),
        page.network(),
        page.workers(),
        page.resources(),
        page.repositories(),
        page.persist(),
        page.grants(),
        page.audit(),
        page.warnings(),
        page.requests(),
        page.denials(),
    ]
}

struct Page<'a> {
    report: &'a Report,
    width: usize,
    now: SystemTime,
}

/// Lines of an ended Claude's last screen; `status --json` has the rest.
const LAST_OUTPUT: usize = 5;

impl Page<'_> {
    fn line(&self, tone: Tone, text: &str) -> Line {
        Line { tone, text: cut(text, self.width) }
    }

    fn wrapped(&self, tone: Tone, text: &str, indent: &str) -> Vec<Line> {
        wrap(text, self.width, indent).into_iter().map(|text| Line { tone, text }).collect()
    }

    /// Lines that stand alone, with no heading.
    fn plain(&self, rank: u8, least: usize, entries: Vec<(Tone, String)>) -> Section {
        let entries = entries.into_iter().map(|(tone, text)| vec![self.line(tone, &text)]).collect();
        Section { title: None, entries, least, rank, rest: "" }
    }

    fn ago(&self, at: &str) -> String {
        since(at, self.now).map_or_else(String::new, span)
    }

    /// What does not hold comes first: a green line on top would be believed.
    fn head(&self) -> Section {
        let report = self.report;
        let open: Vec<&str> =
            report.protections.iter().filter(|one| !one.held).map(|one| one.name.as_str()).collect();
        let (word, tone) = match report.phase {
            Phase::Booting => ("BOOTING", Tone::Attention),
            Phase::Ready => ("READY", Tone::Good),
            Phase::Stopping => ("STOPPING", Tone::Attention),
            Phase::Failed => ("FAILED", Tone::Bad),
        };
        let (tone, open) = match open.as_slice() {
            [] => (tone, String::new()),
            names => (Tone::Bad, format!("  NOT HELD: {}", names.join(", "))),
        };
        let closed = report.boot.lockdown_ms.map(|ms| format!("closed after {ms:.1} ms"));
        let ready = report.boot.ready_ms.map(|ms| format!("ready after {ms:.0} ms"));
        let name = crate::report::bounded(&report.box_.name, 20);
        let about = [Some(format!("{name}, innkeeper {}", report.version)), closed, ready];
        let about: Vec<String> = about.into_iter().flatten().collect();
        self.plain(0, 1, vec![(tone, format!("{word}{open}  {}", about.join(", ")))])
    }

    fn open_protections(&self) -> Section {
        let open = self.report.protections.iter().filter(|one| !one.held);
        let entry = |one: &Protection| {
            let text = [one.how.as_str(), one.detail.as_str()].map(str::trim);
            let text = text.iter().filter(|text| !text.is_empty()).copied().collect::<Vec<_>>().join(": ");
            let age = self.ago(&one.verified_at);
            let mut lines =
                self.wrapped(Tone::Bad, &format!("{} NOT HELD ({age} ago): {text}", one.name), "  ");
            // The reason fits three lines or is in --json.
            lines.truncate(3);
            lines
        };
        let entries: Vec<Vec<Line>> = open.map(entry).collect();
        Section { title: None, least: entries.len(), entries, rank: 1, rest: JSON }
    }

    fn steps(&self) -> Section {
        let steps = self.report.boot.steps.iter().filter_map(|step| match step.state {
            StepState::Failed => Some((Tone::Bad, format!("  {} failed: {}", step.name, step.detail))),
            StepState::Running => Some((Tone::Attention, format!("  {} …", step.name))),
            StepState::Degraded => {
                Some((Tone::Attention, format!("  {} degraded: {}", step.name, step.detail)))
            }
            StepState::Pending | StepState::Ok => None,
        });
        self.plain(2, 4, steps.collect())
    }

    fn readable_secrets(&self) -> Section {
        let operator = self.report.audience == Audience::Operator;
        let readable = self.report.secrets.iter().filter(|secret| secret.agent_can_read && operator);
        let names: Vec<&str> = readable.map(|secret| secret.name.as_str()).collect();
        let text = (!names.is_empty()).then(|| format!("  the agent can read {}", names.join(", ")));
        self.plain(3, 1, text.into_iter().map(|text| (Tone::Bad, text)).collect())
    }

    /// Those that hold share a few lines; the oldest proof stands for all.
    fn protections(&self) -> Section {
        let held: Vec<&Protection> = self.report.protections.iter().filter(|one| one.held).collect();
        if held.is_empty() {
            return Section::default();
        }
        let ages = held.iter().filter_map(|one| since(&one.verified_at, self.now));
        let oldest = ages.max().unwrap_or_default();
        let name = |one: &&Protection| match one.how.as_str() {
            "" => one.name.clone(),
            how => format!("{} ({how})", one.name),
        };
        let names: Vec<String> = held.iter().map(name).collect();
        let title = format!("Protections: {} held, proven {} ago", held.len(), span(oldest));
        let entry = self.wrapped(Tone::Plain, &names.join(", "), "  ");
        let title = Some(self.line(Tone::Title, &title));
        Section { title, entries: vec![entry], least: 1, rank: 4, rest: JSON }
    }

    fn session(&self) -> Section {
        let session = &self.report.session;
        let (word, tone) = match session.state {
            SessionState::Starting => ("starting", Tone::Attention),
            SessionState::Running => ("running", Tone::Good),
            SessionState::Waiting => ("waiting for a person", Tone::Attention),
            SessionState::Limited => ("waiting for the usage limit", Tone::Attention),
            SessionState::Exited => ("Claude Code has ended", Tone::Bad),
            SessionState::Backoff => ("starting again", Tone::Attention),
            SessionState::Parked => ("parked", Tone::Plain),
            SessionState::Done => ("done", Tone::Plain),
        };
        let mut parts =
            vec![format!("Session: {word} since {} ({})", clock(&session.since), self.ago(&session.since))];
        parts.extend(session.claude_pid.map(|pid| format!("pid {pid}")));
        if session.restarts > 0 {
            parts.push(format!("{} restarts", session.restarts));
        }
        parts.extend(session.until.as_deref().map(|end| format!("until {}", clock(end))));
        parts.extend(session.deadline.as_deref().map(|end| format!("ends {}", clock(end))));
        parts.extend(session.cost_usd.map(|cost| format!("${cost:.2}")));
        parts.extend(session.context_percent.map(|used| format!("context {used} %")));
        parts.extend(session.name.as_deref().map(|name| format!("\u{201c}{name}\u{201d}")));
        parts.extend(self.attached());
        let mut lines = vec![(tone, parts.join(", "))];
        lines.extend(session.last_exit.as_ref().map(|exit| (Tone::Plain, format!("  last: {exit}"))));
        if !session.detail.is_empty() && session.last_exit.as_ref() != Some(&session.detail) {
            lines.push((Tone::Plain, format!("  {}", session.detail)));
        }
        if matches!(session.state, SessionState::Backoff | SessionState::Exited) {
            let output = session.last_output.iter().flat_map(|output| output.lines());
            let output: Vec<&str> = output.filter(|line| !line.trim().is_empty()).collect();
            let last = output.iter().skip(output.len().saturating_sub(LAST_OUTPUT));
            lines.extend(last.map(|line| (Tone::Plain, format!("  | {line}"))));
        }
        self.plain(5, 1, lines)
    }

    fn attached(&self) -> Option<String> {
        let operators = &self.report.operators;
        let looking = operators.iter().filter(|one| one.read_only).count();
        match (operators.len(), looking) {
            (0, _) => None,
            (count, 0) => Some(format!("{count} attached")),
            (count, looking) => Some(format!("{count} attached ({looking} read-only)")),
        }
    }

    fn network(&self) -> Section {
        let (report, dns) = (self.report, &self.report.dns);
        let mut entries = Vec::new();
        let down = dns.upstreams.iter().any(|upstream| !upstream.healthy);
        let upstreams: Vec<String> = dns
            .upstreams
            .iter()
            .map(|one| format!("{}{}", one.address, if one.healthy { "" } else { " (DOWN)" }))
            .collect();
        let asks =
            if upstreams.is_empty() { String::new() } else { format!("; asks {}", upstreams.join(", ")) };
        let text =
            format!("DNS: {} asked, {} allowed, {} denied{asks}", dns.queries, dns.allowed, dns.denied);
        entries.push((if down { Tone::Attention } else { Tone::Plain }, text));
        let stale = report.firewall.addresses.iter().filter(|address| address.stale).count();
        let stale = if stale > 0 { format!(" ({stale} stale)") } else { String::new() };
        entries.push((
            Tone::Plain,
            format!(
                "Firewall: {} rules (generation {}), {} addresses open{stale}, {} packets refused",
                report.policy.rules.len(),
                report.policy.generation,
                report.firewall.addresses.len(),
                report.firewall.denied
            ),
        ));
        let gate = &report.gate;
        if !gate.how.is_empty() {
            let failed =
                if gate.failed > 0 { format!(", {} unreachable", gate.failed) } else { String::new() };
            let text = format!(
                "Gate: {} connections let through by the name they show ({} open), {} refused{failed}",
                gate.connections, gate.open, gate.denied
            );
            entries.push((Tone::Plain, text));
            entries.push((Tone::Plain, format!("  not seen: {UNSEEN_BRIEFLY}")));
        }
        if !dns.failing.is_empty() {
            let mut names: Vec<&str> = dns.failing.iter().map(|failing| failing.name.as_str()).collect();
            names.sort_unstable();
            let text = format!("  {} names don't resolve: {}", names.len(), names.join(", "));
            entries.push((Tone::Attention, text));
        }
        entries.extend(self.traffic());
        let telemetry = report.telemetry.as_ref().map(|to| format!("Telemetry: {to}"));
        entries.extend(telemetry.map(|text| (Tone::Plain, text)));
        self.plain(7, 1, entries)
    }

    /// Where most went.
    fn traffic(&self) -> Option<(Tone, String)> {
        let most = self.report.traffic.iter().take(3);
        let most: Vec<String> = most.map(|row| format!("{} {}", row.name, octets(row.bytes_out))).collect();
        let sum = |of: fn(&crate::status::report::Traffic) -> u64| {
            self.report.traffic.iter().map(of).fold(0_u64, u64::saturating_add)
        };
        let (out, back) = (sum(|row| row.bytes_out), sum(|row| row.bytes_in));
        let text = format!("Carried: out {}, in {}; most to {}", octets(out), octets(back), most.join(", "));
        (!most.is_empty()).then_some((Tone::Plain, text))
    }

    fn workers(&self) -> Section {
        let mut tone = Tone::Plain;
        let mut show = |worker: &Worker| {
            let again =
                if worker.restarts > 0 { format!(", {} restarts", worker.restarts) } else { String::new() };
            let up = if worker.pid.is_some() {
                span(Duration::try_from_secs_f64(worker.uptime_s).unwrap_or_default())
            } else {
                tone = Tone::Bad;
                "DOWN".to_owned()
            };
            format!("{} {up}{again}", worker.name)
        };
        let workers: Vec<String> = self.report.workers.iter().map(&mut show).collect();
        let line = (!workers.is_empty()).then(|| format!("Workers: {}", workers.join("; ")));
        let rank = if tone == Tone::Bad { 2 } else { 10 };
        self.plain(rank, 1, line.into_iter().map(|line| (tone, line)).collect())
    }

    fn resources(&self) -> Section {
        let resources = &self.report.resources;
        let mut parts = Vec::new();
        if let Some(memory) = &resources.memory {
            parts.push(match memory.limit {
                Some(limit) => format!(
                    "memory {} of {} ({} %)",
                    octets(memory.used),
                    octets(limit),
                    percent(memory.used, limit)
                ),
                None => format!("memory {}", octets(memory.used)),
            });
        }
        // What the agent can fill; Innkeeper's own state is not interesting until it is.
        let shown = resources.mounts.iter().filter(|fill| {
            let full = percent(fill.used, fill.size).max(percent(fill.inodes_used, fill.inodes));
            full >= 50 || !fill.path.starts_with("/run") && !fill.path.starts_with("/dev")
        });
        let places: Vec<String> =
            shown.map(|fill| format!("{} {} %", fill.path, percent(fill.used, fill.size))).collect();
        if !places.is_empty() {
            parts.push(format!("full: {}", places.join(", ")));
        }
        let line = (!parts.is_empty()).then(|| (Tone::Plain, format!("Resources: {}", parts.join("; "))));
        let kills = (resources.oom_kills > 0).then(|| {
            let victim = resources.oom_victims.first().map_or_else(String::new, |one| format!("; {one}"));
            (Tone::Bad, format!("Out of memory: {} processes were ended{victim}", resources.oom_kills))
        });
        self.plain(9, 1, kills.into_iter().chain(line).collect())
    }

    fn repositories(&self) -> Section {
        let mut entries: Vec<(Tone, String)> = Vec::new();
        for repository in &self.report.repositories {
            let (word, tone) = match repository.state {
                RepositoryState::Cloned => ("", Tone::Plain),
                RepositoryState::Cloning => ("cloning: ", Tone::Attention),
                RepositoryState::Failed => ("FAILED: ", Tone::Bad),
            };
            entries.push((tone, format!("Repository {}: {word}{}", repository.path, repository.detail)));
        }
        // What failed stands first, and before what is well elsewhere.
        entries.sort_by_key(|(tone, _)| *tone != Tone::Bad);
        let rank = if entries.iter().any(|(tone, _)| *tone == Tone::Bad) { 6 } else { 11 };
        Section { rest: JSON, ..self.plain(rank, 1, entries) }
    }

    /// What outlives the box, or what would be lost with it.
    fn persist(&self) -> Section {
        let persist = &self.report.persist;
        if self.report.phase == Phase::Booting {
            return Section::default();
        }
        let mut entries: Vec<(Tone, String)> = Vec::new();
        if let Some(trouble) = &persist.trouble {
            entries.push((Tone::Bad, format!("NOT SAVED: {trouble}")));
        }
        match (&persist.path, &persist.saved_at) {
            (Some(path), Some(at)) => {
                let size =
                    if persist.bytes > 0 { format!(", {}", octets(persist.bytes)) } else { String::new() };
                let took = if persist.took_ms > 0.0 {
                    format!(" in {:.0} ms", persist.took_ms)
                } else {
                    String::new()
                };
                let left = match persist.left_out.len() {
                    0 => String::new(),
                    number => format!("; {number} left out: {JSON}"),
                };
                entries
                    .push((Tone::Plain, format!("Saved to {path} {} ago{size}{took}{left}", self.ago(at))));
            }
            (Some(path), None) => {
                entries.push((Tone::Plain, format!("Saved to {path}: not yet (innkeeper save)")));
            }
            (None, _) => entries.push((Tone::Attention, lost(persist))),
        }
        if let Some(restored) = &persist.restored {
            entries.push((Tone::Plain, format!("Restored: {restored}")));
        }
        let rank = if persist.trouble.is_some() { 6 } else { 12 };
        Section { rest: JSON, ..self.plain(rank, 1, entries) }
    }

    /// What was added to the policy of this box while it lived.
    fn grants(&self) -> Section {
        let is_granted = |rule: &&PolicyRule| rule.origin == OPERATOR || rule.origin.starts_with("request");
        let show = |rule: &PolicyRule| match &rule.expires_at {
            Some(end) => {
                let left = until(end, self.now).map_or_else(String::new, span);
                format!("{} until {} ({left} left)", rule.rule, clock(end))
            }
            None => rule.rule.clone(),
        };
        let granted: Vec<String> = self.report.policy.rules.iter().filter(is_granted).map(show).collect();
        let lines = (!granted.is_empty())
            .then(|| self.wrapped(Tone::Attention, &format!("Granted: {}", granted.join("; ")), ""));
        let mut entries: Vec<Vec<Line>> = lines.into_iter().collect();
        for lines in &mut entries {
            let hidden = lines.len() > GRANT_LINES;
            lines.truncate(GRANT_LINES);
            if let Some(last) = lines.last_mut().filter(|_| hidden) {
                *last = self.line(last.tone, &format!("{} … more: {JSON}", cut(&last.text, self.width / 2)));
            }
        }
        Section { title: None, entries, least: 1, rank: 8, rest: JSON }
    }

    /// Only where there is something to be known of it.
    fn audit(&self) -> Section {
        let audit = &self.report.audit;
        let file = audit.file.as_deref().unwrap_or("no file");
        let trouble =
            audit.trouble.as_ref().map(|trouble| (Tone::Bad, format!("Audit log: {file}: {trouble}")));
        let lost = (audit.lost > 0)
            .then(|| (Tone::Attention, format!("Audit log: {} lines did not get into {file}", audit.lost)));
        let fine = audit
            .file
            .as_ref()
            .map(|file| (Tone::Plain, format!("Audit log: {} entries; {file}", audit.entries)));
        let line = trouble.or(lost).or(fine);
        let rank = if line.as_ref().is_some_and(|(tone, _)| *tone == Tone::Bad) { 3 } else { 13 };
        self.plain(rank, 1, line.into_iter().collect())
    }

    fn warnings(&self) -> Section {
        // The newest last: those that come and go stand behind those of the boot, and matter now.
        let warnings = self.report.warnings.iter().rev();
        let entries: Vec<Vec<Line>> =
            warnings.map(|warning| vec![self.line(Tone::Attention, &format!("  ! {warning}"))]).collect();
        let title = (!entries.is_empty()).then(|| self.line(Tone::Title, "Warnings"));
        Section { title, entries, least: 1, rank: 12, rest: JSON }
    }

    fn requests(&self) -> Section {
        let operator = self.report.audience == Audience::Operator;
        let pending = self.report.requests.iter().rev();
        let pending: Vec<&AccessRequest> =
            pending.filter(|request| request.state == RequestState::Pending).collect();
        let entry = |request: &&AccessRequest| {
            let grant = if operator { format!("innkeeper grant {}: ", request.id) } else { String::new() };
            let (rule, reason, age) = (&request.rule, &request.reason, self.ago(&request.time));
            let tone = if operator { Tone::Attention } else { Tone::Plain };
            vec![self.line(tone, &format!("  {grant}{rule}, asked {age} ago: {reason}"))]
        };
        let entries = pending.iter().map(entry).collect();
        let title =
            if operator { "The agent asks (--for 1h, or refuse ID)" } else { "Waiting for the operator" };
        let title = (!pending.is_empty()).then(|| self.line(Tone::Title, title));
        Section { title, entries, least: 2, rank: 6, rest: "innkeeper requests" }
    }

    fn denials(&self) -> Section {
        let entries: Vec<Vec<Line>> = self
            .report
            .denials
            .iter()
            .map(|denial| denied(denial, self.width, self.report.audience))
            .collect();
        if entries.is_empty() {
            return Section {
                entries: vec![vec![self.line(Tone::Title, "Nothing was refused")]],
                least: 1,
                rank: 6,
                ..Section::default()
            };
        }
        let rest = match self.report.audience {
            Audience::Operator => "innkeeper log --denied",
            Audience::Agent => JSON,
        };
        let title = Some(self.line(Tone::Title, "Refused (the newest first)"));
        Section { title, entries, least: DENIALS, rank: 6, rest }
    }
}

/// The origin of a rule that the operator added in the living box.
const OPERATOR: &str = "operator";
/// Lines that grants may take.
const GRANT_LINES: usize = 3;

/// Without a volume.
fn lost(persist: &Persist) -> String {
    let risk = |risk: &AtRisk| format!("{} ({} commits, {} files)", risk.path, risk.commits, risk.files);
    let work: Vec<String> = persist.at_risk.iter().map(risk).collect();
    let work = if work.is_empty() { String::new() } else { format!("{}; ", work.join("; ")) };
    format!("Lost with the box, as no volume is at {VOLUME}: {work}the conversation")
}

/// A refusal with the command that would allow it, which is never cut: in one line, or the command on its own.
pub(crate) fn denied(denial: &Denial, width: usize, audience: Audience) -> Vec<Line> {
    let who = match (audience, denial.uid) {
        (Audience::Agent, _) => String::new(),
        (Audience::Operator, Some(uid)) => format!(", uid {uid}"),
        (Audience::Operator, None) => String::new(),
    };
    let process = denial.process.as_ref().map_or_else(String::new, |process| format!(" {process}"));
    let what = format!(
        "  {} {} {} ({}×{who}{process})",
        clock(&denial.time),
        denial.layer,
        denial.what,
        denial.count
    );
    let whole = if denial.allow.is_empty() { what.clone() } else { format!("{what}: {}", denial.allow) };
    let plain = |text: String| Line { tone: Tone::Plain, text };
    if crate::report::inert(&whole).chars().count() <= width {
        return vec![plain(cut(&whole, width))];
    }
    let mut lines = vec![plain(cut(&what, width))];
    if denial.allow.starts_with("innkeeper ") {
        lines.extend(command(&denial.allow, width, "    ").into_iter().map(plain));
    } else {
        lines.extend(wrap(&denial.allow, width, "    ").into_iter().map(plain));
    }
    lines
}

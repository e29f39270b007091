//! Finds the credentials in variables and files, checks their shape, and says which are missing.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Sources;
use super::files::{SECRET_LIMIT, read_text};
use super::problems::{Problem, shown};
use super::provider::{Provider, SECRETS, SecretSpec};
use super::values::Values;
use crate::secrets::shape::Shape;
use crate::secrets::{Credential, Holder, Secret, SecretName, SecretSource, Secrets};

/// Every value that was found, good or bad, by the name of its secret: what no message may hold.
pub(super) type Seen = Vec<(String, Zeroizing<String>)>;

/// What was found.
pub(super) struct Credentials {
    pub(super) secrets: Secrets,
    /// What `secrets.required` names.
    pub(super) required: Vec<SecretName>,
    pub(super) seen: Seen,
    /// What a box that waits for its task still lacks.
    pub(super) missing: Vec<String>,
}

/// What is looked for under the name of one secret.
struct Wanted {
    name: SecretName,
    aliases: &'static [&'static str],
    shape: Shape,
    held_by: Holder,
    obtain: &'static str,
    is_path: bool,
}

/// A value and where it was found.
struct Candidate {
    label: String,
    source: SecretSource,
    value: Zeroizing<String>,
}

/// Finds every known credential and those that `secrets.required` names; what is wrong goes into `values.problems`.
/// Where the box waits for its task, what is missing may come with it.
#[must_use]
pub(super) fn find(
    sources: &Sources,
    values: &mut Values,
    provider: Provider,
    waits: bool,
    warnings: &mut Vec<String>,
) -> Credentials {
    let required = required_names(values);
    let mut search = Search {
        sources,
        values,
        warnings,
        secrets: Secrets::default(),
        seen: Vec::new(),
        bad: Vec::new(),
        blank: Vec::new(),
    };
    let further = required.iter().filter(|name| SECRETS.iter().all(|spec| spec.name != name.as_str()));
    let wanted: Vec<Wanted> = SECRETS.iter().filter_map(known).chain(further.cloned().map(unknown)).collect();
    for one in &wanted {
        search.look_for(one);
    }
    let before = search.values.problems.len();
    search.require_provider(provider);
    for name in &required {
        search.require(name, &wanted);
    }
    let missing = if waits { search.values.problems.split_off(before) } else { Vec::new() };
    let missing =
        missing.into_iter().map(|problem| format!("{} {}", problem.what, problem.message)).collect();
    search.remarks(provider);
    Credentials { secrets: search.secrets, required, seen: search.seen, missing }
}

fn required_names(values: &mut Values) -> Vec<SecretName> {
    let mut names = Vec::new();
    for found in values.many("secrets.required") {
        match SecretName::parse(&found.text) {
            Ok(name) if !names.contains(&name) => names.push(name),
            Ok(_) => {}
            Err(error) => values.refuse(&found, error),
        }
    }
    names
}

fn known(spec: &SecretSpec) -> Option<Wanted> {
    let SecretSpec { aliases, shape, held_by, obtain, is_path, .. } = *spec;
    Some(Wanted { name: SecretName::parse(spec.name).ok()?, aliases, shape, held_by, obtain, is_path })
}

fn unknown(name: SecretName) -> Wanted {
    Wanted { name, aliases: &[], shape: Shape::Line, held_by: Holder::Agent, obtain: "", is_path: false }
}

struct Search<'a> {
    sources: &'a Sources,
    values: &'a mut Values,
    warnings: &'a mut Vec<String>,
    secrets: Secrets,
    seen: Seen,
    /// Secrets that were given but can't be used; they are not missing as well.
    bad: Vec<String>,
    /// Places that hold nothing, by the name of the secret.
    blank: Vec<(String, String)>,
}

impl Search<'_> {
    fn problem(&mut self, what: impl Into<String>, message: impl Into<String>, next: impl Into<String>) {
        self.values.problems.push(Problem::new(what, message, next));
    }

    fn look_for(&mut self, wanted: &Wanted) {
        let mut candidates = Vec::new();
        let name = wanted.name.as_str();
        for name in std::iter::once(name).chain(wanted.aliases.iter().copied()) {
            let before = self.values.problems.len();
            self.candidates(name, wanted, &mut candidates);
            if self.values.problems.len() > before {
                self.bad.push(wanted.name.as_str().to_owned());
            }
        }
        for candidate in &candidates {
            self.seen.push((name.to_owned(), Zeroizing::new(candidate.value.trim().to_owned())));
        }
        let (blank, mut given): (Vec<Candidate>, Vec<Candidate>) =
            candidates.into_iter().partition(|candidate| candidate.value.trim().is_empty());
        if given.is_empty() {
            return self.only_blank(wanted, &blank);
        }
        for candidate in &blank {
            self.warnings.push(format!("{} is blank and counts as not given", candidate.label));
        }
        let chosen = given.remove(0);
        if let Some(other) = given.iter().find(|other| *other.value != *chosen.value) {
            let what = format!("{} and {}", chosen.label, other.label);
            self.problem(what, format!("hold two different values of {name}"), "remove one of them");
            self.bad.push(name.to_owned());
        }
        self.take(wanted, chosen);
    }

    fn only_blank(&mut self, wanted: &Wanted, blank: &[Candidate]) {
        let name = wanted.name.as_str();
        let Some(first) = blank.first() else { return };
        self.blank.push((name.to_owned(), first.label.clone()));
        let required = self.values.many("secrets.required").iter().any(|found| found.text == name);
        if required {
            self.bad.push(name.to_owned());
            self.problem(
                first.label.clone(),
                format!("is blank; expected {}", wanted.shape.expected()),
                wanted.obtain,
            );
        } else {
            self.warnings.push(format!("{} is blank and counts as not given", first.label));
        }
    }

    fn take(&mut self, wanted: &Wanted, chosen: Candidate) {
        let name = wanted.name.as_str();
        match wanted.shape.check(&chosen.value) {
            Ok(oddity) => {
                if let Some(oddity) = oddity {
                    self.warnings.push(format!("{}: {oddity}", chosen.label));
                }
                let Candidate { source, mut value, .. } = chosen;
                let value = Secret::new(std::mem::take(&mut *value));
                self.secrets.insert(Credential {
                    name: wanted.name.clone(),
                    value,
                    source,
                    held_by: wanted.held_by,
                });
            }
            Err(error) => {
                self.bad.push(name.to_owned());
                let message = format!("is not usable: {error}; expected {}", wanted.shape.expected());
                self.problem(chosen.label, message, "give the value alone, as it was issued");
            }
        }
    }

    /// `NAME`, then `NAME_FILE`, then `/run/secrets/NAME`.
    fn candidates(&mut self, name: &str, wanted: &Wanted, found: &mut Vec<Candidate>) {
        match self.sources.env.get(name).map(|value| value.to_str().map(str::to_owned)) {
            Some(None) => self.problem(name, "is not UTF-8", "give the value alone, as it was issued"),
            Some(Some(path)) if wanted.is_path && name == wanted.name.as_str() => {
                self.file_of_variable(name, &path, found);
            }
            Some(Some(text)) => {
                let value = Zeroizing::new(text);
                found.push(Candidate { label: name.to_owned(), source: SecretSource::Env, value });
            }
            None => {}
        }
        let variable = format!("{name}_FILE");
        match self.sources.env.get(&variable).map(|value| value.to_str().map(str::to_owned)) {
            Some(None) => self.problem(variable, "is not UTF-8", "give the path of a file"),
            Some(Some(path)) => self.file_of_variable(&variable, &path, found),
            None => {}
        }
        let path = self.sources.secrets_dir.join(name);
        let label = path.display().to_string();
        self.file(&label, &path, found, false);
    }

    fn file_of_variable(&mut self, variable: &str, path: &str, found: &mut Vec<Candidate>) {
        if path.trim().is_empty() {
            return;
        }
        let path = PathBuf::from(path);
        // A token in the place of a path would be printed as one.
        if !path.is_absolute() {
            return self.problem(
                variable,
                "is not an absolute path",
                "give the path of a file that holds the value",
            );
        }
        let label = format!("{variable} ({})", shown(&path.display().to_string()));
        self.file(&label, &path, found, true);
    }

    fn file(&mut self, label: &str, path: &Path, found: &mut Vec<Candidate>, must_exist: bool) {
        match read_text(path, SECRET_LIMIT) {
            Ok(Some(text)) => {
                // Editors and `echo` end a file with a newline; one of them is not the value's.
                let bare = text
                    .strip_suffix('\n')
                    .map_or(text.as_str(), |rest| rest.strip_suffix('\r').unwrap_or(rest));
                let value = Zeroizing::new(bare.to_owned());
                found.push(Candidate {
                    label: label.to_owned(),
                    source: SecretSource::File(path.to_owned()),
                    value,
                });
            }
            Ok(None) if must_exist => {
                self.problem(label, "there is no such file", "mount the file, or unset the variable");
            }
            Ok(None) => {}
            Err(error) => self.problem(label, error.sentence(), "make it a readable text file"),
        }
    }

    fn require_provider(&mut self, provider: Provider) {
        let sets = provider.credentials();
        let complete = |set: &&[&str]| set.iter().all(|name| self.secrets.get(name).is_some());
        if sets.iter().any(complete) || sets.iter().any(|set| set.iter().any(|name| self.is_bad(name))) {
            return;
        }
        // Of a set that was begun, only the rest is asked for.
        let begun = sets.iter().find(|set| set.iter().any(|name| self.secrets.get(name).is_some()));
        let (what, first) = match begun {
            Some(set) => {
                let rest: Vec<&str> =
                    set.iter().filter(|name| self.secrets.get(name).is_none()).copied().collect();
                (rest.join(" and "), rest.first().copied().unwrap_or_default())
            }
            None => {
                let names: Vec<String> = sets.iter().map(|set| set.join(" and ")).collect();
                (names.join(", or "), sets.first().and_then(|set| set.first()).copied().unwrap_or_default())
            }
        };
        let obtain = SECRETS.iter().find(|spec| spec.name == first).map_or("", |spec| spec.obtain);
        let ours = |name: &String| sets.iter().any(|set| set.contains(&name.as_str()));
        let blank: Vec<&str> =
            self.blank.iter().filter(|(name, _)| ours(name)).map(|(_, label)| label.as_str()).collect();
        let blank = match blank.as_slice() {
            [] => String::new(),
            [one] => format!(" ({one} is blank)"),
            several => format!(" ({} are blank)", several.join(" and ")),
        };
        let message = format!("is missing{blank}; model.provider = {} needs it", provider.as_str());
        self.problem(what, message, self.how_to_give(first, obtain));
    }

    fn require(&mut self, name: &SecretName, wanted: &[Wanted]) {
        if self.secrets.get(name.as_str()).is_some() || self.is_bad(name.as_str()) {
            return;
        }
        let obtain = wanted.iter().find(|one| one.name == *name).map_or("", |one| one.obtain);
        let next = self.how_to_give(name.as_str(), obtain);
        self.problem(name.as_str(), "is missing; secrets.required names it", next);
    }

    fn is_bad(&self, name: &str) -> bool {
        self.bad.iter().any(|bad| bad == name)
    }

    fn how_to_give(&self, name: &str, obtain: &str) -> String {
        let path = self.sources.secrets_dir.join(name);
        let place = format!("give it as {}, as a file named by {name}_FILE, or as {name}", path.display());
        if obtain.is_empty() { place } else { format!("{obtain}; {place}") }
    }

    fn remarks(&mut self, provider: Provider) {
        if self.secrets.get("GH_TOKEN").is_none() && !self.is_bad("GH_TOKEN") {
            self.warnings.push(
                "GH_TOKEN is not given: public repositories are read anonymously, nothing is pushed"
                    .to_owned(),
            );
        }
        let has = |name: &str| self.secrets.get(name).is_some();
        let complete: Vec<String> = provider
            .credentials()
            .iter()
            .filter(|set| set.iter().all(|name| has(name)))
            .map(|set| set.join(" and "))
            .collect();
        if let [first, rest @ ..] = complete.as_slice() {
            for other in rest {
                self.warnings.push(format!("{other} is not used, since {first} is given too"));
            }
        }
    }
}

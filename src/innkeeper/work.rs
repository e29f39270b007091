//! What was done in the repositories, for `report`: each is looked at by a child that runs as the agent.

use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use super::Innkeeper;
use crate::boot;
use crate::control::protocol::Response;
use crate::morning::work::{LIMIT, MOST, RepositoryWork};
use crate::report::harmless;
use crate::supervisor::{Launch, thread};

/// Repositories that are looked at; a box has a few.
const REPOSITORIES: usize = 16;

impl Innkeeper {
    /// What was done since then, else since the box began.
    pub(super) fn work(&self, since: Option<u64>) -> Response {
        let age = crate::init::since(self.began);
        let began = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let began = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let since = since.unwrap_or(began);
        let paths: Vec<String> = self
            .board()
            .update(|report| report.repositories.iter().map(|repository| repository.path.clone()).collect());
        // Side by side: one that hangs takes its own time only.
        let looks: Vec<_> = paths
            .into_iter()
            .take(REPOSITORIES)
            .map(|path| {
                let (tell, found) = mpsc::channel();
                let launch = self.look_at(&path, since);
                let (spawner, looked_at) = (self.spawner.clone(), path.clone());
                let looking = thread("work", move || {
                    let said = spawner.listen(launch, LIMIT, MOST);
                    let said = said.map_err(|error| crate::report::chain(&error)).map(|said| said.text);
                    drop(tell.send(said.and_then(|text| read(&looked_at, &text))));
                });
                (path, looking.map(|()| found).map_err(|error| error.to_string()))
            })
            .collect();
        let collect = |(path, look): (String, Result<mpsc::Receiver<_>, String>)| {
            let late = || "nothing was heard of the child".to_owned();
            let found = look.and_then(|found| found.recv_timeout(LIMIT + MARGIN).map_err(|_| late())?);
            found.unwrap_or_else(|why| RepositoryWork {
                path,
                trouble: Some(harmless(&why, 200)),
                ..RepositoryWork::default()
            })
        };
        Response::Work { repositories: looks.into_iter().map(collect).collect() }
    }

    fn look_at(&self, path: &str, since: u64) -> Launch {
        let args = ["--path".to_owned(), path.to_owned(), "--since".to_owned(), since.to_string()];
        Launch::own("work", Some(boot::agent_identity(self, "/"))).args(args)
    }
}

/// What reading the child's last words may take.
const MARGIN: Duration = Duration::from_secs(2);

/// The child is the agent's equal, so what it says is hearsay: of this shape, of this repository, short and inert.
fn read(path: &str, text: &str) -> Result<RepositoryWork, String> {
    let said: RepositoryWork = serde_json::from_str(text.trim())
        .map_err(|_| "the child said nothing that is understood".to_owned())?;
    let clean = |text: &str| harmless(text, 120);
    let mut commits = said.commits;
    commits.truncate(50);
    for commit in &mut commits {
        commit.id = harmless(&commit.id, 40);
        commit.author = clean(&commit.author);
        commit.subject = clean(&commit.subject);
    }
    Ok(RepositoryWork {
        path: path.to_owned(),
        branch: said.branch.as_deref().map(clean),
        trouble: said.trouble.as_deref().map(clean),
        commits,
        ..said
    })
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn what_a_child_of_the_agents_says_is_hearsay() {
        assert!(read("/workspace/r", "").is_err() && read("/workspace/r", "[1]").is_err());
        let commit = r#"{"id":"\u001b[2J","time":1,"author":"a","subject":"s","files":1,"insertions":2,"deletions":3}"#;
        let many = vec![commit; 80].join(",");
        let text = format!(
            r#"{{"path":"/etc/shadow","branch":"\u001b]0;x","commits":[{many}],"commit_count":2,"unpushed":null,"files":1,
            "insertions":1,"deletions":1,"changed":1,"untracked":1,"trouble":null}}"#
        );
        let found = read("/workspace/r", &text).unwrap();
        assert_eq!((found.path.as_str(), found.commits.len()), ("/workspace/r", 50));
        assert_eq!(found.commits[0].id, "\\u{1b}[2J");
        assert!(!found.branch.unwrap().contains('\u{1b}'));
    }
}

//! `innkeeper start`: the operator brings a box its task, or one more repository.
//!
//! What is secret comes from a file, from standard input or from the environment of this very process: an argument could
//! be read by everybody in the box (proc_pid_cmdline(5)).

use std::io::Read;
use std::path::Path;

use crate::control::client;
use crate::control::protocol::{MAX_OPERATOR_REQUEST, Request, Response, Task, TaskRepository};
use crate::report::{self, exit};
use crate::status::report::SCHEMA;

pub const HELP: &str = "Examples:
  docker exec -i BOX innkeeper start --repository https://github.com/you/repo --prompt-file - <task.md
  docker exec -e GH_TOKEN BOX innkeeper start --secret GH_TOKEN --prompt 'Fix the failing test'
  docker exec BOX innkeeper start --repository https://github.com/you/other    one more, in a box that works

Exit status: 0 it begins; 1 no box answers; 64 a problem, of which all are named and nothing was done; 75 the box still
boots; 77 a repository is outside of the ceiling.";

#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// Address of a repository to clone; as often as there are repositories
    #[arg(long, value_name = "URL")]
    repository: Vec<String>,
    /// Directory below /workspace, for the repository in the same place of the line
    #[arg(long, value_name = "NAME")]
    path: Vec<String>,
    /// Branch, for the repository in the same place of the line
    #[arg(long, value_name = "NAME")]
    branch: Vec<String>,
    /// Commits to fetch, for the repository in the same place of the line; 0, the default, fetches all
    #[arg(long, value_name = "NUMBER")]
    depth: Vec<u32>,
    /// What the agent is told to do first
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// The same from a file, or - for standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<String>,
    /// A secret: NAME takes it from this command's environment, NAME=FILE from a file, NAME=- from standard input
    #[arg(long, value_name = "NAME[=FILE]")]
    secret: Vec<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot read {what}")]
    Read { what: String, source: std::io::Error },
    #[error("{what} holds more than {MAX} octets")]
    TooLong { what: String },
    #[error("{what} is not UTF-8")]
    NotText { what: String },
    #[error("{0} is not in this command's environment; with docker: docker exec -e {0} …, or give {0}=FILE")]
    Unset(String),
    #[error("standard input can be one thing only, and is asked for {0} times")]
    Standard(usize),
    #[error("{0} of --path, --branch or --depth for {1} of --repository")]
    Unpaired(usize, usize),
}

/// A request of the operator's holds all of it.
const MAX: usize = MAX_OPERATOR_REQUEST / 2;

pub fn run(args: StartArgs) -> u8 {
    let json = args.json;
    let task = match task(args) {
        Ok(task) => task,
        Err(error) => {
            report::last_words("start", &report::chain(&error));
            return exit::USAGE;
        }
    };
    match client::ask(&Request::Start { task }) {
        Ok(Response::Done { said }) if json => {
            crate::cli::print(&format!("{}\n", serde_json::json!({ "schema": SCHEMA, "said": said })))
        }
        Ok(Response::Done { said }) => crate::cli::print(
            &said.iter().map(|line| format!("{}\n", report::inert(line))).collect::<String>(),
        ),
        Ok(other) => client::unserved(other),
        Err(error) => client::unanswered("start", &error),
    }
}

fn task(args: StartArgs) -> Result<Task, StartError> {
    let count = args.repository.len();
    let most = args.path.len().max(args.branch.len()).max(args.depth.len());
    if most > count {
        return Err(StartError::Unpaired(most, count));
    }
    let standard = args.secret.iter().filter(|secret| secret.ends_with("=-")).count()
        + usize::from(args.prompt_file.as_deref() == Some("-"));
    if standard > 1 {
        return Err(StartError::Standard(standard));
    }
    let (mut paths, mut branches, mut depths) =
        (args.path.into_iter(), args.branch.into_iter(), args.depth.into_iter());
    let repositories = args
        .repository
        .into_iter()
        .map(|url| TaskRepository { url, path: paths.next(), branch: branches.next(), depth: depths.next() })
        .collect();
    let prompt = match args.prompt_file {
        Some(file) => Some(read("the prompt", &file)?),
        None => args.prompt,
    };
    let secrets = args.secret.into_iter().map(|secret| read_secret(&secret)).collect::<Result<_, _>>()?;
    Ok(Task { repositories, prompt, secrets })
}

fn read_secret(text: &str) -> Result<(String, String), StartError> {
    if let Some((name, file)) = text.split_once('=') {
        let value = read(name, file)?;
        // Editors and `echo` end a file with a newline.
        return Ok((name.to_owned(), value.trim_end_matches(['\n', '\r']).to_owned()));
    }
    let value = std::env::var_os(text).ok_or_else(|| StartError::Unset(text.to_owned()))?;
    let value = value.into_string().map_err(|_| StartError::NotText { what: text.to_owned() })?;
    Ok((text.to_owned(), value))
}

fn read(what: &str, file: &str) -> Result<String, StartError> {
    let failed = |source| StartError::Read { what: format!("{what} from {file}"), source };
    let limit = u64::try_from(MAX).unwrap_or(u64::MAX) + 1;
    let mut bytes = Vec::new();
    if file == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = std::fs::File::open(Path::new(file)).map_err(failed)?;
        file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() > MAX {
        return Err(StartError::TooLong { what: what.to_owned() });
    }
    String::from_utf8(bytes).map_err(|_| StartError::NotText { what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::{StartArgs, task};
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: StartArgs,
    }

    fn parse(words: &[&str]) -> Result<crate::control::protocol::Task, String> {
        let line = Line::try_parse_from([&["start"], words].concat()).map_err(|error| error.to_string())?;
        task(line.args).map_err(|error| crate::report::chain(&error))
    }

    #[test]
    fn repositories_have_paths_branches_and_depths_by_their_place() {
        let task = parse(&[
            "--repository",
            "https://a.example/x",
            "--path",
            "one",
            "--repository",
            "https://b.example/y",
            "--branch",
            "dev",
            "--depth",
            "5",
        ])
        .unwrap();
        let seen: Vec<_> = task
            .repositories
            .iter()
            .map(|one| (one.path.as_deref(), one.branch.as_deref(), one.depth))
            .collect();
        assert_eq!(seen, [(Some("one"), Some("dev"), Some(5)), (None, None, None)]);
        for alone in [["--path", "one"], ["--branch", "dev"], ["--depth", "1"]] {
            assert!(parse(&alone).unwrap_err().contains("--repository"));
        }
        assert!(parse(&["--repository", "https://a.example/x", "--depth", "-1"]).is_err());
    }

    #[test]
    fn a_secret_is_never_an_argument() {
        let error = parse(&["--secret", "INNKEEPER_TEST_UNSET"]).unwrap_err();
        assert!(error.contains("docker exec -e INNKEEPER_TEST_UNSET"), "{error}");
        let file = std::env::temp_dir().join(format!("innkeeper-start-{}", std::process::id()));
        std::fs::write(&file, "canary\n").unwrap();
        let task = parse(&["--secret", &format!("GH_TOKEN={}", file.display())]).unwrap();
        assert_eq!(task.secrets, [("GH_TOKEN".to_owned(), "canary".to_owned())]);
        assert!(!format!("{task:?}").contains("canary"));
        std::fs::remove_file(file).unwrap();
        let twice = parse(&["--secret", "A=-", "--prompt-file", "-"]).unwrap_err();
        assert!(twice.contains("standard input"), "{twice}");
    }
}

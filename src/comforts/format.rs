//! Puts a file in order that Claude has just written, by the operator's file of patterns.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::child;
use super::input::{self, Hook};
use super::patterns::Patterns;
use crate::filesystem::layout::WORKSPACE;

/// A formatter that hangs is ended; the hook ends a moment later.
const FORMATTER_LIMIT: Duration = Duration::from_secs(10);
pub(super) const LIMIT: Duration = Duration::from_secs(12);

pub(super) fn run(patterns: &Path) {
    let Some(path) = input::hook().and_then(|hook| written(&hook)) else { return };
    let roots = [PathBuf::from(WORKSPACE), std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default()];
    let Some(path) = real(&path, &roots) else { return };
    let Ok(text) = std::fs::read_to_string(patterns) else { return };
    // What is wrong in it was found at boot.
    let (patterns, _) = Patterns::parse(&text);
    if let Some([program, args @ ..]) = patterns.command(&path.to_string_lossy()) {
        let mut command = Command::new(program);
        command.args(args).arg(&path).current_dir(path.parent().unwrap_or(Path::new("/")));
        // A formatter that fails leaves the file as Claude wrote it.
        child::run(&mut command, FORMATTER_LIMIT);
    }
}

fn written(hook: &Hook) -> Option<PathBuf> {
    let writes = matches!(hook.tool_name.as_str(), "Edit" | "Write" | "MultiEdit");
    let path = hook.tool_input.get("file_path").and_then(serde_json::Value::as_str)?;
    (hook.hook_event_name == "PostToolUse" && writes && !path.contains('\0')).then(|| PathBuf::from(path))
}

/// The file itself, if it is one below these places; a link that leads out of them is none.
fn real(path: &Path, roots: &[PathBuf]) -> Option<PathBuf> {
    let path = path.is_absolute().then(|| path.canonicalize().ok()).flatten()?;
    let below = |root: &PathBuf| root.components().count() > 1 && path.starts_with(root);
    // A name that is no text would reach the patterns as another one.
    (path.is_file() && path.to_str().is_some() && roots.iter().any(below)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::super::input::{HOSTILE, Hook};
    use super::{real, written};
    use std::path::PathBuf;

    #[test]
    fn what_was_written_is_a_real_file_below_the_agents_places() {
        let top = std::env::temp_dir().join(format!("innkeeper-format-{}", std::process::id()));
        let (root, out) = (top.join("workspace"), top.join("out"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&out).unwrap();
        std::fs::write(root.join("a.ts"), "x").unwrap();
        std::fs::write(out.join("b.ts"), "x").unwrap();
        std::os::unix::fs::symlink(out.join("b.ts"), root.join("link.ts")).unwrap();
        std::os::unix::fs::symlink(&out, root.join("dir")).unwrap();
        let roots = [root.clone(), PathBuf::new(), PathBuf::from("/")];
        assert_eq!(real(&root.join("a.ts"), &roots), Some(root.canonicalize().unwrap().join("a.ts")));
        for path in ["link.ts", "dir/b.ts", "../out/b.ts", "none.ts", "."] {
            assert_eq!(real(&root.join(path), &roots), None, "{path}");
        }
        assert_eq!(real(&PathBuf::from("a.ts"), &roots), None, "a relative path is somebody else's");
        std::fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn only_writes_that_were_done_count() {
        let path = |text: &str| serde_json::from_str::<Hook>(text).ok().and_then(|hook| written(&hook));
        let write =
            r#"{"hook_event_name":"PostToolUse","tool_name":"Edit","tool_input":{"file_path":"/w/a.ts"}}"#;
        assert_eq!(path(write), Some("/w/a.ts".into()));
        assert_eq!(path(&write.replace("Edit", "Read")), None);
        assert_eq!(path(&write.replace("Post", "Pre")), None);
        assert_eq!(path(&write.replace("/w/a", "/w/\\u0000a")), None);
        for text in HOSTILE {
            assert_eq!(path(text), None, "{text}");
        }
    }
}

//! The file of formatters: which program puts which files in order. (pure)
//!
//! A line is `PATTERN[,PATTERN…] PROGRAM [ARGUMENT…]`; the first line whose pattern matches counts, and the file's path
//! is the last argument. A pattern without "/" is for the file's name, one with it for the whole path: `*` is anything
//! but "/", `**` anything, `?` one character.

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("the line names no program")]
    NoProgram,
    #[error("the program \"{0}\" is not an absolute path")]
    Relative(String),
    #[error("a pattern is blank")]
    Blank,
    #[error("the pattern \"{0}\" is longer than 256 octets, or holds more than 16 wildcards")]
    Long(String),
    #[error("the line holds a control character")]
    Control,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Formatter {
    patterns: Vec<String>,
    command: Vec<String>,
}

/// All lines of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patterns(Vec<Formatter>);

impl Patterns {
    /// Reads the file; what is wrong, by line.
    #[must_use]
    pub fn parse(text: &str) -> (Self, Vec<(usize, PatternError)>) {
        let (mut formatters, mut problems) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match formatter(line) {
                Ok(formatter) => formatters.push(formatter),
                Err(error) => problems.push((index + 1, error)),
            }
        }
        (Self(formatters), problems)
    }

    /// Program and arguments for this path.
    #[must_use]
    pub fn command(&self, path: &str) -> Option<&[String]> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let fits = |pattern: &String| matches(pattern, if pattern.contains('/') { path } else { name });
        let formatter = self.0.iter().find(|formatter| formatter.patterns.iter().any(fits));
        formatter.map(|formatter| formatter.command.as_slice())
    }
}

fn formatter(line: &str) -> Result<Formatter, PatternError> {
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(PatternError::Control);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let patterns = words.next().unwrap_or_default();
    let patterns: Vec<String> = patterns.split(',').map(str::to_owned).collect();
    if patterns.iter().any(String::is_empty) {
        return Err(PatternError::Blank);
    }
    let wild = |pattern: &&String| pattern.len() > 256 || pattern.matches('*').count() > 16;
    if let Some(pattern) = patterns.iter().find(wild) {
        return Err(PatternError::Long(pattern.chars().take(40).collect()));
    }
    let command: Vec<String> = words.collect();
    match command.first() {
        None => Err(PatternError::NoProgram),
        Some(program) if !program.starts_with('/') => Err(PatternError::Relative(program.clone())),
        Some(_) => Ok(Formatter { patterns, command }),
    }
}

/// Row by row, as for an edit distance: its time is the product of both lengths, whatever the pattern is.
fn matches(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    // Which beginnings of the text the pattern so far matches.
    let mut reached: Vec<bool> = std::iter::once(true).chain(text.iter().map(|_| false)).collect();
    let mut pattern = pattern.chars().peekable();
    while let Some(c) = pattern.next() {
        let deep = c == '*' && pattern.next_if_eq(&'*').is_some();
        let mut next = vec![false; reached.len()];
        for at in 0..reached.len() {
            let before = at.checked_sub(1);
            let here = before.and_then(|before| text.get(before)).copied();
            let come = |row: &[bool]| before.and_then(|before| row.get(before)).copied().unwrap_or_default();
            let holds = match c {
                '*' => {
                    let passes = here.is_some_and(|here| deep || here != '/');
                    reached.get(at).copied().unwrap_or_default() || (passes && come(&next))
                }
                '?' => here.is_some_and(|here| here != '/') && come(&reached),
                c => here == Some(c) && come(&reached),
            };
            if let Some(cell) = next.get_mut(at) {
                *cell = holds;
            }
        }
        reached = next;
    }
    reached.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{PatternError, Patterns, matches};

    #[test]
    fn the_first_line_that_matches_counts() {
        let (patterns, problems) = Patterns::parse(
            "# ours\n*.test.ts /bin/true\n*.ts,*.tsx\t/usr/bin/prettier --write\n\n/workspace/*/go.mod /usr/bin/go mod edit -fmt\n\
             **/vendor/** /bin/false\n",
        );
        assert_eq!(problems, []);
        let command = |path: &str| patterns.command(path).map(|command| command.join(" "));
        assert_eq!(command("/workspace/repo/a.test.ts").as_deref(), Some("/bin/true"));
        assert_eq!(command("/workspace/repo/a.tsx").as_deref(), Some("/usr/bin/prettier --write"));
        assert_eq!(command("/workspace/repo/go.mod").as_deref(), Some("/usr/bin/go mod edit -fmt"));
        assert_eq!(command("/workspace/a/b/go.mod"), None, "* does not pass a slash");
        assert_eq!(command("/workspace/a/vendor/b/c.rs").as_deref(), Some("/bin/false"));
        assert_eq!(command("/workspace/repo/a.py"), None);
    }

    #[test]
    fn what_is_wrong_is_said_by_line() {
        let (patterns, problems) =
            Patterns::parse("*.ts\n*.js prettier\n,*.js /bin/a\n# fine\n*.c /bin/a \u{7}\n*.d /bin/d\n");
        assert_eq!(
            problems,
            [
                (1, PatternError::NoProgram),
                (2, PatternError::Relative("prettier".into())),
                (3, PatternError::Blank),
                (5, PatternError::Control),
            ]
        );
        assert!(patterns.command("/x.d").is_some());
        let (_, problems) = Patterns::parse(&format!("{} /bin/a", "*a".repeat(30)));
        assert!(matches!(problems.as_slice(), [(1, PatternError::Long(_))]), "{problems:?}");
        for (_, error) in problems {
            assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn globs() {
        for (pattern, text, wanted) in [
            ("*", "", true),
            ("*", "a/b", false),
            ("**", "a/b", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("*.ts", ".ts", true),
            ("*.ts", "a.tsx", false),
            ("", "", true),
            ("a", "", false),
            ("**b*", "a/abb", true),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern} {text}");
        }
        // No time but the product of both lengths.
        assert!(!matches(&"*a".repeat(16), &"a".repeat(4000).replace("aaaa", "aab/")));
    }
}

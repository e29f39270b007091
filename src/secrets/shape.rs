//! What a credential looks like when it is whole, and what pasting does to it.  (pure)

/// How the value of a credential is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `sk-ant-oat…`, from `claude setup-token`.
    ClaudeOauth,
    /// `sk-ant-api…`, from the Anthropic console.
    AnthropicKey,
    /// One of GitHub's tokens.
    Github,
    /// A JSON document of several lines.
    Json,
    /// One line of text.
    Line,
    /// NAME=VALUE of headers, in which a space may stand.
    Headers,
}

/// Why a value can't be the credential. No message repeats any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("it is blank")]
    Blank,
    #[error("it begins or ends with white space")]
    Whitespace,
    #[error("it ends with a newline")]
    TrailingNewline,
    #[error("it holds a newline")]
    Newline,
    #[error("it holds white space")]
    InnerWhitespace,
    #[error("it is wrapped in quotes")]
    Quotes,
    #[error("it holds a control character")]
    Control,
    #[error("it holds a character that is not ASCII")]
    NotAscii,
    #[error("it does not begin with {0}")]
    Prefix(&'static str),
    #[error(
        "it is an Anthropic API key (sk-ant-api…), not an OAuth token (sk-ant-oat…); it belongs in ANTHROPIC_API_KEY"
    )]
    KeyForToken,
    #[error(
        "it is an OAuth token (sk-ant-oat…), not an API key (sk-ant-api…); it belongs in CLAUDE_CODE_OAUTH_TOKEN"
    )]
    TokenForKey,
    #[error("it is too short: part of it is missing")]
    Short,
    #[error("it is not a JSON document")]
    NotJson,
}

/// What is odd about a value without making it useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    #[error(
        "it does not look like a token of GitHub (ghp_…, github_pat_…, gho_…, ghs_…, ghu_…, or 40 hexadecimal digits)"
    )]
    Github,
    #[error("it is shorter than 8 characters: it can't be told from ordinary text when logs are redacted")]
    Short,
}

/// The beginnings of GitHub's tokens (docs.github.com, "GitHub's token formats").
pub const GITHUB_PREFIXES: [&str; 6] = ["ghp_", "github_pat_", "gho_", "ghs_", "ghu_", "ghr_"];

impl Shape {
    /// Checks a value as it was given. A file's single final newline is to be removed before.
    pub fn check(self, value: &str) -> Result<Option<Oddity>, ShapeError> {
        if value.trim().is_empty() {
            return Err(ShapeError::Blank);
        }
        if self == Self::Json {
            let json: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(value);
            return json.map(|_| None).map_err(|_| ShapeError::NotJson);
        }
        if self == Self::Headers {
            // A space is of the value's own ("Basic …") but for those around it; every other rule is that of a line.
            if value.trim_matches(' ').len() < value.len() {
                return Err(ShapeError::Whitespace);
            }
            check_line(&value.replace(' ', "_"))?;
            return Ok((value.len() < 8).then_some(Oddity::Short));
        }
        check_line(value)?;
        match self {
            Self::ClaudeOauth if value.starts_with("sk-ant-api") => Err(ShapeError::KeyForToken),
            Self::ClaudeOauth => check_prefix(value, "sk-ant-oat"),
            Self::AnthropicKey if value.starts_with("sk-ant-oat") => Err(ShapeError::TokenForKey),
            Self::AnthropicKey => check_prefix(value, "sk-ant-api"),
            Self::Github => Ok((!is_github(value)).then_some(Oddity::Github)),
            Self::Line | Self::Json | Self::Headers => Ok((value.len() < 8).then_some(Oddity::Short)),
        }
    }

    /// What the value should look like, for the reader of an error.
    #[must_use]
    pub fn expected(self) -> &'static str {
        match self {
            Self::ClaudeOauth => "an OAuth token, sk-ant-oat…",
            Self::AnthropicKey => "an API key, sk-ant-api…",
            Self::Github => "a token of GitHub, such as github_pat_… or ghp_…",
            Self::Json => "a JSON document",
            Self::Line => "one line of text",
            Self::Headers => "NAME=VALUE, several separated by commas, in one line",
        }
    }
}

fn check_line(value: &str) -> Result<(), ShapeError> {
    let trimmed = value.trim();
    let quoted = |quote| trimmed.len() >= 2 && trimmed.starts_with(quote) && trimmed.ends_with(quote);
    if value.trim_end_matches(['\n', '\r']).len() < value.len() {
        return Err(ShapeError::TrailingNewline);
    }
    if value.contains(['\n', '\r']) {
        return Err(ShapeError::Newline);
    }
    if trimmed.len() < value.len() {
        return Err(ShapeError::Whitespace);
    }
    if quoted('"') || quoted('\'') || quoted('`') {
        return Err(ShapeError::Quotes);
    }
    // A tab is white space to the reader, so it is named as that.
    if value.contains(char::is_whitespace) {
        return Err(ShapeError::InnerWhitespace);
    }
    if value.contains(char::is_control) {
        return Err(ShapeError::Control);
    }
    // Every one of them travels in an HTTP header; a typographic dash or a zero-width space comes from pasting.
    if !value.is_ascii() {
        return Err(ShapeError::NotAscii);
    }
    Ok(())
}

fn check_prefix(value: &str, prefix: &'static str) -> Result<Option<Oddity>, ShapeError> {
    if !value.starts_with(prefix) {
        return Err(ShapeError::Prefix(prefix));
    }
    // Real ones have some hundred; what is meant here is a prefix alone, or an "sk-ant-oat…" copied from a manual.
    if value.len() < prefix.len() + 8 { Err(ShapeError::Short) } else { Ok(None) }
}

fn is_github(value: &str) -> bool {
    let body = |rest: &str| rest.len() >= 8 && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let known = GITHUB_PREFIXES.iter().filter_map(|prefix| value.strip_prefix(prefix)).any(body);
    known || (value.len() == 40 && value.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Replaces what looks like a token by its beginning, whoever's it is: for messages about text that should not have
/// held one, such as a token pasted into the wrong variable.
#[must_use]
pub fn mask_tokens(text: &str) -> String {
    const BEGINNINGS: [&str; 10] =
        ["sk-ant-", "github_pat_", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "glpat-", "AKIA", "ASIA"];
    let is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let start = BEGINNINGS.iter().find_map(|start| Some((start, rest.strip_prefix(start)?)));
        if let Some((start, after)) = start {
            let body = after.find(|c| !is_token(c)).unwrap_or(after.len());
            let (body, after) = after.split_at_checked(body).unwrap_or((after, ""));
            out.push_str(start);
            // The beginning alone, as in "sk-ant-oat…", is a description and stays as it is.
            out.push_str(if body.len() > 8 { "[redacted]" } else { body });
            rest = after;
        } else {
            out.push(next);
            rest = rest.get(next.len_utf8()..).unwrap_or_default();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const OAUTH: &str = "sk-ant-oat01-abcdefghijklmnop";
    const KEY: &str = "sk-ant-api03-abcdefghijklmnop";

    #[test]
    fn whole_values_pass() {
        let pat = format!("github_pat_{}", "A1b2".repeat(20));
        let classic = format!("ghp_{}", "a".repeat(36));
        let legacy = "0123456789abcdef0123456789abcdef01234567";
        for (shape, value) in [
            (Shape::ClaudeOauth, OAUTH),
            (Shape::AnthropicKey, KEY),
            (Shape::Github, pat.as_str()),
            (Shape::Github, classic.as_str()),
            (Shape::Github, legacy),
            (Shape::Line, "ABSKQmVkcm9ja0FQSUtleS1=="),
            (Shape::Json, "{\n  \"type\": \"service_account\"\n}\n"),
        ] {
            assert_eq!(shape.check(value), Ok(None), "{shape:?}");
        }
        assert_eq!(Shape::Github.check("not-a-github-token"), Ok(Some(Oddity::Github)));
        assert_eq!(Shape::Line.check("short"), Ok(Some(Oddity::Short)));
    }

    #[test]
    fn what_pasting_does_is_named() {
        for (value, error) in [
            (String::new(), ShapeError::Blank),
            (" \t\n".to_owned(), ShapeError::Blank),
            (format!(" {OAUTH}"), ShapeError::Whitespace),
            (format!("{OAUTH} "), ShapeError::Whitespace),
            (format!("\n{OAUTH}"), ShapeError::Newline),
            (format!("{OAUTH}\n"), ShapeError::TrailingNewline),
            (format!("{OAUTH}\r\n"), ShapeError::TrailingNewline),
            (format!("{OAUTH}\n{OAUTH}"), ShapeError::Newline),
            (format!("\"{OAUTH}\""), ShapeError::Quotes),
            (format!("'{OAUTH}'"), ShapeError::Quotes),
            ("sk-ant-oat01-abc def-ghijkl".to_owned(), ShapeError::InnerWhitespace),
            ("sk-ant-oat01-abc\tdef-ghijkl".to_owned(), ShapeError::InnerWhitespace),
            ("sk-ant-oat01-abc\u{1}def-ghijkl".to_owned(), ShapeError::Control),
            ("sk-ant-oat01–abcdefghijkl".to_owned(), ShapeError::NotAscii),
            ("\u{200b}sk-ant-oat01-abcdefgh".to_owned(), ShapeError::NotAscii),
            ("my-token-of-anthropic".to_owned(), ShapeError::Prefix("sk-ant-oat")),
            ("sk-ant-oat".to_owned(), ShapeError::Short),
            (KEY.to_owned(), ShapeError::KeyForToken),
        ] {
            assert_eq!(Shape::ClaudeOauth.check(&value), Err(error), "{value:?}");
        }
        assert_eq!(Shape::AnthropicKey.check(OAUTH), Err(ShapeError::TokenForKey));
        assert_eq!(Shape::AnthropicKey.check("sk-ant-x"), Err(ShapeError::Prefix("sk-ant-api")));
        for value in ["/path/to/key.json", "[1]", "{"] {
            assert_eq!(Shape::Json.check(value), Err(ShapeError::NotJson));
        }
    }

    #[test]
    fn every_message_is_a_sentence_without_a_value() {
        for error in [
            ShapeError::Blank,
            ShapeError::Whitespace,
            ShapeError::TrailingNewline,
            ShapeError::Newline,
            ShapeError::InnerWhitespace,
            ShapeError::Quotes,
            ShapeError::Control,
            ShapeError::NotAscii,
            ShapeError::Prefix("sk-ant-oat"),
            ShapeError::KeyForToken,
            ShapeError::TokenForKey,
            ShapeError::Short,
            ShapeError::NotJson,
        ] {
            assert!(error.to_string().starts_with("it "), "{error}");
        }
        assert!([Oddity::Github, Oddity::Short].iter().all(|odd| odd.to_string().starts_with("it ")));
        let shapes = [Shape::ClaudeOauth, Shape::AnthropicKey, Shape::Github, Shape::Json, Shape::Line];
        assert!(shapes.iter().all(|shape| !shape.expected().is_empty()));
    }

    #[test]
    fn tokens_in_the_wrong_place_are_masked() {
        for (text, expected) in [
            ("sk-ant-oat01-abcdefghijklmnop", "sk-ant-[redacted]"),
            ("x=ghp_0123456789abcdef;y", "x=ghp_[redacted];y"),
            ("github_pat_11AAAAAAA0_bbbbbb", "github_pat_[redacted]"),
            ("an OAuth token, sk-ant-oat…", "an OAuth token, sk-ant-oat…"),
            ("such as github_pat_… or ghp_…", "such as github_pat_… or ghp_…"),
            ("ghü", "ghü"),
        ] {
            assert_eq!(mask_tokens(text), expected);
        }
    }
}

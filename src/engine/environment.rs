//! What of the operator's environment a box is given: by name, never by removal. (pure)

/// Credentials and settings that a box reads.
const HANDED_OVER: &[&str] = &[
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_MODEL",
    "ANTHROPIC_VERTEX_PROJECT_ID",
    "AWS_ACCESS_KEY_ID",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_PROMPT",
    "CLOUD_ML_REGION",
    "GH_PAT",
    "GH_TOKEN",
    "GITHUB_TOKEN",
    "GIT_USER_EMAIL",
    "GIT_USER_NAME",
    "REPO_URL",
    "TZ",
];

/// About the start itself, not for the box.
const OURS: &[&str] = &["INNKEEPER_BINARY", "INNKEEPER_ENGINE", "INNKEEPER_IMAGE", "INNKEEPER_PROGRAMS"];

/// Whether a variable of this name goes into the box.
#[must_use]
pub fn handed_over(name: &str) -> bool {
    let setting =
        name.starts_with("INNKEEPER_") && !name.starts_with("INNKEEPER_TEST_") && !OURS.contains(&name);
    setting || HANDED_OVER.contains(&name)
}

/// Root's PATH in the box, as in the image: no directory that the agent can write.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use super::{HANDED_OVER, handed_over};

    #[test]
    fn only_what_is_named_goes_in() {
        for name in ["GH_TOKEN", "INNKEEPER_NETWORK_ALLOW", "TZ"] {
            assert!(handed_over(name), "{name}");
        }
        for name in ["HOME", "SSH_AUTH_SOCK", "PATH", "LD_PRELOAD", "INNKEEPER_IMAGE", "INNKEEPER_TEST_IMAGE"]
        {
            assert!(!handed_over(name), "{name}");
        }
    }

    /// `scripts/run` starts boxes where no binary of ours is at hand: both must hand over the same.
    #[test]
    fn scripts_run_names_the_same_variables() {
        let script = include_str!("../../scripts/run");
        for name in HANDED_OVER {
            assert!(script.contains(name), "{name} is missing in scripts/run");
        }
    }
}

//! Names of conversations: a few words, kebab-case. (pure)

const MAX_NAME: usize = 50;
const MAX_WORDS: usize = 4;

/// The name in what a model said: two to four words of letters and digits; none where it said something else.
#[must_use]
pub fn kebab(said: &str) -> Option<String> {
    let line = said.lines().map(str::trim).find(|line| !line.is_empty())?;
    if line.len() > 200 {
        return None;
    }
    let lower = line.to_ascii_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut name = String::new();
    let mut count = 0;
    for word in words.take(MAX_WORDS) {
        let length = name.len() + word.len() + usize::from(count > 0);
        if length > MAX_NAME {
            break;
        }
        if count > 0 {
            name.push('-');
        }
        name.push_str(word);
        count += 1;
    }
    (count >= 2).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::kebab;

    #[test]
    fn two_to_four_words_of_at_most_fifty_characters() {
        for (said, wanted) in [
            ("fix-login-tests", Some("fix-login-tests")),
            ("  \"Fix the Login!\"\nBecause …", Some("fix-the-login")),
            ("one two three four five six", Some("one-two-three-four")),
            ("single", None),
            ("", None),
            ("\u{1b}]0;evil\u{7} title", Some("0-evil-title")),
            ("über straße tests", Some("ber-stra-e-tests")),
            ("a-b", Some("a-b")),
        ] {
            assert_eq!(kebab(said).as_deref(), wanted, "{said}");
        }
        let long = format!("{} {} {}", "a".repeat(24), "b".repeat(24), "c".repeat(24));
        assert_eq!(kebab(&long).unwrap().len(), 49);
        assert_eq!(kebab(&"x y ".repeat(100)), None, "a whole answer is no name");
    }
}

//! Good and hostile addresses, directories and branches.

use super::*;

#[test]
fn addresses_are_normalised_to_https() {
    for (text, url, host, port) in [
        ("https://github.com/owner/repo", "https://github.com/owner/repo", "github.com", 443),
        ("https://GitHub.com/owner/repo.git", "https://github.com/owner/repo.git", "github.com", 443),
        ("HTTPS://github.com/owner/repo/", "https://github.com/owner/repo", "github.com", 443),
        ("git@github.com:owner/repo.git", "https://github.com/owner/repo.git", "github.com", 443),
        ("git@github.com:/owner/repo", "https://github.com/owner/repo", "github.com", 443),
        (
            "https://git.corp.example:7999/a/b/c",
            "https://git.corp.example:7999/a/b/c",
            "git.corp.example",
            7999,
        ),
        ("https://git.corp.example:443/a", "https://git.corp.example/a", "git.corp.example", 443),
        ("https://sr.ht./~user/x+y", "https://sr.ht/~user/x+y", "sr.ht", 443),
    ] {
        let parsed = RepoUrl::parse(text).unwrap();
        assert_eq!(parsed.to_string(), url);
        assert_eq!((parsed.host().as_str(), parsed.port()), (host, port));
        assert!(parsed.path().starts_with('/'));
        assert_eq!(RepoUrl::parse(&parsed.to_string()), Ok(parsed), "what is printed is read the same");
    }
}

#[test]
fn hostile_addresses_are_refused() {
    let scheme = |text: &str| RepoUrlError::Scheme(text.to_owned());
    for (text, error) in [
        ("", RepoUrlError::Blank),
        (" \n", RepoUrlError::Blank),
        (" https://github.com/a/b", RepoUrlError::Characters),
        ("https://github.com/a/b\n", RepoUrlError::Characters),
        ("https://github.com/a b", RepoUrlError::Characters),
        ("https://github.com/a\u{0}b", RepoUrlError::Characters),
        ("https://github.com/a\u{1b}[2J", RepoUrlError::Characters),
        ("-uhttps://github.com/a/b", RepoUrlError::LeadingHyphen),
        ("--upload-pack=sh", RepoUrlError::LeadingHyphen),
        ("ext::sh%20-c%20id", RepoUrlError::Transport),
        ("ext::https://github.com/a/b", RepoUrlError::Transport),
        ("fd::17", RepoUrlError::Transport),
        ("file:///etc/passwd", scheme("file")),
        ("file:/etc/passwd", scheme("file")),
        ("FILE:///etc", scheme("file")),
        ("http://github.com/a/b", scheme("http")),
        ("git://github.com/a/b", scheme("git")),
        ("ssh://git@github.com/a/b", scheme("ssh")),
        ("ftp://github.com/a/b", scheme("ftp")),
        ("://github.com/a", scheme("…")),
        ("/etc/passwd", RepoUrlError::LocalPath),
        ("../repo", RepoUrlError::LocalPath),
        ("owner/repo", RepoUrlError::LocalPath),
        ("https://user@github.com/a/b", RepoUrlError::UserInfo),
        ("https://user:canary-password@github.com/a/b", RepoUrlError::UserInfo),
        ("https://github.com:pw@evil.example/a", RepoUrlError::UserInfo),
        ("root@github.com:a/b", RepoUrlError::UserInfo),
        ("https://192.0.2.1/a/b", RepoUrlError::Host(NameError::Address)),
        ("https://2130706433/a", RepoUrlError::Host(NameError::Address)),
        ("https://0x7f.1/a", RepoUrlError::Host(NameError::Address)),
        ("https://[2001:db8::1]/a", RepoUrlError::Host(NameError::Address)),
        ("git@192.0.2.1:a/b", RepoUrlError::Host(NameError::Address)),
        ("https:///a/b", RepoUrlError::Host(NameError::Empty)),
        ("https://github.com", RepoUrlError::NoPath),
        ("https://github.com/", RepoUrlError::NoPath),
        ("git@github.com:", RepoUrlError::NoPath),
        ("https://github.com:/a", RepoUrlError::Port),
        ("https://github.com:0/a", RepoUrlError::Port),
        ("https://github.com:65536/a", RepoUrlError::Port),
        ("https://github.com:+443/a", RepoUrlError::Port),
        ("https://github.com/a/../b", RepoUrlError::PathPart),
        ("https://github.com/./b", RepoUrlError::PathPart),
        ("https://github.com/a//b", RepoUrlError::PathPart),
        ("https://github.com/a/b?x=1", RepoUrlError::PathCharacter('?')),
        ("https://github.com/a/b#x", RepoUrlError::PathCharacter('#')),
        ("https://github.com/a/%2e%2e/b", RepoUrlError::PathCharacter('%')),
        ("https://github.com/a\\b", RepoUrlError::PathCharacter('\\')),
        ("https://github.com/a;id", RepoUrlError::PathCharacter(';')),
        ("https://github.com/ü", RepoUrlError::PathCharacter('ü')),
    ] {
        assert_eq!(RepoUrl::parse(text), Err(error), "{text:?}");
    }
    let long = format!("https://github.com/{}", "a".repeat(2048));
    assert_eq!(RepoUrl::parse(&long), Err(RepoUrlError::TooLong));
}

#[test]
fn no_error_of_an_address_repeats_it() {
    for text in [
        "https://user:canary@github.com/a",
        "canary@github.com:a/b",
        "canary-canary-canary:x",
        "can ary:x",
        "https://canary canary/a",
    ] {
        let error = RepoUrl::parse(text).unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    }
}

#[test]
fn a_directory_is_one_safe_name() {
    for text in ["repo", "a", "My-Repo_2.x"] {
        assert_eq!(DirectoryName::parse(text).unwrap().to_string(), text);
    }
    for (text, error) in [
        ("", DirectoryError::Blank),
        ("/etc", DirectoryError::Path),
        ("a/b", DirectoryError::Path),
        ("..", DirectoryError::Path),
        (".", DirectoryError::Path),
        (".git", DirectoryError::Start('.')),
        ("-rf", DirectoryError::Start('-')),
        ("a b", DirectoryError::Character(' ')),
        ("a\n", DirectoryError::Character('\n')),
        ("$x", DirectoryError::Character('$')),
    ] {
        assert_eq!(DirectoryName::parse(text), Err(error), "{text:?}");
    }
    assert_eq!(DirectoryName::parse(&"a".repeat(101)), Err(DirectoryError::TooLong));
}

#[test]
fn a_branch_follows_check_ref_format() {
    for text in ["main", "feature/x", "v1.2", "a@b", "ünïcode", "user/fix-1", "x.locked"] {
        assert_eq!(Branch::parse(text).unwrap().as_str(), text);
    }
    for (text, error) in [
        ("", BranchError::Blank),
        ("-main", BranchError::LeadingHyphen),
        ("--upload-pack=x", BranchError::LeadingHyphen),
        ("a b", BranchError::Character(' ')),
        ("a~1", BranchError::Character('~')),
        ("a^", BranchError::Character('^')),
        ("a:b", BranchError::Character(':')),
        ("a?", BranchError::Character('?')),
        ("a*", BranchError::Character('*')),
        ("a[", BranchError::Character('[')),
        ("a\\b", BranchError::Character('\\')),
        ("a\u{7f}", BranchError::Character('\u{7f}')),
        ("a..b", BranchError::Sequence("..")),
        ("a@{1}", BranchError::Sequence("@{")),
        ("a.", BranchError::Border),
        ("/a", BranchError::Border),
        ("a/", BranchError::Border),
        ("a//b", BranchError::Border),
        (".a", BranchError::Part),
        ("a/.b", BranchError::Part),
        ("a.lock", BranchError::Part),
        ("a.lock/b", BranchError::Part),
        ("@", BranchError::Reserved),
        ("HEAD", BranchError::Reserved),
    ] {
        assert_eq!(Branch::parse(text), Err(error), "{text:?}");
    }
    assert_eq!(Branch::parse(&"a".repeat(245)), Err(BranchError::TooLong));
}

#[test]
fn every_error_is_a_sentence() {
    let urls = [
        RepoUrlError::Blank,
        RepoUrlError::Characters,
        RepoUrlError::LeadingHyphen,
        RepoUrlError::Transport,
        RepoUrlError::Scheme("http".to_owned()),
        RepoUrlError::UserInfo,
        RepoUrlError::Host(NameError::Address),
        RepoUrlError::Port,
        RepoUrlError::NoPath,
        RepoUrlError::PathPart,
        RepoUrlError::PathCharacter('?'),
        RepoUrlError::LocalPath,
        RepoUrlError::TooLong,
    ];
    let directories = [
        DirectoryError::Blank,
        DirectoryError::Path,
        DirectoryError::Start('.'),
        DirectoryError::Character('$'),
        DirectoryError::TooLong,
    ];
    let branches = [
        BranchError::Blank,
        BranchError::LeadingHyphen,
        BranchError::Character('~'),
        BranchError::Sequence(".."),
        BranchError::Part,
        BranchError::Border,
        BranchError::Reserved,
        BranchError::TooLong,
    ];
    let texts = urls.iter().map(ToString::to_string).chain(directories.iter().map(ToString::to_string));
    for text in texts.chain(branches.iter().map(ToString::to_string)) {
        assert!(text.starts_with("it") || text.starts_with('a'), "{text}");
    }
}

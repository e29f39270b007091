//! Real clients through the gate, and what they print when it refuses.

use serde_json::Value;

use crate::common::{boot, nothing_to, options, page, quiet, token};
use crate::rig::{AGENT, Done, Rig, RunningBox, host, run};

const ALLOWED: &str = "ok.test:443,80;cdn.test:443,80;git.ok.test;npm.test;pypi.test;files.pypi.test;index.crates.test;static.crates.test";

fn agent(guest: &RunningBox, command: &str) -> Done {
    guest.exec(AGENT, &format!("export HOME=/tmp/home; mkdir -p $HOME; cd $HOME; {command}"))
}

#[track_caller]
fn says(guest: &RunningBox, command: &str, text: &str) {
    let done = agent(guest, command);
    assert!(done.both().contains(text), "{command}: {done:?}\n{}", guest.logs());
}

/// Whoever served something to it under that name.
fn served(rig: &Rig, name: &str) -> Vec<Value> {
    rig.world.log("http").into_iter().filter(|line| line["sni"] == name).collect()
}

#[test]
fn real_clients_pass_under_an_allowed_name() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, ALLOWED);
    let (ok, cdn) = (token("ok", "ok.test"), token("cdn", "cdn.test"));
    for versions in ["--tlsv1.2 --tls-max 1.2", "--tlsv1.3", "--http1.0", "--http1.1", "--http2"] {
        says(&guest, &format!("curl -sS -m 20 {versions} https://ok.test/"), &ok);
    }
    says(&guest, "curl -sS -m 20 http://ok.test/", &ok);
    says(&guest, "curl -sS -m 20 https://cdn.test/", &cdn);
    says(&guest, "curl -sS -m 20 -L 'http://ok.test/redirect?to=https://cdn.test/'", &cdn);
    for version in ["-tls1_2", "-tls1_3"] {
        says(
            &guest,
            &format!(
                "printf 'GET / HTTP/1.1\\r\\nHost: ok.test\\r\\nConnection: close\\r\\n\\r\\n' | timeout 20 openssl s_client -quiet -ign_eof {version} -connect ok.test:443 -servername ok.test 2>&1"
            ),
            &ok,
        );
    }
    says(
        &guest,
        "python3 -c \"import urllib.request as u; print(u.urlopen('https://ok.test/', timeout=20).read())\"",
        &ok,
    );
    says(
        &guest,
        "python3 -c \"from pip._vendor import requests; print(requests.get('https://ok.test/', timeout=20, verify='/etc/ssl/certs/ca-certificates.crt').text)\" 2>&1 || python3 -c \"from pip._vendor import requests; print(requests.get('https://ok.test/', timeout=20, verify='/etc/innkeeper/ca.pem').text)\"",
        &ok,
    );
    says(&guest, "node -e \"fetch('https://ok.test/').then(r => r.text()).then(console.log)\"", &ok);
    says(&guest, "node -e \"fetch('http://ok.test/').then(r => r.text()).then(console.log)\"", &ok);
    says(
        &guest,
        "git clone -q https://git.ok.test/acme/widgets.git w && git -C w log --oneline",
        "Commit 2 of acme/widgets",
    );
    says(
        &guest,
        "cd w && git -c user.name=a -c user.email=a@ok.test commit -q --allow-empty -m pushed && git push -q origin HEAD:through-the-gate && echo pushed",
        "pushed",
    );
    says(&guest, "git ls-remote https://git.ok.test/acme/widgets.git", "through-the-gate");
}

#[test]
fn package_managers_install_through_it() {
    let Some(rig) = Rig::new() else { return };
    let rust = run("sh", &["-c", "rustc --print sysroot"]).out.trim().to_owned();
    let mut options = options(ALLOWED);
    if !rust.is_empty() {
        options = options.volume(&format!("{rust}:/opt/rust:ro"));
    }
    let guest = rig.boot(&options);
    says(
        &guest,
        "mkdir n && cd n && npm install --registry https://npm.test --no-audit --no-fund innkeeper-widget && node -p \"require('innkeeper-widget')\"",
        "token-of-the-package",
    );
    says(
        &guest,
        "pip install --quiet --target p --no-cache-dir --index-url https://pypi.test/simple innkeeper-widget 2>&1 && PYTHONPATH=p python3 -c 'import innkeeper_widget; print(innkeeper_widget.TOKEN)'",
        "token-of-the-wheel",
    );
    assert!(!served(&rig, "npm.test").is_empty() && !served(&rig, "files.pypi.test").is_empty());
    if rust.is_empty() {
        return;
    }
    let cargo = "mkdir -p c/src c/.cargo && cd c && touch src/lib.rs && printf '[package]\\nname = \"c\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[dependencies]\\ninnkeeper-widget = \"1\"\\n' > Cargo.toml && \
         printf '[source.crates-io]\\nreplace-with = \"w\"\\n[source.w]\\nregistry = \"sparse+https://index.crates.test/\"\\n' > .cargo/config.toml && \
         PATH=/opt/rust/bin:$PATH CARGO_HTTP_CAINFO=${CARGO_HTTP_CAINFO:-/etc/innkeeper/ca.pem} cargo fetch 2>&1 && cat ~/.cargo/registry/src/*/innkeeper-widget-1.0.0/src/lib.rs";
    says(&guest, cargo, "token-of-the-crate");
    assert!(!served(&rig, "static.crates.test").is_empty());
}

/// What people will read; `docs/gate.md` shows it. The address is the CDN's, so that only the gate stands in the way.
#[test]
fn a_refusal_is_readable_in_every_client() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "cdn.test:443,80");
    page(&guest, "https://cdn.test/", "cdn", "cdn.test");
    let cdn = host("cdn");
    let mark = quiet(&rig, &[&cdn]);
    let to = |port: u16| format!("--resolve evil-cdn.test:{port}:{cdn}");
    // Programs that can't be told an address are given one by a resolver of their own.
    let python = format!(
        "python3 -c \"import socket; real = socket.getaddrinfo; socket.getaddrinfo = lambda h, *a, **k: real('{cdn}', *a, **k)\nimport runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\""
    );
    let urlopen = |url: &str| {
        format!(
            "python3 -c \"import socket; real = socket.getaddrinfo; socket.getaddrinfo = lambda h, *a, **k: real('{cdn}', *a, **k)\nimport urllib.request as u\nu.urlopen('{url}', timeout=20)\" 2>&1 | tail -1"
        )
    };
    let node = |url: &str| {
        format!(
            "node -e \"require('dns').lookup = (h, o, f) => {{ if (typeof o === 'function') f = o; o && o.all ? f(null, [{{address: '{cdn}', family: 4}}]) : f(null, '{cdn}', 4) }}; require('{}').get('{url}', r => {{ console.log(r.statusCode); r.pipe(process.stdout) }}).on('error', e => console.log(String(e)))\"",
            if url.starts_with("https") { "https" } else { "http" }
        )
    };
    let cases = [
        ("curl, TLS 1.3", format!("curl -sS -m 20 {} https://evil-cdn.test/", to(443)), "access denied"),
        ("curl, TLS 1.2", format!("curl -sS -m 20 --tls-max 1.2 {} https://evil-cdn.test/", to(443)), "access denied"),
        ("curl, HTTP", format!("curl -sS -m 20 {} http://evil-cdn.test/", to(80)), "evil-cdn.test"),
        ("curl, HTTP, JSON", format!("curl -sS -m 20 -H 'Accept: application/json' {} http://evil-cdn.test/", to(80)), "\"evil-cdn.test"),
        ("curl -f, HTTP", format!("curl -fsS -m 20 {} http://evil-cdn.test/", to(80)), "403"),
        ("git, TLS", format!("git -c http.curloptResolve=evil-cdn.test:443:{cdn} clone https://evil-cdn.test/acme/widgets.git x"), "Access was denied"),
        ("git, HTTP", format!("git -c http.curloptResolve=evil-cdn.test:80:{cdn} clone http://evil-cdn.test/acme/widgets.git x"), "403"),
        ("openssl", format!("openssl s_client -connect {cdn}:443 -servername evil-cdn.test </dev/null 2>&1 | grep -i alert"), "access denied"),
        ("openssl, no name", format!("openssl s_client -connect {cdn}:443 -noservername </dev/null 2>&1 | grep -i alert"), "unrecognized"),
        ("python urllib, TLS", urlopen("https://evil-cdn.test/"), "ACCESS_DENIED"),
        ("python urllib, HTTP", urlopen("http://evil-cdn.test/"), "403"),
        ("pip, TLS", format!("{python} pip download --no-cache-dir --retries 0 --index-url https://evil-cdn.test/simple innkeeper-widget"), "ccess"),
        ("node, TLS", node("https://evil-cdn.test/"), "access denied"),
        ("node, HTTP", node("http://evil-cdn.test/"), "403"),
        ("npm, TLS", format!("printf \"require('dns').lookup = (h, o, f) => {{ if (typeof o === 'function') f = o; o && o.all ? f(null, [{{address: '{cdn}', family: 4}}]) : f(null, '{cdn}', 4) }}\" > l.js; NODE_OPTIONS=--require=$HOME/l.js npm view --fetch-retries=0 --registry https://evil-cdn.test innkeeper-widget"), "access denied"),
        ("npm, HTTP", "true; NODE_OPTIONS=--require=$HOME/l.js npm view --fetch-retries=0 --registry http://evil-cdn.test innkeeper-widget".to_owned(), "403"),
    ];
    let mut wrong = Vec::new();
    for (what, command, words) in &cases {
        let said = agent(&guest, &format!("timeout 60 {}", command.replacen("printf", "true; printf", 1)));
        let text = said.both();
        std::io::Write::write_all(&mut std::io::stderr(), format!("== {what}\n{text}\n").as_bytes()).unwrap();
        if !text.to_lowercase().contains(&words.to_lowercase()) || text.contains("token-") {
            wrong.push(format!("{what}: no {words:?} in {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    nothing_to(&rig, mark, &cdn);
}

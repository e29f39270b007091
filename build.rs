//! The static binary is position-independent, so each of its 14,000 addresses is a relocation: packed (DT_RELR, which musl
//! relocates itself by since 1.2.4) they take 5 KB instead of 350.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

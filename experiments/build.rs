//! Lets the binary and the tests find libtorch without any environment variable, and bakes in which code it is.

use std::path::PathBuf;
use std::process::Command;

/// What of the repository goes into the binary.
const CODE: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "proto",
    "env",
    "models",
    "agent",
    "experiments/src",
    "experiments/Cargo.toml",
];

fn main() {
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=BLKPILOT_CODE_VERSION={}", code_version());
    watch();
}

/// `0.1.0+<commit>`, with `-dirty-<hash of the changes>` where there are any; without git only `0.1.0`. The commit is the
/// last that touched [`CODE`]: one that only writes documents makes no other version.
fn code_version() -> String {
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let commit = git(&["log", "-1", "--format=%h", "--abbrev=12"]);
    let Some(commit) = commit.filter(|commit| !commit.trim().is_empty()) else {
        return version;
    };
    let status = git(&["status", "--porcelain", "--untracked-files=all"]).unwrap_or_default();
    let dirty = if status.trim().is_empty() {
        String::new()
    } else {
        let changes = status + &git(&["diff", "HEAD"]).unwrap_or_default();
        format!("-dirty-{:08x}", fnv1a(changes.as_bytes()))
    };
    format!("{version}+{}{dirty}", commit.trim())
}

/// What git says about [`CODE`]. It takes no lock: others may be at work in the repository.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("--no-optional-locks")
        .arg("-C")
        .arg(root())
        .args(args)
        .arg("--")
        .args(CODE)
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn root() -> PathBuf {
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..")
}

/// The code, and the log that each commit is written to.
fn watch() {
    for path in CODE {
        println!("cargo:rerun-if-changed={}", root().join(path).display());
    }
    let moved = Command::new("git")
        .arg("-C")
        .arg(root())
        .args(["rev-parse", "--git-path", "logs/HEAD"])
        .output();
    if let Ok(moved) = moved {
        let path = root().join(String::from_utf8_lossy(&moved.stdout).trim());
        // A path that is missing would build everything anew each time.
        if path.is_file() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
}

/// Source: Fowler, Noll and Vo, FNV-1a with 32 bits. The same with every compiler, unlike the standard library's.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

//! The binary and its certificate at SIGHUP.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blkpilot_agent::client::Target;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tonic::Code;

use super::pki::{Ca, write};
use super::setup::{CHECK, ask_anew, toml, trusting};

/// More than the files' own turn, each five seconds, could bring while they are replaced.
const TIMES: usize = 4;

/// A daemon that tells how it stands; killed when this is dropped.
struct Daemon {
    child: Child,
    told: UnixDatagram,
    address: String,
}

impl Daemon {
    fn start(dir: &Path) -> Self {
        let tables = "[service.tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"";
        let config = write(dir, "blkpilot.toml", &toml("https://127.0.0.1:0", tables));
        let notify = dir.join("notify");
        let told = UnixDatagram::bind(&notify).unwrap();
        // What does not come in a minute never will.
        told.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_blkpilot"))
            .args(["serve", "--config"])
            .arg(config)
            .env("NOTIFY_SOCKET", notify)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap()
            .to_owned();
        Self {
            child,
            told,
            address,
        }
    }

    /// Reads its files again, and returns when it has.
    fn reload(&self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGHUP).unwrap();
        self.wait_for("RELOADING=1");
        self.wait_for("READY=1");
    }

    fn wait_for(&self, wanted: &str) {
        let mut datagram = [0; 4096];
        loop {
            let length = self.told.recv(&mut datagram).unwrap();
            let text = std::str::from_utf8(&datagram[..length]).unwrap();
            if text.lines().any(|line| line == wanted) {
                return;
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_brings_a_new_certificate_at_once() {
    let dir = TempDir::new().unwrap();
    Ca::new("the first").server().write(dir.path(), "server");
    let daemon = Daemon::start(dir.path());
    for time in 0..TIMES {
        let ca = Ca::new(&format!("number {time}"));
        let trusted = write(dir.path(), "ca.pem", &ca.pem);
        ca.server().write(dir.path(), "server");
        daemon.reload();
        let target = trusting(Target::from(&daemon.address), &trusted);
        let answer = ask_anew(&target, CHECK).await;
        assert!(
            answer
                .as_ref()
                .is_ok_and(|status| status.code() == Code::Ok),
            "the certificate of the time before is in force: {answer:?}"
        );
    }
}

//! Training at a service that wants to know who asks: over TCP with a token, over TLS with one, and with a certificate.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use blkpilot_agent::access::role::Role;
use blkpilot_agent::access::tokens::{TokenFile, Wanted};
use blkpilot_agent::config::Config as ServiceConfig;
use blkpilot_agent::server::Server;
use blkpilot_lab::train::{Existing, Run, Summary, train};
use blkpilot_lab::{Config, LabError};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

const TLS: &str = "[service.tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"\n";
const MUTUAL: &str =
    "client_ca = \"ca.pem\"\n[[service.tls.client]]\ncommon_name = \"lab\"\nrole = \"operator\"\n";

/// A service at a loopback port, with all files in one directory; ends when this is dropped.
struct Service {
    dir: TempDir,
    address: String,
    _stop: oneshot::Sender<()>,
    _runtime: Runtime,
}

impl Service {
    /// With tables below `[service]`, a CA that has signed for it and for a client, and a token of an operator.
    fn start(tables: &str) -> Self {
        let dir = TempDir::new().unwrap();
        sign(dir.path());
        let text = format!(
            "version = 1\n[host]\nkind = \"simulated\"\nscenario = \"mixed\"\n[policy]\nbaseline = \"least_loaded\"\n\
             [service]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\n{tables}"
        );
        let config = ServiceConfig::parse(&dir.path().join("blkpilot.toml"), &text).unwrap();
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(Server::start(config)).unwrap();
        let address = server.address().to_string();
        let wanted = Wanted {
            name: "lab".to_owned(),
            role: Role::Operator,
            lifetime: None,
        };
        let tokens = TokenFile::in_dir(&dir.path().join("data"));
        let (_, secret) = tokens.create(wanted, SystemTime::now()).unwrap();
        fs::write(dir.path().join("lab.token"), secret.expose()).unwrap();
        let (stop, stopped) = oneshot::channel();
        runtime.spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            dir,
            address,
            _stop: stop,
            _runtime: runtime,
        }
    }

    /// Trains for a few steps on what the service simulates, shown these files of the directory.
    fn train(&self, name: &str, files: &str) -> Result<Summary, LabError> {
        let text = format!(
            "version = 1\n[environment]\nkind = \"remote\"\naddress = \"{}\"\nscenario = \"mixed\"\n{files}\n\
             [training]\nenvs = 1\nenv_steps = 12\nsteps = 6\nepochs = 1\nminibatch = 32\ngamma = 0.8\n\
             gae_lambda = 0.9\nlearning_rate = 1e-3\nclip = 0.2\ncheckpoint_every = 12\n[evaluation]\nepisodes = 2\n",
            self.address
        );
        let config = Config::parse(&self.dir.path().join("lab.toml"), &text).unwrap();
        let run = Run {
            config: &config,
            seed: 3,
            out: &self.dir.path().join(name),
            existing: Existing::Refuse,
        };
        train(&run, &AtomicBool::new(false), &mut |_| ())
    }

    fn is_refused(&self, files: &str, with: &str) {
        let error = self.train("refused", files).unwrap_err();
        let said = blkpilot_lab::cli::error_text(&error);
        assert!(said.contains(with), "{said}");
    }
}

/// Writes a CA, and what it has signed for a server and a client.
fn sign(dir: &Path) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    fs::write(dir.join("ca.pem"), ca).unwrap();
    for (name, alternative) in [("server", "127.0.0.1"), ("lab", "lab.example")] {
        let mut params = CertificateParams::new(vec![alternative.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        fs::write(dir.join(format!("{name}.pem")), certificate).unwrap();
        let file = dir.join(format!("{name}.key"));
        fs::write(&file, key.serialize_pem()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn a_run_shows_its_token_over_tcp_and_is_refused_without() {
    let service = Service::start("");
    service.is_refused("", "needs the role operator");
    service.is_refused("token_file = \"none\"", "name another file with the token");
    let summary = service.train("run", "token_file = \"lab.token\"").unwrap();
    assert_eq!((summary.env_steps, summary.interrupted), (12, false));
    // What was shown is named by its place, and kept nowhere.
    let run = service.dir.path().join("run");
    let token = fs::read_to_string(service.dir.path().join("lab.token")).unwrap();
    let kept = fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(kept.contains("lab.token\""), "{kept}");
    for file in fs::read_dir(run).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&bytes).contains(&token));
    }
}

#[test]
fn a_run_trusts_the_service_by_its_ca_and_shows_its_token_over_tls() {
    let service = Service::start(TLS);
    service.is_refused("token_file = \"lab.token\"", &service.address);
    let files = "ca_file = \"ca.pem\"";
    service.is_refused(files, "needs the role operator");
    let files = format!("{files}\ntoken_file = \"lab.token\"");
    let summary = service.train("run", &files).unwrap();
    assert_eq!(summary.env_steps, 12);
}

#[test]
fn a_run_is_known_by_its_certificate_under_mutual_tls() {
    let service = Service::start(&format!("{TLS}{MUTUAL}"));
    let files = "ca_file = \"ca.pem\"";
    // Whether connecting or the first call says so is TLS's affair.
    assert!(service.train("refused", files).is_err());
    let files = format!("{files}\ncert_file = \"lab.pem\"\nkey_file = \"lab.key\"");
    let summary = service.train("run", &files).unwrap();
    assert_eq!(summary.env_steps, 12);
}

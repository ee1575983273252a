//! Certificates that are replaced while the service runs.

use std::fs;
use std::time::SystemTime;

use blkpilot_agent::access::tls::Refreshed;
use tempfile::TempDir;
use tonic::Code;

use super::pki::{Ca, write};
use super::setup::{CHECK, Service, ask, ask_anew, showing, trusting};

const TLS: &str = "[service.tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"";

#[tokio::test]
async fn new_connections_get_a_new_certificate_and_old_ones_go_on() {
    let dir = TempDir::new().unwrap();
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    old.server().write(dir.path(), "server");
    let trusts_old = write(dir.path(), "old.pem", &old.pem);
    let trusts_new = write(dir.path(), "new.pem", &new.pem);
    let service = Service::start_in(dir, "127.0.0.1:0", TLS).await;
    let tls = service.tls.clone().unwrap();
    let before = trusting(service.target(), &trusts_old);
    let after = trusting(service.target(), &trusts_new);
    let connection = before.connect().await.unwrap();
    assert!(after.connect().await.is_err());

    new.server().write(service.dir.path(), "server");
    let refreshed = tls.refresh(SystemTime::now());
    assert!(!matches!(refreshed, Refreshed::Refused(_)), "{refreshed:?}");
    assert_eq!(ask_anew(&after, CHECK).await.unwrap().code(), Code::Ok);
    assert!(before.connect().await.is_err());
    assert_eq!(ask(&connection, CHECK).await.code(), Code::Ok);
}

#[tokio::test]
async fn what_cannot_be_served_with_leaves_the_certificate_in_force_until_it_is_repaired() {
    let dir = TempDir::new().unwrap();
    let ca = Ca::new("ours");
    ca.server().write(dir.path(), "server");
    let trusted = write(dir.path(), "ca.pem", &ca.pem);
    let service = Service::start_in(dir, "127.0.0.1:0", TLS).await;
    let tls = service.tls.clone().unwrap();
    let target = trusting(service.target(), &trusted);
    let refresh = || tls.refresh(SystemTime::now());
    for broken in [
        "",
        "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n",
    ] {
        let before = tls.current();
        write(service.dir.path(), "server.pem", broken);
        assert!(!matches!(refresh(), Refreshed::Taken));
        assert!(matches!(refresh(), Refreshed::Unchanged), "it is said once");
        assert!(std::sync::Arc::ptr_eq(&before, &tls.current()));
        assert_eq!(ask_anew(&target, CHECK).await.unwrap().code(), Code::Ok);
    }
    fs::remove_file(service.dir.path().join("server.key")).unwrap();
    assert!(!matches!(refresh(), Refreshed::Taken));
    assert_eq!(ask_anew(&target, CHECK).await.unwrap().code(), Code::Ok);
    let before = tls.current();
    ca.server().write(service.dir.path(), "server");
    refresh();
    assert!(
        !std::sync::Arc::ptr_eq(&before, &tls.current()),
        "the repaired one is taken"
    );
    assert_eq!(ask_anew(&target, CHECK).await.unwrap().code(), Code::Ok);
}

#[tokio::test]
async fn clients_of_a_new_ca_are_let_in_and_those_of_the_old_one_no_more() {
    let dir = TempDir::new().unwrap();
    let (ca, old, new) = (Ca::new("ours"), Ca::new("old"), Ca::new("new"));
    ca.server().write(dir.path(), "server");
    let trusted = write(dir.path(), "ca.pem", &ca.pem);
    write(dir.path(), "clients.pem", &old.pem);
    let tables = format!("{TLS}\nclient_ca = \"clients.pem\"");
    let service = Service::start_in(dir, "127.0.0.1:0", &tables).await;
    let target = trusting(service.target(), &trusted);
    let show = |ca: &Ca, file: &str| {
        let signed = ca.client("c", "c.example");
        showing(target.clone(), signed.write(service.dir.path(), file))
    };
    let (of_old, of_new) = (show(&old, "of-old"), show(&new, "of-new"));
    assert_eq!(ask_anew(&of_old, CHECK).await.unwrap().code(), Code::Ok);
    write(service.dir.path(), "clients.pem", &new.pem);
    service.tls.as_ref().unwrap().refresh(SystemTime::now());
    assert_eq!(ask_anew(&of_new, CHECK).await.unwrap().code(), Code::Ok);
    let refused = ask_anew(&of_old, CHECK).await;
    assert!(!refused.is_ok_and(|status| status.code() == Code::Ok));
}

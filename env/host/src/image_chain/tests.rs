use std::fs;

use super::*;
use crate::guest::Guest;
use crate::qcow2::tests::image as qcow2;

/// Resolves a disk whose XML has this driver type, source and backing chain; `DIR` in them and in the
/// result stands for a directory with these images.
fn resolve(images: &[(&str, Vec<u8>)], format: &str, source: &str, backing: &str) -> ImageChain {
    let dir = tempfile::tempdir().unwrap();
    let real = fs::canonicalize(dir.path()).unwrap().display().to_string();
    for (name, bytes) in images {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let xml = format!(
        "<domain type='kvm'><name>g</name><uuid>u</uuid><vcpu>1</vcpu><devices><disk type='file' device='disk'>
        <driver name='qemu' type='{format}'/>{source}{backing}<target dev='vda' bus='virtio'/></disk></devices></domain>"
    );
    let guest = Guest::from_xml(&xml.replace("DIR", &real)).unwrap();
    let resolver = Resolver::new(&dir.path().join("sys"), &dir.path().join("proc"));
    let mut chain = resolver.disk(&guest.disks[0]);
    for image in &mut chain.images {
        image.path = image.path.strip_prefix(&real).unwrap().to_owned();
        image.source = image.source.replace(&real, "DIR");
    }
    chain.problem = chain.problem.map(|problem| problem.replace(&real, "DIR"));
    chain
}

const ACTIVE: &str = "<source file='DIR/a'/>";

fn files(chain: &ImageChain) -> Vec<String> {
    let file = |image: &Image| {
        format!(
            "{} {} {}",
            image.role.name(),
            image.format,
            image.path.display()
        )
    };
    chain.images.iter().map(file).collect()
}

#[test]
fn without_a_chain_in_the_xml_the_headers_are_followed() {
    let images = [
        ("a", qcow2(Some("b"), Some("qcow2"), None)),
        (
            "b",
            qcow2(
                Some("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"c\"}}"),
                Some("raw"),
                None,
            ),
        ),
        ("c", vec![0; 512]),
    ];
    let chain = resolve(&images, "qcow2", ACTIVE, "");
    assert_eq!(
        files(&chain),
        ["active qcow2 a", "backing qcow2 b", "backing raw c"]
    );
    assert_eq!(chain.problem, None);
    let sources: Vec<&str> = chain
        .images
        .iter()
        .map(|image| image.source.as_str())
        .collect();
    assert_eq!(sources, ["domain XML", "DIR/a", "DIR/b"]);
}

#[test]
fn the_chain_of_the_xml_holds_where_it_is_complete_and_is_continued_where_it_is_not() {
    let images = [
        ("a", qcow2(Some("other"), Some("raw"), None)),
        ("b", qcow2(Some("c"), Some("raw"), None)),
        ("c", vec![0; 512]),
    ];
    let store = |end: &str| {
        format!(
            "<backingStore type='file'><format type='qcow2'/><source file='DIR/b'/>{end}</backingStore>"
        )
    };
    let chain = resolve(&images, "qcow2", ACTIVE, &store("<backingStore/>"));
    assert_eq!(files(&chain), ["active qcow2 a", "backing qcow2 b"]);
    let chain = resolve(&images, "qcow2", ACTIVE, &store(""));
    assert_eq!(
        files(&chain),
        ["active qcow2 a", "backing qcow2 b", "backing raw c"]
    );
}

#[test]
fn a_raw_image_is_not_looked_into_whatever_a_guest_wrote_there() {
    let images = [("a", qcow2(Some("/etc/shadow"), Some("raw"), None))];
    let chain = resolve(&images, "raw", ACTIVE, "");
    assert_eq!(files(&chain), ["active raw a"]);
    // Nor one whose format nobody recorded: QEMU would guess.
    let images = [
        ("a", qcow2(Some("b"), None, None)),
        ("b", qcow2(Some("/etc/shadow"), Some("raw"), None)),
    ];
    let chain = resolve(&images, "qcow2", ACTIVE, "");
    assert_eq!(files(&chain), ["active qcow2 a", "backing raw b"]);
    assert_eq!(chain.images[1].validity, Validity::Estimated);
}

#[test]
fn an_images_data_file_belongs_to_the_chain() {
    let images = [
        ("a", qcow2(Some("b"), Some("raw"), Some("data.raw"))),
        ("b", vec![0; 512]),
        ("data.raw", vec![0; 512]),
    ];
    let chain = resolve(&images, "qcow2", ACTIVE, "");
    assert_eq!(
        files(&chain),
        ["active qcow2 a", "data raw data.raw", "backing raw b"]
    );
    assert!(chain.to_string().contains(", its data raw "), "{chain}");
}

#[test]
fn what_ends_a_chain_before_its_end_is_said() {
    for (name, problem) in [
        ("nbd://server/export", "is for QEMU alone"),
        ("json:{\"driver\":\"nbd\"}", "is for QEMU alone"),
        ("json:nonsense", "is for QEMU alone"),
        ("a", "DIR/a stands on itself"),
        ("./a", "stands on itself"),
    ] {
        let images = [("a", qcow2(Some(name), Some("qcow2"), None))];
        let chain = resolve(&images, "qcow2", ACTIVE, "");
        assert!(chain.problem.as_ref().unwrap().contains(problem), "{chain}");
        assert_eq!(files(&chain), ["active qcow2 a"]);
    }
    let images = [("a", qcow2(Some("missing"), Some("qcow2"), None))];
    let chain = resolve(&images, "qcow2", ACTIVE, "");
    assert!(
        chain.problem.as_ref().unwrap().contains("DIR/missing"),
        "{chain}"
    );
    assert!(!chain.is_complete());
    let chain = resolve(&[("a", b"garbage".to_vec())], "qcow2", ACTIVE, "");
    assert!(
        chain.problem.as_ref().unwrap().contains("no qcow2 header"),
        "{chain}"
    );
    let chain = resolve(&[], "raw", "<source protocol='rbd' name='pool/image'/>", "");
    assert!(
        chain.to_string().starts_with("? (the XML names no file"),
        "{chain}"
    );
}

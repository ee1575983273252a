use proptest::prelude::*;

use super::*;

fn throttle(text: &str) -> Throttle {
    text.parse().unwrap()
}

fn named(words: &[&str]) -> Vec<(String, String)> {
    let pair = |word: &&str| {
        let (name, value) = word.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    words.iter().map(pair).collect()
}

#[test]
fn a_throttle_is_written_in_the_order_of_virsh_and_read_back() {
    let text = "read_iops_sec=500 read_iops_sec_max=900 size_iops_sec=8192 read_iops_sec_max_length=3 group_name=gold two";
    assert_eq!(throttle(text).to_string(), text);
    assert_eq!(throttle(text).group(), Some("gold two"));
    assert_eq!(throttle("none"), Throttle::default());
    assert_eq!(Throttle::default().to_string(), "none");
    assert!("total_iops_sec".parse::<Throttle>().is_err());
    assert!("speed=7".parse::<Throttle>().is_err());
}

#[test]
fn what_means_the_same_is_written_the_same() {
    // QEMU tells a burst of one second where none was given, and a group of the disk's own.
    let read = "total_iops_sec=10 total_iops_sec_max=20 total_iops_sec_max_length=1 group_name=/machine/peripheral/virtio-disk0/virtio-backend";
    assert_eq!(
        throttle(read).to_string(),
        "total_iops_sec=10 total_iops_sec_max=20"
    );
    assert_eq!(
        throttle("size_iops_sec=4096 group_name=gold").to_string(),
        "none"
    );
}

#[test]
fn the_xml_of_a_disk_is_read() {
    let xml = "<disk><iotune><read_iops_sec>500</read_iops_sec><read_iops_sec_max>900</read_iops_sec_max><group_name>gold</group_name></iotune></disk>";
    let disk = Element::parse(xml).unwrap();
    assert_eq!(
        Throttle::from_disk(&disk).to_string(),
        "read_iops_sec=500 read_iops_sec_max=900 group_name=gold"
    );
    let none = Element::parse("<disk/>").unwrap();
    assert!(Throttle::from_disk(&none).is_none());
}

#[test]
fn an_operators_limit_replaces_its_burst_and_what_cannot_stand_beside_it() {
    let before = throttle(
        "write_bytes_sec=1000000 read_iops_sec=500 read_iops_sec_max=900 read_iops_sec_max_length=3",
    );
    let total = before.with(&named(&["total_iops_sec=100"])).unwrap();
    assert_eq!(
        total.to_string(),
        "write_bytes_sec=1000000 total_iops_sec=100"
    );
    let write = total
        .with(&named(&["write_iops_sec=70", "write_iops_sec_max=90"]))
        .unwrap();
    assert_eq!(
        write.to_string(),
        "write_bytes_sec=1000000 write_iops_sec=70 write_iops_sec_max=90"
    );
    let lifted = write
        .with(&named(&["write_iops_sec=0", "write_bytes_sec=2MiB"]))
        .unwrap();
    assert_eq!(lifted.to_string(), "write_bytes_sec=2097152");
}

#[test]
fn what_qemu_and_libvirt_refuse_is_refused_before() {
    let none = Throttle::default();
    for (words, problem) in [
        (&["total_iops_sec_max=50"][..], "needs total_iops_sec"),
        (
            &["total_iops_sec=100", "total_iops_sec_max=50"],
            "must be at least",
        ),
        (
            &["total_iops_sec=100", "total_iops_sec_max_length=5"],
            "needs total_iops_sec_max",
        ),
        (&["total_iops_sec=100", "read_iops_sec=5"], "stands beside"),
        (&["total_iops_sec=1000000000000001"], "at most"),
        (&["total_iops_sec=1k"], "whole number"),
        (&["speed=1"], "no limit"),
    ] {
        let refused = none.with(&named(words)).unwrap_err();
        assert!(refused.contains(problem), "{words:?}: {refused}");
    }
}

#[test]
fn no_limit_goes_below_the_floor_and_none_at_all_is_no_limit() {
    let bounds = ThrottleBounds {
        least_iops: 100,
        least_bytes_per_s: 1 << 20,
    };
    for text in ["none", "total_iops_sec=100", "write_bytes_sec=1048576"] {
        assert_eq!(throttle(text).check_bounds(&bounds), Ok(()));
    }
    for (text, key) in [
        ("read_iops_sec=99", "least_iops"),
        ("write_bytes_sec=1048575", "least_bytes_per_s"),
    ] {
        let refused = throttle(text).check_bounds(&bounds).unwrap_err();
        assert!(refused.contains(key), "{refused}");
    }
}

#[test]
fn what_somebody_else_sets_is_understood_as_libvirt_does() {
    // As tried with libvirt 9.0: a family that is named is replaced, the others stay.
    let ours = throttle("write_bytes_sec=1000000 total_iops_sec=100");
    let after = |told: &str| ours.clone().after(&told.parse().unwrap()).to_string();
    assert_eq!(
        after("read_iops_sec=7"),
        "write_bytes_sec=1000000 read_iops_sec=7"
    );
    assert_eq!(after("total_iops_sec=0"), "write_bytes_sec=1000000");
    assert_eq!(after("total_iops_sec=100"), ours.to_string());
    assert_eq!(
        after("total_iops_sec_max=200 group_name=gold"),
        "write_bytes_sec=1000000 total_iops_sec=100 total_iops_sec_max=200 group_name=gold"
    );
    // All of it, as our own calls have it.
    let theirs = throttle("read_iops_sec=7 group_name=gold");
    assert_eq!(ours.after(&theirs.params()), theirs);
}

#[test]
fn the_words_for_virsh_name_everything() {
    let words = throttle("read_iops_sec=7 group_name=gold two").virsh_words();
    assert_eq!(words.len(), 2 * 19 + 2);
    let value = |option: &str| {
        let at = words.iter().position(|word| word == option).unwrap();
        words[at + 1].as_str()
    };
    assert_eq!(value("--read-iops-sec"), "7");
    assert_eq!(value("--write-bytes-sec-max-length"), "0");
    assert_eq!(value("--group-name"), "gold two");
}

proptest! {
    #[test]
    fn a_throttle_is_what_its_text_says(values in proptest::collection::vec(0_u64..4, 19), group in "[a-z =]{0,6}") {
        let numbers = names().zip(values).collect();
        let group = Some(group).filter(|group| !group.is_empty());
        let throttle = Throttle::default().replaced(&Params { numbers, group });
        prop_assert_eq!(throttle.to_string().parse::<Throttle>().unwrap(), throttle.clone());
        // And what all its parameters make of any other.
        let other: Throttle = "total_iops_sec=9 total_iops_sec_max=10".parse().unwrap();
        let mut params = throttle.params();
        params.group.get_or_insert_default();
        prop_assert_eq!(other.after(&params), throttle);
    }
}

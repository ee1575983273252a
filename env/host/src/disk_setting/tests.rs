use super::*;

fn pairs(words: &[&str]) -> Vec<(String, String)> {
    let pair = |word: &&str| {
        let (name, value) = word.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    words.iter().map(pair).collect()
}

#[test]
fn names_are_grouped_by_setting() {
    let named = pairs(&["total_iops_sec=5", "l2-cache-size=1MiB", "read_bytes_sec=7"]);
    let changes = DiskChange::of(&named).unwrap();
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0].setting, DiskSetting::Throttle);
    assert_eq!(changes[0].named.len(), 2);
    assert_eq!(changes[1].setting, DiskSetting::Qcow2Cache);
    let refused = DiskChange::of(&pairs(&["cache=direct"])).unwrap_err();
    assert!(refused.contains("total_iops_sec") && refused.contains("l2-cache-size"));
}

#[test]
fn a_setting_itself_can_only_be_unset() {
    let of = |words: &[&str]| DiskChange::of(&pairs(words)).unwrap().remove(0).parts();
    assert_eq!(of(&["throttle=none"]), Ok((true, vec![])));
    assert_eq!(
        of(&["throttle=none", "total_iops_sec=5"]),
        Ok((true, pairs(&["total_iops_sec=5"])))
    );
    assert_eq!(
        of(&["total_iops_sec=5"]),
        Ok((false, pairs(&["total_iops_sec=5"])))
    );
    assert!(
        of(&["qcow2-cache=16MiB"])
            .unwrap_err()
            .contains("as-booted")
    );
    let limit = DiskChange::limit(Some(5), None).parts();
    assert_eq!(limit, Ok((true, pairs(&["total_iops_sec=5"]))));
}

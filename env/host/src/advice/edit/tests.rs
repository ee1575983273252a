use super::*;

const XML: &str = "<domain type='kvm'>
  <name>web</name>
  <uuid>ee81b14e-982c-47f4-ac22-70486068cb15</uuid>
  <memory unit='KiB'>1048576</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='static'>4</vcpu>
  <!-- kept -->
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <source file='/a &amp; b.img'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
</domain>
";

fn lines(edit: &Edit, xml: &str) -> Vec<String> {
    let after = edit.apply(xml).unwrap();
    let diff = diff("web", xml, &after);
    let changed = |line: &&str| {
        (line.starts_with('+') || line.starts_with('-'))
            && !line.starts_with("+++")
            && !line.starts_with("---")
    };
    diff.lines().filter(changed).map(str::to_owned).collect()
}

fn dedicate(target: &str) -> Edit {
    Edit::DedicatedIoThread {
        target: target.into(),
    }
}

#[test]
fn an_attribute_is_put_where_libvirt_writes_it_and_nothing_else_moves() {
    let edit = Edit::Driver {
        target: "vda".into(),
        set: vec![("io", "io_uring".into()), ("cache", "writeback".into())],
    };
    assert_eq!(
        lines(&edit, XML),
        [
            "-      <driver name='qemu' type='raw' cache='none' discard='unmap'/>",
            "+      <driver name='qemu' type='raw' cache='writeback' io='io_uring' discard='unmap'/>",
        ]
    );
}

#[test]
fn the_first_iothread_is_counted_and_the_next_disk_gets_another() {
    let one = dedicate("vda").apply(XML).unwrap();
    assert!(
        one.contains("</vcpu>\n  <iothreads>1</iothreads>\n"),
        "{one}"
    );
    let two = dedicate("vdb").apply(&one).unwrap();
    assert!(two.contains("<iothreads>2</iothreads>"));
    let guest = Guest::from_xml(&two).unwrap();
    let ids: Vec<_> = guest.disks.iter().map(|disk| disk.iothread).collect();
    assert_eq!(ids, [Some(1), Some(2)]);
}

#[test]
fn an_idle_iothread_is_used_before_a_new_one_is_made() {
    let listed = "<iothreads>2</iothreads>\n  <iothreadids>\n    <iothread id='4'/>\n    <iothread id='7'/>\n  </iothreadids>";
    let xml = XML.replace("<!-- kept -->", listed);
    let one = dedicate("vda").apply(&xml).unwrap();
    let two = dedicate("vdb").apply(&one).unwrap();
    assert!(two.contains(listed), "{two}");
    let three = dedicate("vda").apply(&two).unwrap();
    let guest = Guest::from_xml(&three).unwrap();
    assert_eq!(guest.iothreads, BTreeSet::from([1, 4, 7]));
    assert_eq!(guest.disks[0].iothread, Some(1));
    assert!(three.contains("<iothreads>3</iothreads>"));
}

#[test]
fn queues_are_spread_over_iothreads_of_the_disk_alone() {
    let xml = dedicate("vdb").apply(XML).unwrap();
    let edit = Edit::MapQueues {
        target: "vda".into(),
        iothreads: 2,
        queues: None,
    };
    let mapped = edit.apply(&xml).unwrap();
    let expected = "      <driver name='qemu' type='raw' cache='none' discard='unmap'>
        <iothreads>
          <iothread id='2'/>
          <iothread id='3'/>
        </iothreads>
      </driver>
";
    assert!(mapped.contains(expected), "{mapped}");
    assert!(mapped.contains("  <iothreads>3</iothreads>\n"));
    let root = Element::parse(&mapped).unwrap();
    assert!(users(&root).values().all(|users| *users == 1));
}

#[test]
fn a_mapping_keeps_the_iothread_that_the_disk_has() {
    let xml = dedicate("vda").apply(XML).unwrap();
    let edit = Edit::MapQueues {
        target: "vda".into(),
        iothreads: 2,
        queues: None,
    };
    let mapped = edit.apply(&xml).unwrap();
    assert!(!mapped.contains("iothread='1'"));
    let root = Element::parse(&mapped).unwrap();
    assert_eq!(users(&root), BTreeMap::from([(1, 1), (2, 1)]));
    assert!(mapped.contains("<iothreads>2</iothreads>"));
}

#[test]
fn a_pin_is_changed_or_made() {
    let pin = |cpus: &str| Edit::PinIoThread {
        iothread: 1,
        cpus: cpus.parse().unwrap(),
    };
    let made = pin("2-3").apply(XML).unwrap();
    let expected = "</vcpu>
  <cputune>
    <iothreadpin iothread='1' cpuset='2-3'/>
  </cputune>
";
    assert!(made.contains(expected), "{made}");
    assert_eq!(
        lines(&pin("1"), &made),
        [
            "-    <iothreadpin iothread='1' cpuset='2-3'/>",
            "+    <iothreadpin iothread='1' cpuset='1'/>"
        ]
    );
}

#[test]
fn huge_pages_go_into_the_memory_backing_there_is() {
    let edit = Edit::HugePages {
        page_kib: Some(1 << 20),
    };
    let made = edit.apply(XML).unwrap();
    let expected = "</currentMemory>
  <memoryBacking>
    <hugepages>
      <page size='1048576' unit='KiB'/>
    </hugepages>
  </memoryBacking>
  <vcpu";
    assert!(made.contains(expected), "{made}");
    let backed = XML.replace("<!-- kept -->", "<memoryBacking><locked/></memoryBacking>");
    let edit = Edit::HugePages { page_kib: None };
    let root = Element::parse(&edit.apply(&backed).unwrap()).unwrap();
    let backing = root.child("memoryBacking").unwrap();
    assert!(backing.child("hugepages").is_some() && backing.child("locked").is_some());
}

#[test]
fn a_disk_that_is_not_there_is_named() {
    let error = dedicate("vdz").apply(XML).unwrap_err().to_string();
    assert!(error.contains("vdz"), "{error}");
}

//! An IOThread of its own for each disk.

use super::{Advice, Edit, Evidence, Gain, Kind, Remedy, Subject, SubjectDisk};

pub(super) fn advise(guest: &Subject, disk: &SubjectDisk) -> Option<Advice> {
    if !disk.is_virtio_blk || disk.lacks_ioeventfd || is_first_of_its_iothread(guest, disk) {
        return None;
    }
    let served_by = disk.iothreads.iter().next();
    let (reason, beside) = match served_by {
        None => (
            "QEMU's main loop serves the disk, beside the monitor, timers and every other device without \
             an IOThread; it has neither a channel nor polling that could be tuned",
            0,
        ),
        Some(id) => (
            "other devices share its IOThread: their requests wait for each other, and they can only be \
             tuned together",
            guest.iothread_users.get(id).copied().unwrap_or(1) - 1,
        ),
    };
    let mut evidence = vec![Evidence::text(
        "served by",
        served_by.map_or("the main loop".to_owned(), |id| format!("IOThread {id}")),
    )];
    if beside > 0 {
        evidence.push(Evidence::number("other devices on it", beside as f64, ""));
    }
    if let Some(measured) = disk.measured {
        evidence.push(Evidence::number(
            "requests in flight",
            measured.in_flight,
            "",
        ));
    }
    let advice = Advice {
        summary: "give the disk an IOThread of its own".to_owned(),
        reason: reason.to_owned(),
        evidence,
        gain: Gain::Documented {
            text: "the main loop is a bottleneck on hosts with many CPUs; IBM names an IOThread per disk for best \
                   performance",
            source: "QEMU: docs/devel/multiple-iothreads.rst; IBM: Linux on KVM, <driver> as child element of <disk>",
        },
        remedy: Remedy::Xml(Edit::DedicatedIoThread {
            target: disk.disk.target.clone(),
        }),
        ..Advice::of_disk(Kind::IoThread, guest, disk)
    };
    Some(advice)
}

/// Whether it may stay where it is: alone, or as the first of the disks there, which the others leave.
/// A controller on the same IOThread stays too, and then the first disk has to leave as well.
fn is_first_of_its_iothread(guest: &Subject, disk: &SubjectDisk) -> bool {
    let Some(id) = disk.iothreads.iter().next() else {
        return false;
    };
    let mut here = guest
        .disks
        .iter()
        .filter(|other| other.iothreads.contains(id));
    let is_first = here
        .next()
        .is_some_and(|first| first.disk.target == disk.disk.target);
    let disks = 1 + here.count();
    let users = guest.iothread_users.get(id).copied().unwrap_or(disks);
    let is_alone = disk.has_own_iothread(&guest.iothread_users);
    is_alone || (is_first && users == disks && disk.iothreads.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, host};
    use super::*;
    use crate::advice::advise as all;
    use crate::advice::subject::tests::{subject_of, xml};

    fn second_disk(xml: &str, driver: &str) -> String {
        let disk = format!(
            "</disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'{driver}/>
      <source file='/images/data.img'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>"
        );
        xml.replace("</disk>\n  </devices>", &disk)
    }

    fn targets(xml: &str) -> Vec<String> {
        let advice = all(&[subject_of(xml)], &host());
        let mine = advice.into_iter().filter(|a| a.kind == Kind::IoThread);
        mine.map(|advice| advice.subject).collect()
    }

    #[test]
    fn the_main_loop_and_shared_iothreads_are_left() {
        let one = "\n  <iothreads>1</iothreads>";
        let shared = second_disk(&xml(" iothread='1'", one), " iothread='1'");
        assert_eq!(targets(&shared), ["vdb"]);
        assert_eq!(targets(&second_disk(&xml("", ""), "")), ["vda", "vdb"]);
        assert_eq!(targets(&xml(" iothread='1'", one)), [""; 0]);
    }

    #[test]
    fn a_controller_keeps_the_iothread_that_it_shares() {
        let controller = "<devices>
    <controller type='scsi' model='virtio-scsi'><driver iothread='1'/></controller>";
        let xml = xml(" iothread='1'", "\n  <iothreads>1</iothreads>");
        assert_eq!(targets(&xml.replace("<devices>", controller)), ["vda"]);
    }

    #[test]
    fn a_disk_that_cannot_have_an_iothread_gets_no_advice() {
        let without = subject_of(&xml(" ioeventfd='off'", ""));
        assert_eq!(advice_of(Kind::IoThread, &without, &host()), None);
        let sata = xml("", "").replace("bus='virtio'", "bus='sata'");
        assert_eq!(advice_of(Kind::IoThread, &subject_of(&sata), &host()), None);
    }
}

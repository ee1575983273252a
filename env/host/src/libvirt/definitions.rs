//! How guests are defined, running or not, for advice about their next boot.

use virt::domain::Domain;
use virt_sys as sys;

use super::Libvirt;
use crate::advice::Definition;
use crate::error::{HostError, HostResult};

/// Guests by name with their definitions, and those that could not be read with the reason.
type Definitions = (Vec<(String, Definition)>, Vec<(String, String)>);

impl Libvirt {
    /// The definitions of all guests, by name. Passwords are left out of them.
    ///
    /// # Errors
    /// `Disconnected`.
    pub fn definitions(&self) -> HostResult<Definitions> {
        let domains = self
            .connect
            .list_all_domains(0)
            .map_err(|error| self.error("listing guests", &error))?;
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        for domain in &domains {
            let name = domain.get_name().unwrap_or_default();
            match self.definition(&name, domain) {
                Ok(definition) => read.push((name, definition)),
                Err(HostError::GuestGone { .. }) => {}
                Err(error @ HostError::Disconnected { .. }) => return Err(error),
                Err(error) => unreadable.push((name, error.to_string())),
            }
        }
        read.sort_by(|(a, _), (b, _)| a.cmp(b));
        unreadable.sort();
        Ok((read, unreadable))
    }

    /// The XML that a guest's next boot will have, passwords included: what `virsh define` takes without
    /// losing any. Refused on a read-only connection.
    ///
    /// # Errors
    /// `GuestGone` for no such guest; `Libvirt`; `Disconnected`.
    pub fn whole_definition(&self, uuid: &str) -> HostResult<String> {
        let flags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
        self.domain(uuid)?
            .get_xml_desc(flags)
            .map_err(|error| self.guest_error(uuid, "reading its definition", &error))
    }

    fn definition(&self, name: &str, domain: &Domain) -> HostResult<Definition> {
        let failed = |error| self.guest_error(name, "reading its definition", &error);
        let is_running = domain.is_active().map_err(failed)?;
        let live_xml = is_running.then(|| domain.get_xml_desc(0)).transpose();
        Ok(Definition {
            xml: domain
                .get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)
                .map_err(failed)?,
            live_xml: live_xml.map_err(failed)?,
            is_persistent: domain.is_persistent().map_err(failed)?,
            snapshots: domain.list_all_snapshots(0).map_err(failed)?.len(),
        })
    }
}

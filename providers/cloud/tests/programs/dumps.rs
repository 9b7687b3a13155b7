//! Dumps of a managed database that a cluster takes.

use textnlp_provider::component::{Backup, ComponentSpec, Database, ManagedDumps};
use textnlp_provider::{Component, DataClass, Provider, ResourceId, Site};

/// A component as it is expanded inside of the cluster.
type Inside = fn(&Component, &Site) -> Option<(Component, Site)>;

/// They are copies of the server, which holds the data, and not of a database or a user in it.
pub(crate) fn are_copies_of_the_server(provider: &dyn Provider, inside: Inside, site: &Site, database: Database) {
    let managed = ManagedDumps {
        version: 16,
        disk_bytes: 20 << 30,
        backup_bytes: 20 << 30,
        data: "instance".to_owned(),
        secrets: "secrets".parse().unwrap(),
        private_ca: None,
    };
    let backup = Backup {
        every_seconds: 86_400,
        keep_seconds: 7 * 86_400,
        destination: None,
        verify: true,
        recipients: Vec::new(),
        point_in_time_seconds: None,
        managed: Some(managed),
    };
    let component = |name: &str, part| Component { name: name.parse().unwrap(), existing: None, part };
    let (backup, _) = inside(&component("backup", ComponentSpec::Backup(backup)), site).unwrap();
    let ComponentSpec::Backup(Backup { managed: Some(managed), .. }) = &backup.part else { panic!("{backup:?}") };
    let id = ResourceId::part(&site.name, &"database".parse().unwrap(), &managed.data).unwrap();
    let made = provider.lower(&component("database", ComponentSpec::Database(database)), site).unwrap();
    let one = made.iter().find(|one| one.id == id).unwrap_or_else(|| panic!("{id}: {made:#?}"));
    let kind = provider.kinds().iter().find(|kind| kind.name == one.kind.as_str()).unwrap();
    assert_eq!((kind.data, kind.replica.is_some()), (DataClass::Precious, true), "{id}: {}", kind.name);
}

//! Requests to replace credentials. A request is a record of the journal; the next run plans an update for it, and the
//! record of that update ends it. A run that was interrupted therefore continues the rotation.

use textnlp_provider::{ROTATION, Recorded, ResourceId, Rotation, SiteName};

use crate::state::{Entry, Locked, State, StateError};

/// A resource whose provider can replace what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationTarget {
    /// Its site.
    pub site: SiteName,
    /// The resource.
    pub resource: ResourceId,
}

/// The recorded resources that `is_wanted` selects.
pub fn targets(state: &State, is_wanted: impl Fn(&Recorded) -> bool) -> Result<Vec<RotationTarget>, StateError> {
    let mut found = Vec::new();
    for site in state.sites() {
        let current = state.holdings(site)?.into_values().filter_map(|holding| holding.current);
        found.extend(
            current.filter(&is_wanted).map(|recorded| RotationTarget { site: site.clone(), resource: recorded.id }),
        );
    }
    Ok(found)
}

/// The targets for which a rotation is requested and not carried out.
pub fn pending(state: &State, targets: &[RotationTarget]) -> Vec<ResourceId> {
    let is_pending = |target: &&RotationTarget| {
        state.current(&target.site, &target.resource).is_some_and(|recorded| recorded.spec.get(ROTATION).is_some())
    };
    targets.iter().filter(is_pending).map(|target| target.resource.clone()).collect()
}

/// Requests a rotation of recorded resources. A newer request replaces an older one.
pub async fn request(locked: &mut Locked, targets: &[RotationTarget], rotation: &Rotation) -> Result<(), StateError> {
    for RotationTarget { site, resource } in targets {
        let Some(recorded) = locked.current(site, resource) else { continue };
        let recorded = Recorded { spec: recorded.spec.with_rotation(rotation), ..recorded };
        let write = |writer: &mut crate::state::JournalWriter<'_>| {
            let recorded = writer.body(&recorded);
            writer.entry(Entry::Noted {
                resource: resource.clone(),
                what: "rotate".to_owned(),
                recorded,
                created_by: None,
            });
        };
        locked.commit(site, write).await?;
    }
    Ok(())
}

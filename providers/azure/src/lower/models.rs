//! The container of your own models, and the key that the secrets in the cluster of a protected site are encrypted with.

use serde_json::json;
use textnlp_provider::component::ModelStore;

use super::{Lowering, output};
use crate::names;
use crate::tables::zones;

/// Days for which a deleted or replaced blob can be restored.
const SOFT_DELETE_DAYS: u32 = 14;
/// Days for which a deleted vault can be recovered: the most.
const VAULT_DAYS: u32 = 90;
/// The size of a key.
const BITS: u32 = 3_072;

impl Lowering<'_> {
    pub(super) fn models(&mut self, store: &ModelStore) {
        for (is_set, field, setting) in [
            (store.replica.is_some(), "replicate_to", "storage.replicate_to"),
            (store.key.is_some(), "existing_key", "storage.existing_key"),
            (store.archive_after_days.is_some(), "archive_after", "storage.archive_after"),
            (self.component.existing.is_some(), "existing", "storage.existing"),
        ] {
            if is_set {
                self.problem(field, "it is not supported on Azure yet", format!("remove `{setting}`"));
            }
        }
        let is_zoned = !zones::zones(&self.site.region).is_empty();
        let account = self.of_group(json!({
            "name": names::storage(self.site),
            "sku": if is_zoned { "Standard_ZRS" } else { "Standard_LRS" },
            "shared_key": false,
            "versioned": true,
            "soft_delete_days": SOFT_DELETE_DAYS,
        }));
        let Some(account) = self.part("account", "azure.storage", account) else { return };
        self.part("container", "azure.container", json!({ "name": "models", "account": output(&account, "id") }));
        if self.site.protect_data {
            let spec = self.of_group(json!({ "name": names::vault(self.site), "soft_delete_days": VAULT_DAYS }));
            let Some(vault) = self.part("vault", "azure.vault", spec) else { return };
            self.part("key", "azure.key", json!({ "name": "data", "vault": output(&vault, "id"), "bits": BITS }));
        }
    }
}

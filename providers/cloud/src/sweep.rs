//! What the searches for leftovers of all clouds have in common.

use textnlp_provider::{Leftover, Leftovers, Lineage, error_chain};

use crate::cloud::Cloud;
use crate::table::Row;
use crate::tags;

/// Looks for an object that no list shows by its recorded id. It is left over if it exists with the tags of the lineage.
pub async fn by_id<C: Cloud>(all: &mut Leftovers, api: &C, row: &Row<C>, id: &str, lineage: Lineage) {
    match row.resource.read(api, id).await {
        Ok(Some(seen)) if tags::lineage(&seen.tags) == Some(lineage) => {
            all.left.insert(Leftover { id: id.to_owned(), what: row.kind.says.to_owned() });
        }
        Ok(_) => {}
        Err(error) => {
            all.unsearched.insert(Leftover { id: id.to_owned(), what: error_chain(&error) });
        }
    }
}

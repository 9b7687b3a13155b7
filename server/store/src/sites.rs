//! Data from other sites: acknowledged keys, the public halves of their signing keys, their usage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::scope::Job;
use super::{ApiKey, Store, StoreError};

/// A row of usage for another site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each is the column of its name
pub struct UsageRow {
    pub id: String,
    pub request_id: String,
    pub user_id: String,
    pub tenant_id: String,
    pub endpoint: String,
    pub model: Option<String>,
    pub prompt_tokens: i64,
    pub generated_tokens: i64,
    pub generation_time_ms: i64,
    pub status: i64,
    pub created_at: i64,
    // Without prices they are omitted, as site agents of earlier releases expect it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_nanos: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_cents: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// The site where it was recorded; empty for the sending site.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub site: String,
}

const USAGE: &str = "id, request_id, user_id, tenant_id, endpoint, model, prompt_tokens, generated_tokens, generation_time_ms, status, \
                     created_at, cost_nanos, cost_cents, currency, site";

impl Store {
    /// Overwrites a key with its acknowledged state, including revocation.
    pub async fn mirror_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        if self.key(&key.public_id).await?.as_ref() == Some(key) {
            return Ok(());
        }
        self.put_key(key, None).await?;
        let mut transaction = self.write_all(&super::keys::about(&key.public_id), Job::Replication).await?;
        let query = sqlx::query("UPDATE api_keys SET created_at = $1, revoked_at = $2 WHERE public_id = $3")
            .bind(key.created_at)
            .bind(key.revoked_at)
            .bind(&key.public_id);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await
    }

    /// Remembers the public half of a site's signing key, as a JWK.
    pub async fn put_verifier(&self, site: &str, kid: &str, jwk: &str) -> Result<(), StoreError> {
        let mut transaction = self.write("verifiers").await?;
        let query = sqlx::query(
            "INSERT INTO verifiers (site, kid, jwk) VALUES ($1, $2, $3) ON CONFLICT (site) DO UPDATE SET kid = $2, jwk = $3",
        )
        .bind(site)
        .bind(kid)
        .bind(jwk);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await
    }

    /// The public halves of all sites' signing keys, as JWK, by name: that of a site, or `SITE/KID` of a key in use for
    /// a limited time, see [`VerifierLease`](super::verifier::VerifierLease).
    pub async fn verifiers(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let rows = self.ask(sqlx::query("SELECT site, jwk FROM verifiers").fetch_all(&self.reads)).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Removes public halves by name.
    pub async fn drop_verifiers(&self, names: &[String]) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut transaction = self.write("verifiers").await?;
        for name in names {
            let query = sqlx::query("DELETE FROM verifiers WHERE site = $1").bind(name);
            self.ask(query.execute(&mut *transaction)).await?;
        }
        self.commit(transaction).await
    }

    /// This site's own rows after a log position, in order, and the position of the last; up to another position, those
    /// of all sites.
    pub async fn usage_after(&self, at: i64, all_up_to: i64, most: u32) -> Result<(Vec<UsageRow>, i64), StoreError> {
        let query = sqlx::AssertSqlSafe(format!(
            "SELECT rowid, {USAGE} FROM api_usage WHERE rowid > $1 AND (site = '' OR rowid <= $2) ORDER BY rowid LIMIT $3"
        ));
        let query = sqlx::query(query).bind(at).bind(all_up_to).bind(i64::from(most));
        let mut transaction = self.read_all(Job::Replication).await?;
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        let last = rows.last().map_or(at, |row| row.get(0));
        let read = |row: &sqlx::any::AnyRow| -> Result<UsageRow, sqlx::Error> {
            Ok(UsageRow {
                id: row.try_get("id")?,
                request_id: row.try_get("request_id")?,
                user_id: row.try_get("user_id")?,
                tenant_id: row.try_get("tenant_id")?,
                endpoint: row.try_get("endpoint")?,
                model: row.try_get("model")?,
                prompt_tokens: row.try_get("prompt_tokens")?,
                generated_tokens: row.try_get("generated_tokens")?,
                generation_time_ms: row.try_get("generation_time_ms")?,
                status: row.try_get("status")?,
                created_at: row.try_get("created_at")?,
                cost_nanos: row.try_get("cost_nanos")?,
                cost_cents: row.try_get("cost_cents")?,
                currency: row.try_get("currency")?,
                site: row.try_get("site")?,
            })
        };
        let rows: Result<Vec<UsageRow>, sqlx::Error> = rows.iter().map(read).collect();
        Ok((rows?, last))
    }

    /// The position of the last row.
    pub async fn usage_end(&self) -> Result<i64, StoreError> {
        let query = sqlx::query("SELECT coalesce(max(rowid), 0) FROM api_usage");
        let mut transaction = self.read_all(Job::Replication).await?;
        let row = self.ask(query.fetch_one(&mut *transaction)).await?;
        Ok(row.try_get(0)?)
    }

    /// Inserts rows from another site, atomically. Existing rows stay unchanged. Rows recorded here before this site
    /// lost its disk count as its own again.
    pub async fn merge_usage(&self, here: &str, from: &str, rows: &[UsageRow]) -> Result<(), StoreError> {
        let mut transaction = self.write_all(super::usage::WRITES, Job::Replication).await?;
        let query = format!(
            "INSERT INTO api_usage ({USAGE}, tokens_used) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) \
             ON CONFLICT (id) DO NOTHING"
        );
        for row in rows {
            let site = match row.site.as_str() {
                "" => from,
                site if site == here => "",
                site => site,
            };
            let query = sqlx::query(sqlx::AssertSqlSafe(query.clone()))
                .bind(&row.id)
                .bind(&row.request_id)
                .bind(&row.user_id)
                .bind(&row.tenant_id)
                .bind(&row.endpoint)
                .bind(&row.model)
                .bind(row.prompt_tokens)
                .bind(row.generated_tokens)
                .bind(row.generation_time_ms)
                .bind(row.status)
                .bind(row.created_at)
                .bind(row.cost_nanos)
                .bind(row.cost_cents)
                .bind(&row.currency)
                .bind(site)
                .bind(row.prompt_tokens.saturating_add(row.generated_tokens));
            self.ask(query.execute(&mut *transaction)).await?;
        }
        self.commit(transaction).await
    }

    /// Which of these requests have a row here, their own or a merged one.
    pub async fn known_usage(&self, request_ids: &[String]) -> Result<Vec<String>, StoreError> {
        if request_ids.is_empty() {
            return Ok(Vec::new());
        }
        let places: Vec<String> = (1..=request_ids.len()).map(|number| format!("${number}")).collect();
        let text = format!(
            "SELECT DISTINCT request_id FROM api_usage WHERE request_id IN ({}) ORDER BY request_id",
            places.join(", ")
        );
        // The text depends on the number of rows, so preparing it is not worthwhile.
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).persistent(false);
        let query = request_ids.iter().fold(query, |query, id| query.bind(id));
        let mut transaction = self.read_all(Job::Replication).await?;
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// All rows: the request, and its site.
    #[cfg(test)]
    pub(crate) async fn usage_rows(&self) -> Vec<(String, String)> {
        let mut transaction = self.read_all(Job::Replication).await.unwrap();
        let query = sqlx::query("SELECT request_id, site FROM api_usage ORDER BY id");
        let rows = query.fetch_all(&mut *transaction).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, key, on_both};
    use super::super::{Charge, Charges, Usage, now_ms};
    use super::*;

    on_both!(
        usage_of_two_sites_is_one_union_however_often_it_is_shipped,
        cost_reaches_other_sites_as_it_was_recorded,
        a_key_is_mirrored_with_its_revocation_and_back,
    );

    fn usage(request: &str) -> Usage {
        Usage {
            id: uuid::Uuid::now_v7(),
            request_id: request.into(),
            user: "k".into(),
            tenant: "default".into(),
            endpoint: "/v1/generate".into(),
            model: Some("m".into()),
            prompt_tokens: 3,
            generated_tokens: 4,
            charge: None,
            ms: 5,
            status: 200,
            at_ms: now_ms(),
        }
    }

    async fn usage_of_two_sites_is_one_union_however_often_it_is_shipped(bench: Bench) {
        let elsewhere = bench.another();
        let (here, there) = (bench.store().await, elsewhere.store().await);
        here.append_usage(&[usage("r1"), usage("r2")]).await.unwrap();
        there.append_usage(&[usage("r3")]).await.unwrap();
        let (rows, last) = here.usage_after(0, 0, 1).await.unwrap();
        assert_eq!(rows.len(), 1);
        there.merge_usage("there", "here", &rows).await.unwrap();
        let (rows, _) = here.usage_after(last, 0, 10).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.request_id.as_str()).collect::<Vec<_>>(), ["r2"]);
        for _ in 0..2 {
            there.merge_usage("there", "here", &here.usage_after(0, 0, 10).await.unwrap().0).await.unwrap();
        }
        let merged = there.usage_rows().await;
        assert_eq!(merged.len(), 3);
        assert_eq!(merged.iter().filter(|(_, site)| site == "here").count(), 2);
        assert_eq!(there.usage_after(0, 0, 10).await.unwrap().0.len(), 1, "what came from elsewhere is not shipped on");
        // A site that lost its disk gets its own records back, and those that it had received.
        let bare = bench.another();
        let empty = bare.store().await;
        let end = there.usage_end().await.unwrap();
        let (all, _) = there.usage_after(0, end, 10).await.unwrap();
        empty.merge_usage("here", "there", &all).await.unwrap();
        let mut back = empty.usage_rows().await;
        back.sort();
        let rows = [("r1", ""), ("r2", ""), ("r3", "there")].map(|(r, s)| (r.to_owned(), s.to_owned()));
        assert_eq!(back, rows);
        let ids = ["r1", "r3", "r9", "'; DROP TABLE api_usage"].map(str::to_owned);
        assert_eq!(there.known_usage(&ids).await.unwrap(), ["r1", "r3"]);
        assert_eq!(there.tenant("default").usage_of("k", 0).await.unwrap(), (3, 21));
    }

    async fn cost_reaches_other_sites_as_it_was_recorded(bench: Bench) {
        let elsewhere = bench.another();
        let (here, there) = (bench.store().await, elsewhere.store().await);
        let charge = |nanos, cents| Some(Charge { nanos, cents, currency: "EUR".into() });
        let priced = Usage { charge: charge(15_000_000, 2), ..usage("r1") };
        here.append_usage(&[priced, usage("r2")]).await.unwrap();
        there.append_usage(&[Usage { charge: charge(2_000_000_001, 200), ..usage("r3") }]).await.unwrap();
        let (rows, _) = here.usage_after(0, 0, 10).await.unwrap();
        let sent = serde_json::json!(rows);
        assert!(sent[0]["cost_nanos"] == 15_000_000 && sent[0]["cost_cents"] == 2 && sent[0]["currency"] == "EUR");
        assert!(sent[1].get("cost_nanos").is_none() && sent[1].get("currency").is_none(), "{sent}");
        let received: Vec<UsageRow> = serde_json::from_value(sent).unwrap();
        there.merge_usage("there", "here", &received).await.unwrap();
        let days = there.tenant("default").usage_by_day("k", 0, i64::MAX).await.unwrap();
        let mut cost = Charges::default();
        for day in &days {
            cost.add(&day.sum.cost);
        }
        assert_eq!(cost, Charges::of("EUR", 2, 15_000_001));
        let (back, _) = there.usage_after(0, i64::MAX, 10).await.unwrap();
        let cents: i64 = back.iter().filter_map(|row| row.cost_cents).sum();
        assert_eq!(cents, 202, "cents are those of the site that recorded them");
    }

    async fn a_key_is_mirrored_with_its_revocation_and_back(bench: Bench) {
        let store = bench.store().await;
        let revoked = ApiKey { created_at: 77, revoked_at: Some(99), ..key("0123456789abcdef") };
        store.mirror_key(&revoked).await.unwrap();
        assert_eq!(store.key(&revoked.public_id).await.unwrap().unwrap(), revoked);
        let again = ApiKey { revoked_at: None, name: "again".into(), ..revoked };
        store.mirror_key(&again).await.unwrap();
        assert_eq!(store.key(&again.public_id).await.unwrap().unwrap(), again);
        store.put_verifier("a", "k1", "{}").await.unwrap();
        store.put_verifier("a", "k2", "{\"n\":1}").await.unwrap();
        let of_a = ("a".to_owned(), "{\"n\":1}".to_owned());
        assert_eq!(store.verifiers().await.unwrap(), BTreeMap::from([of_a.clone()]));
        store.put_verifier("a/k1", "k1", "{}").await.unwrap();
        assert_eq!(store.verifiers().await.unwrap().len(), 2);
        store.drop_verifiers(&["a/k1".to_owned(), "b".to_owned()]).await.unwrap();
        assert_eq!(store.verifiers().await.unwrap(), BTreeMap::from([of_a]));
    }
}

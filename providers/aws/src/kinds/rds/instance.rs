//! PostgreSQL servers: <https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_CreateDBInstance.html>.
//!
//! The password is one of the deployment's generated secrets, not one that RDS manages: pods read it from there today, RDS would
//! change its own every week without them, and it manages none for a server with replicas.

use async_trait::async_trait;
use aws_sdk_rds::types::{DbInstance as Answer, Filter as Condition};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_cloud::PROMOTED;
use textnlp_provider::{Error, ErrorKind, Result, SecretRef, Zones};

use super::{SERVICE, window};
use crate::api::Api;
use crate::kinds::secret;
use crate::resource::{Filter, Make, ObservedObject, Resource, State, timestamp};
use crate::tags::{self, Tags};

/// A PostgreSQL server, or a read replica of one. Outputs: `name`, `arn`, `host`, `port`, `database`, `user`, `url`,
/// `version`, `ca`.
pub(super) struct Instance;

/// The attributes of a server. Its price depends on class, storage, copies in zones and backups beyond its size.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    name: String,
    /// The ARN of the server that it replicates, which may be in another region; null is a server of its own. Null in place of an
    /// ARN promotes a replica.
    source: Option<String>,
    /// The major version: `16`. Minor versions are those of RDS.
    version: String,
    class: String,
    storage_gb: i32,
    storage_type: String,
    /// The ARN of its key.
    key: Option<String>,
    database: String,
    user: String,
    /// The reference to the password of the user, which a replica has from its source.
    password: Option<SecretRef>,
    port: i32,
    /// Whether a standby in another zone takes over.
    multi_az: bool,
    subnet_group: String,
    /// The ids of its security groups, sorted.
    security_groups: Vec<String>,
    parameter_group: String,
    /// Days for which backups are kept; 0 is no backup.
    backup_days: i32,
    /// When backups are taken, in UTC: `03:00-04:00`.
    backup_window: String,
    /// When it is patched, in UTC: `sun:05:00-sun:09:00`; null leaves the window that it has, which RDS chose at first.
    maintenance_window: Option<String>,
    deletion_protection: bool,
    /// Whether its deletion takes a last snapshot. RDS has no such attribute until then; whether tags are copied to snapshots, which
    /// matters to that snapshot only, stores it.
    final_snapshot: bool,
    performance_insights: bool,
    minor_upgrades: bool,
    public: bool,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Instance {
    type Spec = Spec;
    // A replica is promoted first: most of the others cannot change before.
    const IN_PLACE: &'static [&'static str] = &[
        "source",
        "public",
        "security_groups",
        "backup_days",
        "backup_window",
        "maintenance_window",
        "parameter_group",
        "class",
        "storage_gb",
        "storage_type",
        "multi_az",
        "minor_upgrades",
        "performance_insights",
        "password",
        "final_snapshot",
        "deletion_protection",
    ];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.rds.describe_db_instances().db_instance_identifier(id).send()).await?;
        Ok(answer.and_then(|answer| answer.db_instances?.into_iter().next()).and_then(seen))
    }

    /// One call for each page of the account's PostgreSQL servers: their descriptions have the tags.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let engine = Condition::builder().name("engine").values(ENGINE).build();
        let pages = api.rds.describe_db_instances().filters(engine).into_paginator().items().send();
        let all: Vec<Answer> = api.call(SERVICE, "list", "databases", pages.try_collect()).await?;
        Ok(all.into_iter().filter_map(seen).filter(|seen| filter.matches(&seen.tags)).collect())
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let mut tags = make.tags.clone();
        tags.extend(spec.password.as_ref().map(|password| (tags::SECRET.to_owned(), secret::tag(password))));
        let tags = Some(super::listed(&tags));
        let subject = format!("database {}", spec.name);
        if let Some(source) = &spec.source {
            let call = api
                .rds
                .create_db_instance_read_replica()
                .db_instance_identifier(&spec.name)
                .source_db_instance_identifier(source)
                .db_instance_class(&spec.class)
                .storage_type(&spec.storage_type)
                .set_kms_key_id(spec.key.clone())
                .port(spec.port)
                .multi_az(spec.multi_az)
                // In the region of the source, which is given by name, RDS takes its subnet group and no other
                // (<https://github.com/hashicorp/terraform-provider-aws/issues/40426>).
                .set_db_subnet_group_name(source.starts_with("arn:").then(|| spec.subnet_group.clone()))
                .set_vpc_security_group_ids(Some(spec.security_groups.clone()))
                // A replica of PostgreSQL takes no parameter group at its creation
                // (<https://github.com/hashicorp/terraform-provider-aws/issues/38056>): it is changed afterwards.
                .deletion_protection(spec.deletion_protection)
                .copy_tags_to_snapshot(spec.final_snapshot)
                .enable_performance_insights(spec.performance_insights)
                .auto_minor_version_upgrade(spec.minor_upgrades)
                .publicly_accessible(spec.public)
                .set_tags(tags);
            api.call(SERVICE, "create", subject, call.send()).await?;
            return Ok(spec.name.clone());
        }
        let password = match &spec.password {
            Some(password) => secret::value(api, password).await?,
            None => return Err(Error::new(ErrorKind::Invalid, "create", subject).because("it has no password")),
        };
        let call = api
            .rds
            .create_db_instance()
            .db_instance_identifier(&spec.name)
            .engine(ENGINE)
            .engine_version(&spec.version)
            .db_instance_class(&spec.class)
            .allocated_storage(spec.storage_gb)
            .storage_type(&spec.storage_type)
            .storage_encrypted(true)
            .set_kms_key_id(spec.key.clone())
            .db_name(&spec.database)
            .master_username(&spec.user)
            .master_user_password(password)
            .port(spec.port)
            .multi_az(spec.multi_az)
            .db_subnet_group_name(&spec.subnet_group)
            .set_vpc_security_group_ids(Some(spec.security_groups.clone()))
            .db_parameter_group_name(&spec.parameter_group)
            .backup_retention_period(spec.backup_days)
            .preferred_backup_window(&spec.backup_window)
            .set_preferred_maintenance_window(spec.maintenance_window.clone())
            .deletion_protection(spec.deletion_protection)
            .copy_tags_to_snapshot(spec.final_snapshot)
            .enable_performance_insights(spec.performance_insights)
            .auto_minor_version_upgrade(spec.minor_upgrades)
            .publicly_accessible(spec.public)
            .set_tags(tags);
        api.call(SERVICE, "create", subject, call.send()).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let id = seen.id.as_str();
        let refuse = |why: &str, hint: &str| {
            Err(Error::new(ErrorKind::Invalid, "change", id).because(why.to_owned()).hint(hint.to_owned()))
        };
        if field == "source" {
            if spec.source.is_some() {
                return refuse("a server cannot become a replica, or a replica of another server", PROMOTED);
            }
            // Its windows follow as a change: RDS compares them with each other.
            let call =
                api.rds.promote_read_replica().db_instance_identifier(id).backup_retention_period(spec.backup_days);
            return api.call(SERVICE, "promote", id, call.send()).await.map(drop);
        }
        let change = api.rds.modify_db_instance().db_instance_identifier(id).apply_immediately(true);
        let change = match field {
            "public" => change.publicly_accessible(spec.public),
            "security_groups" => change.set_vpc_security_group_ids(Some(spec.security_groups.clone())),
            "backup_days" => change.backup_retention_period(spec.backup_days),
            // Together, because RDS compares them with each other at each change.
            "backup_window" | "maintenance_window" => {
                let present = seen.spec.maintenance_window.as_deref().unwrap_or_default();
                let wanted = spec.maintenance_window.clone().or_else(|| window::beside(&spec.backup_window, present));
                // Windows change at once. With the flag, so would what others have left for the next window.
                change
                    .apply_immediately(false)
                    .preferred_backup_window(&spec.backup_window)
                    .set_preferred_maintenance_window(wanted)
            }
            "parameter_group" => change.db_parameter_group_name(&spec.parameter_group),
            "class" => change.db_instance_class(&spec.class),
            "storage_gb" => match storage_refusal(spec.storage_gb.into(), seen.spec.storage_gb.into()) {
                Some((why, hint)) => return refuse(&why, &hint),
                None => change.allocated_storage(spec.storage_gb),
            },
            "storage_type" => change.storage_type(&spec.storage_type),
            "multi_az" => change.multi_az(spec.multi_az),
            "minor_upgrades" => change.auto_minor_version_upgrade(spec.minor_upgrades),
            "performance_insights" => change.enable_performance_insights(spec.performance_insights),
            "final_snapshot" => change.copy_tags_to_snapshot(spec.final_snapshot),
            "deletion_protection" => change.deletion_protection(spec.deletion_protection),
            _ => {
                let Some(password) = &spec.password else { return refuse("a server has a password", "state one") };
                change.master_user_password(secret::value(api, password).await?)
            }
        };
        api.call(SERVICE, "change", id, change.send()).await.map(drop)
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<Option<String>> {
        if let ("password", Some(password)) = (field, &spec.password) {
            let is_replica = seen.spec.source.is_some();
            // The tag follows once RDS shows that it is changing the password: what is lost in between is sent again. New
            // connections are refused until the server has it.
            if is_replica || is_changing_password(api, &seen.id).await? {
                let tag = Tags::from([(tags::SECRET.to_owned(), secret::tag(password))]);
                super::tag(api, arn(seen), &tag, &[]).await?;
                return Ok((!is_replica).then(|| field.to_owned()));
            }
        }
        Self::put(api, seen, spec, field).await.map(|()| None)
    }

    async fn change(api: &Api, id: &str, _change: &str) -> Result<State> {
        Ok(match is_changing_password(api, id).await? {
            true => State::Pending("under way: its password".to_owned()),
            false => State::Ready,
        })
    }

    fn fits(field: &str, wanted: &Value, _seen: &Value) -> bool {
        field == "maintenance_window" && wanted.is_null()
    }

    fn refuses(field: &str, wanted: &Value, seen: &Value) -> Option<String> {
        match field {
            "storage_gb" => {
                let (why, hint) = storage_refusal(wanted.as_i64()?, seen.as_i64()?)?;
                Some(format!("{why}: {hint}"))
            }
            // The way to a newer one is that of the kind.
            "version" => {
                let major = |version: &Value| version.as_str()?.parse::<u32>().ok();
                let (wanted, seen) = (major(wanted)?, major(seen)?);
                let why = || format!("PostgreSQL {seen} cannot become {wanted}: set `database.version` to {seen}");
                (wanted < seen).then(why)
            }
            _ => None,
        }
    }

    /// As if the primary had failed: <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_RebootInstance.html>.
    async fn fail_over(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        let call = api.rds.reboot_db_instance().db_instance_identifier(&seen.id).force_failover(true);
        api.call(SERVICE, "fail over", &seen.id, call.send()).await.map(|_| None)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, arn(seen), set, remove).await
    }

    /// The record decides, and not the object: another identity may change that.
    fn before_delete(seen: &mut ObservedObject<Spec>, recorded: Option<&Spec>) {
        seen.spec.final_snapshot = recorded.is_none_or(|recorded| recorded.final_snapshot);
    }

    /// The protection goes first; the engine has the consent for data.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let id = seen.id.as_str();
        if seen.spec.deletion_protection {
            let call = api.rds.modify_db_instance().db_instance_identifier(id).deletion_protection(false);
            return api
                .call(SERVICE, "remove the deletion protection of", id, call.apply_immediately(true).send())
                .await
                .map(drop);
        }
        let call = api.rds.delete_db_instance().db_instance_identifier(id).delete_automated_backups(true);
        // A replica has nothing that its source does not have, and RDS takes no snapshot of it.
        let call = if seen.spec.final_snapshot && seen.spec.source.is_none() {
            let resource = seen.outputs.get(RESOURCE).and_then(Value::as_str).unwrap_or_default().to_lowercase();
            call.skip_final_snapshot(false).final_db_snapshot_identifier(format!("{id}-{resource}"))
        } else {
            call.skip_final_snapshot(true)
        };
        api.call(SERVICE, "delete", id, call.send()).await.map(drop)
    }
}

/// Why storage of this size in GiB does not get the wanted one, and what to do.
fn storage_refusal(wanted: i64, seen: i64) -> Option<(String, String)> {
    if wanted < seen {
        let why = format!("storage of {seen} GiB cannot shrink to {wanted}");
        return Some((why, format!("set `database.size` to {seen}GiB")));
    }
    // RDS would round up, and the server would have another size than the plan says.
    (wanted > seen && wanted * 10 < seen * 11).then(|| {
        let least = (seen * 11 + 9) / 10;
        (
            format!("storage of {seen} GiB grows by a tenth at least"),
            format!("set `database.size` to {least}GiB or more"),
        )
    })
}

const ENGINE: &str = "postgres";
/// The output with the id that no other server ever has: the name of the last snapshot ends with it.
const RESOURCE: &str = "resource";

fn seen(server: Answer) -> Option<ObservedObject<Spec>> {
    let id = server.db_instance_identifier?;
    let tags = super::tags(server.tag_list);
    let zones = server.availability_zone.zip(server.secondary_availability_zone);
    let version = server.engine_version.unwrap_or_default();
    let mut spec = Spec {
        name: id.clone(),
        source: server.read_replica_source_db_instance_identifier,
        version: version.split('.').next().unwrap_or_default().to_owned(),
        class: server.db_instance_class.unwrap_or_default(),
        storage_gb: server.allocated_storage.unwrap_or_default(),
        storage_type: server.storage_type.unwrap_or_default(),
        key: server.kms_key_id,
        database: server.db_name.unwrap_or_default(),
        user: server.master_username.unwrap_or_default(),
        password: tags.get(tags::SECRET).and_then(|tag| secret::of_tag(tag)),
        // An instance that is being created has no endpoint yet, and the port that it will have here.
        port: server.endpoint.as_ref().and_then(|to| to.port).or(server.db_instance_port).unwrap_or_default(),
        multi_az: server.multi_az.unwrap_or_default(),
        subnet_group: server.db_subnet_group.and_then(|group| group.db_subnet_group_name).unwrap_or_default(),
        security_groups: Vec::new(),
        parameter_group: String::new(),
        backup_days: server.backup_retention_period.unwrap_or_default(),
        backup_window: server.preferred_backup_window.unwrap_or_default(),
        maintenance_window: server.preferred_maintenance_window,
        deletion_protection: server.deletion_protection.unwrap_or_default(),
        final_snapshot: server.copy_tags_to_snapshot.unwrap_or_default(),
        performance_insights: server.performance_insights_enabled.unwrap_or_default(),
        minor_upgrades: server.auto_minor_version_upgrade.unwrap_or_default(),
        public: server.publicly_accessible.unwrap_or_default(),
        tags: Tags::new(),
    };
    let groups = server.vpc_security_groups.unwrap_or_default().into_iter();
    spec.security_groups = groups.filter_map(|group| group.vpc_security_group_id).collect();
    spec.security_groups.sort();
    // While servers move from one group to another, both are shown.
    let mut groups = server.db_parameter_groups.unwrap_or_default().into_iter();
    spec.parameter_group = groups.next().and_then(|group| group.db_parameter_group_name).unwrap_or_default();
    let state = match state(server.db_instance_status.as_deref().unwrap_or_default()) {
        // The first backup may be under way before clients have an address.
        State::Ready if server.endpoint.is_none() => State::Pending("without an address".to_owned()),
        state => state,
    };
    let (database, user) = (spec.database.clone(), spec.user.clone());
    let port = server.endpoint.as_ref().and_then(|to| to.port);
    let host = server.endpoint.and_then(|to| to.address);
    // As clients write it, without the password.
    let address = host.as_ref().zip(port);
    let url = address.map(|(host, port)| format!("postgresql://{user}@{host}:{port}/{database}?sslmode=verify-full"));
    let mut seen = ObservedObject::new(&id, spec, tags)
        .output("name", Some(id.clone()))
        .output("arn", server.db_instance_arn)
        .output("host", host)
        .output("port", port)
        .output("database", Some(database))
        .output("user", Some(user))
        .output("url", url)
        .output("version", Some(version))
        .output("ca", server.ca_certificate_identifier)
        .output(RESOURCE, server.dbi_resource_id);
    seen.zones = zones.map(|(primary, standby)| Zones { primary, standby, is_ready: true });
    Some(seen.state(state).created(timestamp(server.instance_create_time)))
}

/// The meaning of a status: <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/accessing-monitoring.html>.
fn state(status: &str) -> State {
    match status {
        // It serves during these.
        "available"
        | "backing-up"
        | "configuring-enhanced-monitoring"
        | "configuring-iam-database-auth"
        | "configuring-log-exports"
        | "resetting-master-credentials"
        | "storage-initialization"
        | "storage-optimization" => State::Ready,
        "deleting" => State::Deleting,
        "storage-full" => State::Degraded("its storage is full: raise `database.size`".to_owned()),
        "failed"
        | "incompatible-create"
        | "incompatible-network"
        | "incompatible-restore"
        | "insufficient-capacity"
        | "restore-error" => State::Failed { code: status.to_owned(), why: format!("the server is `{status}`") },
        "inaccessible-encryption-credentials"
        | "inaccessible-encryption-credentials-recoverable"
        | "incompatible-credentials"
        | "incompatible-option-group"
        | "incompatible-parameters"
        | "stopped"
        | "stopping" => State::Degraded(format!("the server is `{status}`")),
        status => State::Pending(status.to_owned()),
    }
}

async fn is_changing_password(api: &Api, id: &str) -> Result<bool> {
    let answer = api.find(SERVICE, id, api.rds.describe_db_instances().db_instance_identifier(id).send()).await?;
    let server = answer.and_then(|answer| answer.db_instances?.into_iter().next());
    Ok(server.is_some_and(|server| {
        server.db_instance_status.as_deref() == Some("resetting-master-credentials")
            || server.pending_modified_values.is_some_and(|pending| pending.master_user_password.is_some())
    }))
}

fn arn(seen: &ObservedObject<Spec>) -> &str {
    seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default()
}

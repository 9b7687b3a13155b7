//! Launch templates, whose default version is what instances get:
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateLaunchTemplate.html>.

use std::collections::BTreeSet;

use async_trait::async_trait;
use aws_sdk_ec2::types::{
    InstanceType, LaunchTemplate as Answer, LaunchTemplateBlockDeviceMappingRequest,
    LaunchTemplateEbsBlockDeviceRequest, LaunchTemplateHttpTokensState, LaunchTemplateInstanceMetadataEndpointState,
    LaunchTemplateInstanceMetadataOptionsRequest, LaunchTemplateTagSpecificationRequest, RequestLaunchTemplateData,
    ResourceType, ResponseLaunchTemplateData, VolumeType,
};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Identity, Permission, ReplaceOrder, Result};

use super::{CREATE_TAGS, QUICK, SERVICE, TAGS, UNTAGS, changes, creates, deletes};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            creates("ec2:CreateLaunchTemplate"),
            changes("ec2:CreateLaunchTemplateVersion"),
            CREATE_TAGS,
            TAGS,
            deletes("ec2:DeleteLaunchTemplate"),
            UNTAGS,
            Permission::read("ec2:DescribeLaunchTemplateVersions"),
            Permission::read("ec2:DescribeLaunchTemplates"),
            changes("ec2:ModifyLaunchTemplate"),
        ],
        // Names are unique in a region.
        replace: ReplaceOrder::DeleteFirst,
        typical: QUICK,
        terraform: &[("aws_launch_template", "id")],
        pricing: textnlp_provider::Pricing::BySpec,
        ..kind("aws.launch-template", "how instances are started", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<LaunchTemplate>::kind(),
    refused: &[],
}];

/// A launch template. Outputs: `id`, and `version`, the number of the default version: it changes with every change.
struct LaunchTemplate;

/// The attributes of a launch template: those of its default version, except for the name. Its instances answer requests for
/// metadata by IMDSv2 only, and their volume is encrypted and ends with them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Spec {
    name: String,
    /// The id of the image; empty where a node group chooses it.
    image: String,
    /// The type of instances; empty where a node group chooses it.
    instance_type: String,
    /// The security groups; none for those of the cluster.
    groups: Vec<String>,
    /// The name of the root volume's device: `/dev/xvda`.
    root_device: String,
    /// The size of the root volume in GiB, a `gp3`.
    root_gib: i32,
    /// The key of the root volume; empty for the one that AWS manages.
    key: String,
    /// The network hops within which metadata are answered: with 1, pods that have a network of their own get none.
    metadata_hops: i32,
    /// The script of the first start; empty for none.
    user_data: String,
    /// The tags of instances, volumes and network interfaces.
    instance_tags: Tags,
    /// Whether instances have only IMDSv2 and an encrypted root volume: anything else is drift.
    hardened: bool,
    #[serde(default)]
    tags: Tags,
}

/// What the tags of a template's instances are given to.
const TAGGED: [ResourceType; 3] = [ResourceType::Instance, ResourceType::NetworkInterface, ResourceType::Volume];

#[async_trait]
impl Resource<Api> for LaunchTemplate {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &[
        "groups",
        "hardened",
        "image",
        "instance_tags",
        "instance_type",
        "key",
        "metadata_hops",
        "root_device",
        "root_gib",
        "user_data",
    ];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.ec2.describe_launch_templates().launch_template_ids(id).send();
        let answer = api.find(SERVICE, id, call).await?;
        match answer.and_then(|answer| answer.launch_templates.unwrap_or_default().into_iter().next()) {
            Some(one) => seen(api, one).await,
            None => Ok(None),
        }
    }

    /// One call, and one more for each template.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let call = api.ec2.describe_launch_templates().filters(super::filter(filter));
        let pages = call.into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "list", "launch templates", pages.try_collect()).await?;
        let mut all = Vec::new();
        for one in found {
            all.extend(seen(api, one).await?);
        }
        Ok(all)
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::LaunchTemplate);
        let call = api.ec2.create_launch_template().launch_template_name(&spec.name).launch_template_data(spec.data());
        let call = call.client_token(make.token).tag_specifications(tags).send();
        let answer = api.call(SERVICE, "create", format!("launch template {}", spec.name), call).await?;
        super::id_in(answer.launch_template.and_then(|one| one.launch_template_id), "launch template")
    }

    /// Makes the latest version the default one if it is as wanted, else creates a version.
    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        if let Some((version, latest)) = version(api, &seen.id, &seen.spec.name, "$Latest").await?
            && latest.is_as(spec)
        {
            let call = api.ec2.modify_launch_template().launch_template_id(&seen.id);
            let call = call.default_version(version.to_string()).send();
            return api.call(SERVICE, "change the default version of", &seen.id, call).await.map(drop);
        }
        let call = api.ec2.create_launch_template_version().launch_template_id(&seen.id);
        let call = call.launch_template_data(spec.data()).send();
        api.call(SERVICE, "create a version of", &seen.id, call).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.ec2.delete_launch_template().launch_template_id(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

impl Spec {
    fn data(&self) -> RequestLaunchTemplateData {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let volume = LaunchTemplateEbsBlockDeviceRequest::builder()
            .encrypted(true)
            .delete_on_termination(true)
            .set_kms_key_id(some(&self.key))
            .volume_size(self.root_gib)
            .volume_type(VolumeType::Gp3);
        let device = LaunchTemplateBlockDeviceMappingRequest::builder().device_name(&self.root_device);
        let metadata = LaunchTemplateInstanceMetadataOptionsRequest::builder()
            .http_endpoint(LaunchTemplateInstanceMetadataEndpointState::Enabled)
            .http_tokens(LaunchTemplateHttpTokensState::Required)
            .http_put_response_hop_limit(self.metadata_hops);
        let tagged = TAGGED.map(|kind| {
            let tags = super::listed(&self.instance_tags);
            LaunchTemplateTagSpecificationRequest::builder().resource_type(kind).set_tags(Some(tags)).build()
        });
        RequestLaunchTemplateData::builder()
            .set_image_id(some(&self.image))
            .set_instance_type(some(&self.instance_type).map(|name| InstanceType::from(name.as_str())))
            .set_security_group_ids((!self.groups.is_empty()).then(|| self.groups.clone()))
            .block_device_mappings(device.ebs(volume.build()).build())
            .metadata_options(metadata.build())
            .set_user_data(some(&self.user_data))
            .set_tag_specifications((!self.instance_tags.is_empty()).then(|| tagged.to_vec()))
            .build()
    }

    fn of(name: String, data: ResponseLaunchTemplateData) -> Self {
        let device = data.block_device_mappings.unwrap_or_default().into_iter().next();
        let root_device = device.as_ref().and_then(|device| device.device_name.clone()).unwrap_or_default();
        let volume = device.and_then(|device| device.ebs);
        let metadata = data.metadata_options;
        let requires_token = metadata.as_ref().and_then(|options| options.http_tokens.as_ref())
            == Some(&LaunchTemplateHttpTokensState::Required);
        let is_encrypted = volume.as_ref().is_some_and(|volume| volume.encrypted == Some(true));
        let mut instance_tags = data.tag_specifications.unwrap_or_default().into_iter();
        let instance_tags = instance_tags.find(|one| one.resource_type == Some(ResourceType::Instance));
        Self {
            name,
            image: data.image_id.unwrap_or_default(),
            instance_type: data.instance_type.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
            groups: data.security_group_ids.unwrap_or_default(),
            root_device,
            root_gib: volume.as_ref().and_then(|volume| volume.volume_size).unwrap_or_default(),
            key: volume.and_then(|volume| volume.kms_key_id).unwrap_or_default(),
            metadata_hops: metadata.and_then(|options| options.http_put_response_hop_limit).unwrap_or(1),
            user_data: data.user_data.unwrap_or_default(),
            instance_tags: super::tags(instance_tags.and_then(|one| one.tags)),
            hardened: requires_token && is_encrypted,
            tags: Tags::new(),
        }
    }

    /// Whether a version has these attributes.
    fn is_as(&self, wanted: &Self) -> bool {
        let groups = |spec: &Self| spec.groups.iter().cloned().collect::<BTreeSet<_>>();
        let rest = |spec: &Self| Self { groups: Vec::new(), tags: Tags::new(), ..spec.clone() };
        groups(self) == groups(wanted) && rest(self) == rest(wanted)
    }
}

/// The number and the attributes of a version: `$Default` or `$Latest`.
async fn version(api: &Api, id: &str, name: &str, which: &str) -> Result<Option<(i64, Spec)>> {
    let call = api.ec2.describe_launch_template_versions().launch_template_id(id).versions(which).send();
    let Some(answer) = api.find(SERVICE, id, call).await? else { return Ok(None) };
    let found = answer.launch_template_versions.unwrap_or_default().into_iter().next();
    Ok(found.and_then(|one| Some((one.version_number?, Spec::of(name.to_owned(), one.launch_template_data?)))))
}

async fn seen(api: &Api, one: Answer) -> Result<Option<ObservedObject<Spec>>> {
    let Some(id) = one.launch_template_id else { return Ok(None) };
    let name = one.launch_template_name.unwrap_or_default();
    let Some((version, spec)) = version(api, &id, &name, "$Default").await? else { return Ok(None) };
    let seen = ObservedObject::new(&id, spec, super::tags(one.tags)).output("id", Some(id.clone()));
    Ok(Some(seen.output("version", Some(version.to_string()))))
}

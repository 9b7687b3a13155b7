//! The README of an export: what it declares, what it leaves out, and how the tool takes over.

use std::collections::BTreeSet;

use textnlp_provider::operations::ExportFile;
use textnlp_provider::units::counted;
use textnlp_provider::{ResourceId, SUBSCRIPTION_SCOPE, Tool};

use super::{Declared, Entry, cloudformation};

/// Its text.
pub(super) fn text(declared: &Declared<'_>, tool: Tool, files: &[ExportFile], secrets: &BTreeSet<String>) -> String {
    let environment = declared.environment;
    let (new, existing) =
        (resources(declared, |entry| entry.is_planned), resources(declared, |entry| !entry.is_planned));
    let what = match (new.len(), existing.len()) {
        (0, count) => format!("{}. Every object exists: {}", counted(count, "resource"), if_imported(tool)),
        (count, 0) => format!("{}. No object exists: the files create it.", counted(count, "resource")),
        (new, existing) => {
            format!(
                "{existing} resources that exist, and {new} that the files create. Of those that exist, {}",
                if_imported(tool)
            )
        }
    };
    let what = format!("What `textnlp-deploy` has of environment {environment}, for {}: {what}", title(tool));
    let mut text = format!("# {environment}\n\n{what}\n\n## How to use it\n\n{}\n", steps(declared, tool, files));
    if !new.is_empty() {
        text += &created(declared, tool);
    }
    text += "\n## One owner\n\nTwo tools must not manage one object. An object named `existing: ID` in the environment is read and never \
             changed.";
    text += &match existing.is_empty() {
        // There is nothing to hold.
        true => " If the tool keeps the objects of the cloud, do not import them, and do not run `up`: it is refused where it finds \
                  their names taken.\n"
            .to_owned(),
        false => format!(
            " After the import, end the management by `textnlp-deploy`:\n\n```\n\
             textnlp-deploy hold{} --reason 'managed by {}'\n```\n\n\
             `hold` blocks `up` and `down`. `state remove RESOURCE` removes single records.\n",
            declared.flags,
            title(tool)
        ),
    };
    if !secrets.is_empty() {
        text += "\n## Secrets\n\nNo file contains a secret. These variables have no default:\n\n";
        text.extend(secrets.iter().map(|name| format!("- `{name}`\n")));
    }
    if !declared.left.is_empty() {
        text += "\n## Not declared\n\n| resource | reason |\n|---|---|\n";
        text.extend(declared.left.iter().map(|left| format!("| `{}` | {} |\n", left.resource, left.because)));
    }
    text
}

fn resources<'d>(declared: &'d Declared<'_>, is_it: impl Fn(&Entry) -> bool) -> BTreeSet<&'d ResourceId> {
    declared.entries.iter().filter(|entry| is_it(entry)).map(|entry| &entry.resource).collect()
}

fn if_imported(tool: Tool) -> &'static str {
    match tool {
        Tool::Terraform | Tool::CloudFormation => "the files import it.",
        Tool::Bicep => "a deployment changes only what differs.",
    }
}

/// What is not done once the tool has created the objects.
fn created(declared: &Declared<'_>, tool: Tool) -> String {
    let (flags, lineage) = (declared.flags, declared.lineage);
    let keeper = match tool {
        Tool::Terraform => {
            "Terraform's state stores passwords and other secrets that an object is created with, except those of Google \
                            Cloud and Azure: encrypt that state.\n\n"
        }
        Tool::CloudFormation | Tool::Bicep => "",
    };
    let again = match tool {
        Tool::Terraform => {
            "its `removed` blocks let Terraform forget parts that are declared only while they do not exist, such as the association of a \
             route table, and leave them as they are"
        }
        Tool::CloudFormation => {
            "parts that are declared only while they do not exist leave their stack and are retained"
        }
        Tool::Bicep => "a deployment leaves alone what a file does not declare",
    };
    format!(
        "\n## After the creation\n\n{keeper}Where data is protected, the first deployment may fail for an object whose key the cloud does \
         not let it use yet: a new role takes minutes to be effective. Run it again.\n\n\
         The tool creates the objects of the cloud, and nothing inside a cluster, no image and no database \
         role. \"Not declared\" below lists what is missing.\n\n\
         `up` does not adopt the objects: it finds them without a record, and refuses or fails where their names are taken. To \
         continue with `textnlp-deploy`, record them first:\n\n```\n\
         textnlp-deploy state import{flags} --lineage {lineage}\n\
         textnlp-deploy plan{flags}\n```\n\n\
         The import proposes the objects that carry this lineage as a tag. A part without tags, such as a subnet of Azure, is not \
         proposed: `up` creates it again, which leaves an equal one as it is. The plan shows what `up` would create or change. Give each \
         variable of a secret the value of the secret that the environment has (`secret` commands), or `up` sets it.\n\n\
         A later export can replace these files: {again}. Give it --planned until `up` has recorded every part.\n"
    )
}

fn title(tool: Tool) -> &'static str {
    match tool {
        Tool::Terraform => "Terraform",
        Tool::CloudFormation => "CloudFormation",
        Tool::Bicep => "Bicep",
    }
}

fn steps(declared: &Declared<'_>, tool: Tool, files: &[ExportFile]) -> String {
    let environment = declared.environment;
    let is_new = declared.entries.iter().any(|entry| entry.is_planned);
    let names = |end: &'static str| files.iter().filter_map(move |file| file.path.strip_suffix(end));
    match tool {
        Tool::Terraform => {
            let shown = match is_new {
                true => "The plan must show no object that is destroyed or replaced. It creates what does not exist.",
                false => "The plan must show imports and no object that is destroyed or replaced.",
            };
            format!(
                "```\nterraform init\nterraform plan -var-file={environment}.tfvars\nterraform apply -var-file={environment}.tfvars\n```\n\n\
                 {shown} Changes in place of imported objects are attributes that the provider sets, and on AWS a rule to \
                 255.255.255.255/32, which allows nothing, of each security group without rules to the outside: review them before \
                 `apply`. `tofu` has the same commands. `{environment}.tfvars` has what differs between environments, such as the \
                 region or the project, and the counts of nodes.\n"
            )
        }
        Tool::CloudFormation => {
            let has = |name: &str, end: &str| files.iter().any(|file| file.path == format!("{name}.{end}.json"));
            let is_large = |path: &str| {
                files.iter().any(|file| file.path == path && file.text.len() > cloudformation::MAX_IN_CALL)
            };
            let commands = names(".template.json").map(|name| {
                let existing = if has(name, cloudformation::EXISTING) { cloudformation::EXISTING } else { "template" };
                let template = format!("{name}.{existing}.json");
                let (upload, body) = match is_large(&template) {
                    true => (
                        format!("aws s3 cp {template} s3://BUCKET/{template}\n"),
                        format!("--template-url https://BUCKET.s3.REGION.amazonaws.com/{template}"),
                    ),
                    false => (String::new(), format!("--template-body file://{template}")),
                };
                let import = format!(
                    "{upload}aws cloudformation create-change-set --stack-name {name} --change-set-name import --change-set-type IMPORT \
                     --capabilities CAPABILITY_NAMED_IAM {body} --resources-to-import file://{name}.import.json\n\
                     aws cloudformation execute-change-set --stack-name {name} --change-set-name import\n"
                );
                let bucket = if is_large(&format!("{name}.template.json")) { " --s3-bucket BUCKET" } else { "" };
                let create = format!(
                    "aws cloudformation deploy --stack-name {name} --template-file {name}.template.json{bucket} \
                     --capabilities CAPABILITY_NAMED_IAM --no-execute-changeset\n"
                );
                let is_imported = has(name, "import");
                let creates = !is_imported || has(name, cloudformation::EXISTING);
                [(is_imported, import), (creates, create)].into_iter().filter(|(is_it, _)| *is_it).map(|(_, text)| text).collect::<String>()
            });
            let skipped = match files.iter().any(|file| file.path.ends_with(".import.json")) {
                true => {
                    " An object that a stack has already, because that stack created it, cannot be imported: use only `aws cloudformation \
                     deploy` with the template of that stack."
                }
                false => "",
            };
            let execute = match is_new {
                true => {
                    " `deploy` prints the command that shows its change set; without `--no-execute-changeset` it executes it. \
                         `--parameter-overrides file://FILE` sets the secrets from a file that only you can read: \
                         `{\"Parameters\": {\"NAME\": \"VALUE\"}}`. A value in the command would be in the list of processes. Use each \
                         command in the region of its template."
                }
                false => "",
            };
            let bucket = match files.iter().any(|file| !file.path.ends_with(".import.json") && is_large(&file.path)) {
                true => {
                    " CloudFormation takes a template above 51,200 bytes only from a bucket: replace `BUCKET` by a private bucket of your \
                     account, and `REGION` by its region, which is that of the stack."
                }
                false => "",
            };
            format!(
                "```\n{}```\n\nReview the change set before you execute it.{skipped}{execute}{bucket} Every object has `DeletionPolicy: Retain` or \
                 `RetainExceptOnCreate`: deleting a stack deletes nothing.\n",
                commands.collect::<String>()
            )
        }
        Tool::Bicep => {
            let commands = names(".bicep").map(|name| match name {
                SUBSCRIPTION_SCOPE => {
                    "az deployment sub what-if --location REGION --template-file subscription.bicep\n".to_owned()
                }
                group => {
                    format!("az deployment group what-if --resource-group {group} --template-file {group}.bicep\n")
                }
            });
            let shown = match is_new {
                true => {
                    "`what-if` must show no object that is deleted. A resource group must exist before its own file is used: deploy \
                         `subscription.bicep` first."
                }
                false => "`what-if` must show no object that is created or deleted.",
            };
            format!(
                "```\n{}```\n\n{shown} Replace it by `create` to deploy. Deploy \
                 incrementally, which is the default: what a file does not declare is left alone. A deployment sets the node counts of \
                 pools back to their minimum.\n",
                commands.collect::<String>()
            )
        }
    }
}

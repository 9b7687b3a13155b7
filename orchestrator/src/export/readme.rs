//! The README of an export: what it declares, what it leaves out, and how the tool takes over.

use std::collections::BTreeSet;

use textnlp_provider::operations::ExportFile;
use textnlp_provider::{SUBSCRIPTION_SCOPE, Tool};

use super::Declared;

/// Its text.
pub(super) fn text(declared: &Declared<'_>, tool: Tool, files: &[ExportFile], secrets: &BTreeSet<String>) -> String {
    let environment = declared.environment;
    let resources: BTreeSet<_> = declared.entries.iter().map(|entry| &entry.resource).collect();
    let mut text = format!(
        "# {environment}\n\nWhat `textnlp-deploy` recorded of environment {environment}, for {}: {} resources. Every object exists: the \
         files import it.\n\n## How to use it\n\n{}\n",
        title(tool),
        resources.len(),
        steps(declared, tool, files)
    );
    text += &format!(
        "\n## One owner\n\nTwo tools must not manage one object. After the import, end the management by `textnlp-deploy`:\n\n```\n\
         textnlp-deploy hold --env {environment} --reason 'managed by {}'\n```\n\n\
         `hold` blocks `up` and `down`. `state remove RESOURCE` removes single records; an object named `existing: ID` in the \
         environment is read and never changed.\n",
        title(tool)
    );
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

fn title(tool: Tool) -> &'static str {
    match tool {
        Tool::Terraform => "Terraform",
        Tool::CloudFormation => "CloudFormation",
        Tool::Bicep => "Bicep",
    }
}

fn steps(declared: &Declared<'_>, tool: Tool, files: &[ExportFile]) -> String {
    let environment = declared.environment;
    let names = |end: &'static str| files.iter().filter_map(move |file| file.path.strip_suffix(end));
    match tool {
        Tool::Terraform => format!(
            "```\nterraform init\nterraform plan -var-file={environment}.tfvars\nterraform apply -var-file={environment}.tfvars\n```\n\n\
             The plan must show imports and no object that is destroyed or replaced. Changes in place are attributes that the \
             provider sets: review them before `apply`. `tofu` has the same commands.\n"
        ),
        Tool::CloudFormation => {
            let commands = names(".template.json").map(|name| {
                format!(
                    "aws cloudformation create-change-set --stack-name {name} --change-set-name import --change-set-type IMPORT \
                     --capabilities CAPABILITY_NAMED_IAM --template-body file://{name}.template.json \
                     --resources-to-import file://{name}.import.json\n\
                     aws cloudformation execute-change-set --stack-name {name} --change-set-name import\n"
                )
            });
            format!(
                "```\n{}```\n\nReview the change set before you execute it. Every object has `DeletionPolicy: Retain`: deleting a stack \
                 deletes nothing.\n",
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
            format!(
                "```\n{}```\n\n`what-if` must show no object that is created or deleted. Replace it by `create` to deploy. Deploy \
                 incrementally, which is the default: what a file does not declare is left alone. A deployment sets the node counts of \
                 pools back to their minimum.\n",
                commands.collect::<String>()
            )
        }
    }
}

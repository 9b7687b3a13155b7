//! A container of SageMaker (<https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html>), of Cloud
//! Run (<https://cloud.google.com/run/docs/container-contract>), of Vertex AI
//! (<https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements>) or of Azure Machine Learning
//! (<https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container>).
//!
//! It is started as `serve`, without a file: its configuration and the list of its models are in variables, in numbered
//! pieces, because a variable of SageMaker has at most 1,024 bytes. It fetches and verifies the models as pods do. On
//! SageMaker, Vertex AI and Azure Machine Learning it then answers `/ping` and `/invocations`, on Cloud Run the API. The
//! cloud has decided who may call it.

use camino::Utf8Path;
use textnlp_store::DatabaseAt;

use crate::admin::models::deliver_text;
use crate::commands::CommandError;
use crate::config::{Config, ConfigError, Container};

/// The variables with the configuration and the list of models, by the cloud.
const VARIABLES: [(Container, &str, &str); 4] = [
    (Container::Sagemaker, "TEXTNLP_SAGEMAKER_SERVER", "TEXTNLP_SAGEMAKER_MODELS"),
    (Container::CloudRun, "TEXTNLP_CLOUD_RUN_SERVER", "TEXTNLP_CLOUD_RUN_MODELS"),
    (Container::Vertex, "TEXTNLP_VERTEX_SERVER", "TEXTNLP_VERTEX_MODELS"),
    (Container::AzureMl, "TEXTNLP_AZURE_ML_SERVER", "TEXTNLP_AZURE_ML_MODELS"),
];
/// The most variables that SageMaker passes to a container.
const MOST_PIECES: usize = 100;

/// The configuration: of this file, or of the variables of a container.
///
/// Azure Machine Learning starts the command of the image, which names a file that only pods have: an online deployment has no
/// arguments (<https://learn.microsoft.com/azure/machine-learning/reference-yaml-deployment-managed-online>).
pub(crate) fn config(file: Option<&Utf8Path>) -> Result<Config, ConfigError> {
    let is_absent = |file: &Utf8Path| matches!(file.try_exists(), Ok(false));
    let mut known =
        VARIABLES.iter().filter_map(|(container, server, _)| Some((*container, *server, variable(server)?)));
    let (container, name, text) = match (file, known.next()) {
        (None, Some(found)) => found,
        (Some(file), Some(found)) if found.0 == Container::AzureMl && is_absent(file) => found,
        (Some(file), _) => return Config::read(file),
        (None, None) => return Err(ConfigError::Missing),
    };
    let config = Config::parse(&text).map_err(|problems| ConfigError::Invalid { path: name.into(), problems })?;
    Ok(config.contained(container))
}

/// Makes what a server finds elsewhere: the folder of its database, which ends with the container, and its verified models.
pub(crate) async fn prepare(config: &Config, container: Container) -> Result<(), CommandError> {
    let models = VARIABLES.iter().find(|(known, ..)| *known == container).map_or("", |(.., models)| *models);
    deliver(config, models, variable(models)).await
}

async fn deliver(config: &Config, name: &'static str, list: Option<String>) -> Result<(), CommandError> {
    let list = list.ok_or(ConfigError::NoModels(name))?;
    if let DatabaseAt::File(file) = &config.database.at
        && let Some(folder) = file.parent()
    {
        std::fs::create_dir_all(folder).map_err(|error| CommandError::Directory(folder.to_owned(), error))?;
    }
    deliver_text(Utf8Path::new(name), &list).await?;
    Ok(())
}

/// The text in the pieces of a variable; `None` without the first one.
fn variable(name: &str) -> Option<String> {
    joined(|piece| std::env::var(format!("{name}_{piece}")).ok())
}

fn joined(piece: impl Fn(usize) -> Option<String>) -> Option<String> {
    let pieces: Vec<String> = (0..MOST_PIECES).map_while(piece).collect();
    (!pieces.is_empty()).then(|| pieces.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_up_to_the_first_that_is_missing() {
        let of = |pieces: &[(usize, &str)]| {
            joined(|number| pieces.iter().find(|(known, _)| *known == number).map(|(_, text)| (*text).to_owned()))
        };
        assert_eq!(of(&[(0, "a"), (1, "b"), (3, "d")]).as_deref(), Some("ab"));
        assert_eq!(of(&[(1, "b")]), None);
    }

    #[tokio::test]
    async fn errors_name_what_is_missing_and_the_directory_that_cannot_be_created() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("file");
        std::fs::write(&file, "").unwrap();
        let text = format!(
            "textnlp: {{ models: {{ serve: [ {{ name: m, path: /m }} ] }}, database: {{ url: \"sqlite://{file}/below/t.db\" }} }}"
        );
        let config = Config::parse(&text).unwrap();
        let error = deliver(&config, "TEXTNLP_SAGEMAKER_MODELS", None).await.unwrap_err();
        assert!(error.to_string().starts_with("TEXTNLP_SAGEMAKER_MODELS_0 is not set"), "{error}");
        let error = deliver(&config, "TEXTNLP_SAGEMAKER_MODELS", Some("{}".to_owned())).await.unwrap_err();
        assert_eq!(error.to_string(), format!("create the directory {file}/below"));
    }
}

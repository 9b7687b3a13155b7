//! What the provider knows about AWS without asking it: machines, quotas, prices, errors, regions, zones and the authorities
//! of RDS. Each row or group names its source and the date that the source states.

pub mod errors;
pub mod machines;
pub mod prices;
pub mod quotas;
pub mod rds_ca;
pub mod regions;
pub mod zones;

/// A service that the provider calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`title` names them")]
pub enum Service {
    Acm,
    ApplicationAutoScaling,
    Budgets,
    CloudWatch,
    Ec2,
    Ecr,
    Eks,
    ElastiCache,
    Elb,
    Iam,
    Kms,
    Logs,
    Rds,
    Route53,
    S3,
    SageMaker,
    SecretsManager,
    ServiceQuotas,
    Sns,
    Sts,
    Tagging,
}

impl Service {
    /// All services.
    pub const ALL: [Self; 21] = [
        Self::Acm,
        Self::ApplicationAutoScaling,
        Self::Budgets,
        Self::CloudWatch,
        Self::Ec2,
        Self::Ecr,
        Self::Eks,
        Self::ElastiCache,
        Self::Elb,
        Self::Iam,
        Self::Kms,
        Self::Logs,
        Self::Rds,
        Self::Route53,
        Self::S3,
        Self::SageMaker,
        Self::SecretsManager,
        Self::ServiceQuotas,
        Self::Sns,
        Self::Sts,
        Self::Tagging,
    ];

    /// Its name in botocore and the `aws` CLI.
    pub fn id(self) -> &'static str {
        self.names().0
    }

    /// The service of a signing name, which is also the prefix of its permissions: `elasticloadbalancing`.
    pub fn signed(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.names().1 == name)
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        self.names().2
    }

    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Acm => ("acm", "acm", "Certificate Manager"),
            Self::ApplicationAutoScaling => {
                ("application-autoscaling", "application-autoscaling", "Application Auto Scaling")
            }
            Self::Budgets => ("budgets", "budgets", "Budgets"),
            Self::CloudWatch => ("cloudwatch", "monitoring", "CloudWatch"),
            Self::Ec2 => ("ec2", "ec2", "EC2"),
            Self::Ecr => ("ecr", "ecr", "ECR"),
            Self::Eks => ("eks", "eks", "EKS"),
            Self::ElastiCache => ("elasticache", "elasticache", "ElastiCache"),
            Self::Elb => ("elbv2", "elasticloadbalancing", "Elastic Load Balancing"),
            Self::Iam => ("iam", "iam", "IAM"),
            Self::Kms => ("kms", "kms", "KMS"),
            Self::Logs => ("logs", "logs", "CloudWatch Logs"),
            Self::Rds => ("rds", "rds", "RDS"),
            Self::Route53 => ("route53", "route53", "Route 53"),
            Self::S3 => ("s3", "s3", "S3"),
            Self::SageMaker => ("sagemaker", "sagemaker", "SageMaker"),
            Self::SecretsManager => ("secretsmanager", "secretsmanager", "Secrets Manager"),
            Self::ServiceQuotas => ("service-quotas", "servicequotas", "Service Quotas"),
            Self::Sns => ("sns", "sns", "SNS"),
            Self::Sts => ("sts", "sts", "STS"),
            Self::Tagging => ("resourcegroupstaggingapi", "tagging", "Resource Groups Tagging"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Service;
    use std::process::Command;

    #[test]
    fn signing_names_are_those_of_botocore() {
        let script = "
import json, botocore.loaders
loader, found = botocore.loaders.Loader(), {}
for service in SERVICES:
    metadata = loader.load_service_model(service, 'service-2')['metadata']
    found[service] = metadata.get('signingName') or metadata['endpointPrefix']
print(json.dumps(found))";
        let ids: Vec<_> = Service::ALL.iter().map(|service| service.id()).collect();
        let Some(found) = python(&script.replace("SERVICES", &serde_json::to_string(&ids).unwrap())) else { return };
        for service in Service::ALL {
            let name = found[service.id()].as_str().unwrap();
            assert_eq!(Service::signed(name), Some(service), "{name}");
        }
        assert_eq!(Service::signed("lambda"), None);
    }

    /// The JSON that `script` prints, run with the botocore and moto that other tests use: AWS's own models, and moto's
    /// copies of AWS's answers. `None` with a message if they cannot be installed.
    pub(crate) fn python(script: &str) -> Option<serde_json::Value> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/python.sh");
        let packages = ["botocore==1.44.5", "moto[server,s3]==5.2.5"];
        let out = Command::new("sh").arg(file).args(packages).output().unwrap();
        if !out.status.success() {
            let why = format!("botocore cannot be installed: {}", String::from_utf8_lossy(&out.stderr));
            assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "{why}");
            eprintln!("LEFT OUT: {why}");
            return None;
        }
        let python = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let out = Command::new(python).args(["-c", script]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Some(serde_json::from_slice(&out.stdout).unwrap())
    }
}

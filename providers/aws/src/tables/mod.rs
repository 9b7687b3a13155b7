//! What the provider knows about AWS without asking it: machines, quotas, prices, errors and regions. Each row or group
//! names its source and the date that the source states.

pub mod errors;
pub mod machines;
pub mod quotas;
pub mod regions;

/// A service that the provider calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`id` and `title` name them")]
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

    /// Its name for people.
    pub fn title(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Acm => ("acm", "Certificate Manager"),
            Self::ApplicationAutoScaling => ("application-autoscaling", "Application Auto Scaling"),
            Self::Budgets => ("budgets", "Budgets"),
            Self::CloudWatch => ("cloudwatch", "CloudWatch"),
            Self::Ec2 => ("ec2", "EC2"),
            Self::Ecr => ("ecr", "ECR"),
            Self::Eks => ("eks", "EKS"),
            Self::ElastiCache => ("elasticache", "ElastiCache"),
            Self::Elb => ("elbv2", "Elastic Load Balancing"),
            Self::Iam => ("iam", "IAM"),
            Self::Kms => ("kms", "KMS"),
            Self::Logs => ("logs", "CloudWatch Logs"),
            Self::Rds => ("rds", "RDS"),
            Self::Route53 => ("route53", "Route 53"),
            Self::S3 => ("s3", "S3"),
            Self::SageMaker => ("sagemaker", "SageMaker"),
            Self::SecretsManager => ("secretsmanager", "Secrets Manager"),
            Self::ServiceQuotas => ("service-quotas", "Service Quotas"),
            Self::Sns => ("sns", "SNS"),
            Self::Sts => ("sts", "STS"),
            Self::Tagging => ("resourcegroupstaggingapi", "Resource Groups Tagging"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    /// Prints what `script` prints, run with the botocore and moto that other tests use: AWS's own models, and moto's
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

